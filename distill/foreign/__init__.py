"""Networks of other people as torch modules: their own code, TorchScript, torch.export, ONNX."""
