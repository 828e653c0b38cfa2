"""Faces through the FP32 network give ranges; ranges give an explicit Q/DQ INT8 model. Never torch."""
