"""Build engines from a bundle, run them on this machine, verify and time them. Never torch."""
