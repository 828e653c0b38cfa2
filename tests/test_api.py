"""`import fr_edge` costs nothing, and what it offers is there."""

import subprocess
import sys
from pathlib import Path

import pytest

import fr_edge


@pytest.mark.parametrize("name", fr_edge.__all__)
def test_every_name_is_there_and_documented(name: str) -> None:
    if name == "distill_student":
        pytest.importorskip("torch", reason="training needs torch")
    value = getattr(fr_edge, name)
    assert name == "__version__" or value.__doc__ or issubclass(value, fr_edge.FrEdgeError)


def test_the_names_are_those_of_the_stages() -> None:
    names = {
        "open_session", "embed", "align", "verify", "evaluate", "benchmark", "export_onnx",
        "calibrate", "build_engine", "distill_student", "InputSpec", "EngineOptions", "Budget",
        "open_bundle", "open_faces",
    }  # fmt: skip
    assert names <= set(fr_edge.__all__)


def test_no_name_is_both_a_room_and_a_function() -> None:
    rooms = {path.parent.name for path in Path(fr_edge.__file__).parent.glob("*/__init__.py")}
    assert rooms >= {"distill", "export", "runtime"}
    assert not rooms & set(fr_edge.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'verifi'"):
        fr_edge.verifi  # noqa: B018


def test_importing_loads_no_stage() -> None:
    code = "import fr_edge, sys; print(sorted(m for m in sys.modules if m.startswith('fr_edge')))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "['fr_edge', 'fr_edge._version']"
