"""The network and bundle of tests/tiny_network.py."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]
from tiny_network import bundle, faces, tiny  # noqa: E402, F401
