"""Packages that other runtimes load: ONNX, C++, Python, Triton, DeepStream, each with its proof."""
