"""This machine: its GPUs, board and sensors, the backends that run on it, and its problems."""
