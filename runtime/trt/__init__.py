"""TensorRT: build engines, read them, say what they compute."""
