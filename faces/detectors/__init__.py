"""Networks that find faces: how each family lays out what it says."""
