"""The tools of tests/network_tools.py."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]
from network_tools import save, tools  # noqa: E402, F401
