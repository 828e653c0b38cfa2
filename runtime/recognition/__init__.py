"""Photographs to decisions: detection, alignment, embedding and search as one thing."""
