"""What several rooms' tests need."""

import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
collect_ignore = []
if find_spec("torch") is None:
    needs = re.compile(r"^(import|from) torch\b", re.MULTILINE)
    files = [f for f in HERE.rglob("*.py") if needs.search(f.read_text(encoding="utf-8"))]
    collect_ignore = ["distill", *(str(f.relative_to(HERE)) for f in files)]


def pytest_report_header() -> str:
    left_out = [name for name in collect_ignore if name.count("conftest") == 0]
    if not left_out:
        return ""
    return f"torch is not installed, left out: {', '.join(left_out)}"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real faces and models; the test skips where there is none."""
    folder = os.environ.get("FR_EDGE_DATA")
    if not folder:
        pytest.skip("FR_EDGE_DATA does not name a folder of real faces and models")
    if not Path(folder).is_dir():
        pytest.skip(f"FR_EDGE_DATA names {folder}, which is not there")
    return Path(folder)
