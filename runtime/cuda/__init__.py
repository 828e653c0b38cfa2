"""Memory, streams, events and graphs of one GPU."""
