"""`accept`: does this board do what the toolchain promises, in one command and one file."""
