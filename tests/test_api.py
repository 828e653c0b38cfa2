"""`import fr_edge` costs nothing, and what it offers is there."""

import shlex
import subprocess
import sys
import traceback
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

import fr_edge
from fr_edge import errors
from fr_edge.documents import read_toml

ROOT = Path(__file__).parents[1]


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


def test_a_missing_extra_is_named_by_packages_that_an_index_has() -> None:
    """There is no `fr-edge[train]` on an index: a hint names the packages of pyproject.toml."""
    listed = read_toml(ROOT / "pyproject.toml")["project"]
    extras = listed["optional-dependencies"]
    for extra in ("export", "sign", "report"):
        wanted = {shlex.quote(requirement) for requirement in extras[extra]}
        hint = errors.install_hint(extra)
        assert hint.startswith("pip install '")
        assert set(hint.split()[2:]) <= wanted
        assert set(hint.split()[2:])
    assert errors._requirements("edgeface") == {
        "timm>=1.0", "torch>=2.4", "safetensors>=0.4", "tensorboard>=2.14", *extras["export"],
    }  # fmt: skip
    for path in ROOT.glob("*/**/*.py"):
        if path.relative_to(ROOT).parts[0] not in {"tests", ".venv", "build"}:
            assert "fr-edge[" not in path.read_text(), f"{path}: use errors.install_hint"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have notes since Python 3.11")
def test_a_traceback_shows_the_hint() -> None:
    error = fr_edge.DataError("the sky is green", "look again")
    shown = "".join(traceback.format_exception(error))
    assert shown.splitlines()[-2:] == ["fr_edge.errors.DataError: the sky is green", "look again"]


def test_a_hint_names_only_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "_is_installed", lambda requirement: "torch" not in requirement)
    assert errors.install_hint("train") == "pip install 'torch>=2.4'"
    assert errors.install_hint("fleet", "jinja2") == "pip install 'jinja2>=3.1'"
    wanted = "pip install -e '.[later]' in the checkout"
    assert errors.install_hint("later") == wanted  # an extra that the installed version lacks
    monkeypatch.setattr(errors, "requires", _unknown)
    assert errors.install_hint("train") == "pip install -e '.[train]' in the checkout"


def _unknown(name: str) -> list[str]:
    raise PackageNotFoundError(name)
