"""Faces that are not aligned are told; drawn faces of a simple kind stand in for photographs."""

from pathlib import Path

import numpy as np
import pytest

from fr_edge.faces.contract import ARCFACE_TEMPLATE
from fr_edge.faces.quality import FEWEST, alignment_warning, eye_contrast
from fr_edge.faces.sources import Faces, open_faces


def face(seed: int, shift: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Grey noise with two dark eyes of the template, moved by `shift` (x, y)."""
    rng = np.random.default_rng(seed)
    out = rng.integers(100, 180, (112, 112, 3))
    rows, columns = np.mgrid[:112, :112]
    for x, y in ARCFACE_TEMPLATE[:2]:
        near = np.hypot(columns - x - shift[0], rows - y - shift[1]) < 8
        out[near] -= 60
    return out.astype(np.uint8)


def source(shift: tuple[int, int], count: int = 40) -> Faces:
    return Faces(
        "faces", [str(i) for i in range(count)], np.arange(count), lambda i: face(i, shift)
    )


def test_eyes_in_their_place() -> None:
    assert alignment_warning(source((0, 0)), range(40)) == ""
    assert alignment_warning(source((2, -2)), range(40)) == ""


@pytest.mark.parametrize("shift", [(0, 20), (0, -24), (18, 0), (-20, 10)])
def test_eyes_elsewhere(shift: tuple[int, int]) -> None:
    assert "do not look aligned" in alignment_warning(source(shift), range(40))


def test_of_few_faces_nothing_is_said() -> None:
    assert alignment_warning(source((0, 20)), range(FEWEST - 1)) == ""


@pytest.mark.real
@pytest.mark.parametrize("folder", ["lfw", "glint"])
def test_photographs(folder: str, real_data: Path) -> None:
    faces = open_faces(real_data / "faces_dev.tar")
    some = [i for i in range(len(faces)) if faces.keys[i].startswith(f"{folder}/")]
    some = some[:: len(some) // 40][:40]
    pixels = np.stack([faces.read(i) for i in some])
    assert eye_contrast(pixels) > 0.6
    assert eye_contrast(np.rot90(pixels, axes=(1, 2))) < 0.3
    assert eye_contrast(np.roll(pixels, 14, axis=1)) < 0.3
