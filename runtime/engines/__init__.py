"""Sessions and engines: build them, read them, refuse them, run them."""
