"""INT8 ranges from a few hundred faces, and the explicit Q/DQ model (onnx, onnxruntime)."""
