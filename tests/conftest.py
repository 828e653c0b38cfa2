"""What several rooms' tests need."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real faces and models; the test skips where there is none."""
    folder = os.environ.get("FR_EDGE_DATA")
    if not folder:
        pytest.skip("FR_EDGE_DATA does not name a folder of real faces and models")
    if not Path(folder).is_dir():
        pytest.skip(f"FR_EDGE_DATA names {folder}, which is not there")
    return Path(folder)
