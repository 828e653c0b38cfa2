"""Networks of other people's PyTorch: their own code, TorchScript and torch.export programs."""
