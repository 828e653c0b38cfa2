"""`import fr_edge` costs nothing, and what it offers is there."""

import subprocess
import sys

import pytest

import fr_edge


@pytest.mark.parametrize("name", fr_edge.__all__)
def test_every_name_is_there_and_documented(name: str) -> None:
    found = getattr(fr_edge, name)
    assert name == "__version__" or found.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'verifi'"):
        fr_edge.verifi  # noqa: B018


def test_importing_loads_no_stage() -> None:
    code = "import fr_edge, sys; print(sorted(m for m in sys.modules if m.startswith('fr_edge')))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "['fr_edge', 'fr_edge._version']"
