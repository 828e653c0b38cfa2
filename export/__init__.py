"""Any face network becomes one clean ONNX file with its input contract, checked by number."""
