"""From embeddings to figures: cosines, TAR at FAR, intervals, protocols."""
