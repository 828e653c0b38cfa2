"""Detector families: how the outputs of each are read."""
