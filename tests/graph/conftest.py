"""The network and bundle of tests/tiny_network.py."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]
from network_tools import save, tools  # noqa: E402, F401
from tiny_network import bundle, faces, tiny  # noqa: E402, F401
