"""Face verification metrics from embeddings: numpy only."""
