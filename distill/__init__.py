"""Teach a small network to embed faces like a large one (torch)."""
