"""Embeddings that travel between machines: read back whole, or refused with the reason."""

from pathlib import Path

import numpy as np
import pytest

from fr_edge.errors import FacesError, FrEdgeError, ModelError, UsageError
from fr_edge.faces.contract import PRESETS
from fr_edge.runtime.evaluation.embeddings_file import (
    EmbeddingOrigin,
    check_embeddings,
    read_embeddings,
    write_embeddings,
)

KEYS = ("a/1.jpg", "a/2.jpg", "b/1.jpg")
ORIGIN = EmbeddingOrigin({"model.pt": "ab" * 32}, PRESETS["imagenet"], "fp32", "torch")
ROWS = np.arange(12, dtype=np.float32).reshape(3, 4) + 1


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_embeddings(tmp_path / "some" / "e.npz", KEYS, (0, 0, 1), ROWS, ORIGIN)
    return tmp_path / "some" / "e.npz"


def test_read_in_any_order(file: Path) -> None:
    held = read_embeddings(file, (KEYS[2], KEYS[0]), 4)
    assert (held.rows == ROWS[[2, 0]]).all()
    assert held.origin == ORIGIN


def test_refusals(file: Path, tmp_path: Path) -> None:
    with pytest.raises(FacesError, match=r"lacks 1 of 2 faces, the first is c/1"):
        read_embeddings(file, ("a/1.jpg", "c/1.jpg"), 4)
    with pytest.raises(FacesError, match="of 4 numbers, this bundle's have 128"):
        read_embeddings(file, KEYS, 128)
    with pytest.raises(FacesError, match="no file"):
        read_embeddings(tmp_path / "none.npz", KEYS, 4)
    with pytest.raises(UsageError, match="npz"):
        write_embeddings(tmp_path / "e.txt", KEYS, (0, 0, 1), ROWS, ORIGIN)


def test_a_file_that_does_not_say_what_made_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", keys=np.array(KEYS), embeddings=ROWS)
    assert read_embeddings(tmp_path / "own.npz", KEYS, 4).origin is None


class _Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize("kind", ["text", "truncated", "pickle", "twice", "origin"])
def test_damaged_files(
    kind: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind == "text":
        file.write_text("key,embedding\n")
    elif kind == "truncated":
        file.write_bytes(file.read_bytes()[:-40])
    elif kind == "pickle":
        np.savez(file, keys=np.array([_Trap()], object), embeddings=ROWS)
    elif kind == "origin":
        np.savez(file, keys=np.array(KEYS), embeddings=ROWS, origin=np.array('{"models": 3}'))
    else:
        write_embeddings(file, ("a", "a", "b"), (0, 0, 1), ROWS, ORIGIN)
    with pytest.raises(FrEdgeError) as caught:
        read_embeddings(file, KEYS, 4)
    assert caught.value.exit_code == 4
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_nobodys_embeddings_are_named(value: float) -> None:
    broken = ROWS.copy()
    broken[1] = value
    with pytest.raises(ModelError, match=r"1 of 3 .* a/2.jpg"):
        check_embeddings(broken, KEYS, "the engine")
