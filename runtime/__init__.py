"""Run a bundle on this machine, verify it, time it, report it (never torch)."""
