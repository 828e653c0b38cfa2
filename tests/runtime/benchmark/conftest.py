"""A bundle with an engine to time."""

from pathlib import Path

import pytest

from fr_edge.runtime.build import build_engine


@pytest.fixture
def mini(mini: Path) -> Path:
    """A calibrated bundle with its FP32 engine for this CPU, which the test may change."""
    build_engine(mini, "fp32", "onnxruntime")
    return mini
