"""Everything that reads, edits or runs an ONNX graph."""
