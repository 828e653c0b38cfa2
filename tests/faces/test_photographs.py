"""Photographs of a folder: which face is meant, and what cannot be one."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fr_edge.errors import FacesError
from fr_edge.faces.align import align
from fr_edge.faces.contract import ARCFACE_TEMPLATE
from fr_edge.faces.detect import DetectedFace
from fr_edge.faces.photographs import cut_faces, find_faces, open_photographs
from fr_edge.runtime.frames import check_frame

TEMPLATE = np.float32(ARCFACE_TEMPLATE)
PLACES = {  # grey level of the photograph -> landmarks that the double finds in it
    10: [TEMPLATE + 20],
    20: [],
    30: [TEMPLATE * 0.5 + 10, TEMPLATE + 40],
    40: [np.full((5, 2), 60, np.float32)],  # in one place
    50: [TEMPLATE + 5000],  # outside the picture
    60: [TEMPLATE[:, ::-1].copy()],  # not those of a face
    70: [np.full((5, 2), np.nan, np.float32)],
}


def found_places(image: np.ndarray) -> list[DetectedFace]:
    """A double of a detector: the picture's grey level says what it finds."""
    faces = PLACES[int(image[0, 0, 0])]
    boxes = [np.float32([*p.min(0), *np.ptp(p, axis=0)]) for p in faces]
    return [DetectedFace(0.9, box, points) for box, points in zip(boxes, faces, strict=True)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for level in PLACES:
        path = tmp_path / "album" / ("ann" if level < 35 else "bob") / f"{level}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(level).integers(0, 255, (200, 220, 3)).astype(np.uint8)
        pixels[0, 0] = level
        Image.fromarray(pixels).save(path)
    (tmp_path / "album" / "bob" / "80.png").write_bytes(b"no picture")
    return tmp_path / "album"


def test_what_a_photograph_shows(folder: Path) -> None:
    photographs = open_photographs(folder)
    assert photographs.labelled
    chosen = find_faces(photographs, found_places, check=check_frame)
    assert dict(zip(photographs.keys, chosen.states, strict=True)) == {
        "ann/10.png": "found",
        "ann/20.png": "no face",
        "ann/30.png": "found",
        "bob/40.png": "landmarks not of a face",
        "bob/50.png": "landmarks not of a face",
        "bob/60.png": "landmarks not of a face",
        "bob/70.png": "landmarks not of a face",
        "bob/80.png": "unreadable",
    }
    np.testing.assert_array_equal(chosen.points[2], TEMPLATE + 40)  # the larger one
    assert np.isnan(chosen.points[[1, 3, 4, 5, 6, 7]]).all()
    faces = cut_faces(photographs, chosen)
    assert (tuple(faces.keys), list(faces.labels)) == (("ann/10.png", "ann/30.png"), [0, 0])
    expected = align(photographs.read(2), TEMPLATE + 40)
    np.testing.assert_array_equal(faces.read(1), expected)
    assert faces.sized(160).read(0).shape == (160, 160, 3)
    one = find_faces(photographs, found_places, "one", check=check_frame)
    assert one.states[2] == "several faces"
    bob = photographs.subset([3, 7])
    with pytest.raises(FacesError, match="1 landmarks not of a face, 1 unreadable"):
        cut_faces(bob, find_faces(bob, found_places, check=check_frame))
