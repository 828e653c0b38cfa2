"""TensorRT: build engines, check them, and read which precisions they compute in."""
