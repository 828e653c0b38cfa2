"""Synthetic faces: people who do not exist."""
