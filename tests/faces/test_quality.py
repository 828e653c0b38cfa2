"""Measures of an aligned face, degraded copies, and whether faces are aligned at all."""

from pathlib import Path

import numpy as np
import pytest

from fr_edge.faces.contract import ARCFACE_TEMPLATE
from fr_edge.faces.quality import (
    DEGRADATIONS,
    MIN_FACES,
    alignment_warning,
    degraded,
    eye_contrast,
    measure_quality,
)
from fr_edge.faces.sources import Faces, open_faces
from fr_edge.faces.synthetic.render import draw_face


def _faces(count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, 112, 112, 3), np.uint8)


def test_quality_says_dark_flat_and_blurred() -> None:
    face = _faces(1)
    dark, flat = face // 4, face // 8 + 100
    smooth = face.astype(np.float32)
    for axis in (1, 2):
        smooth = (np.roll(smooth, 1, axis) + smooth + np.roll(smooth, -1, axis)) / 3
    plain, low, grey, soft = (
        measure_quality(np.asarray(f, np.uint8))[0] for f in (face, dark, flat, smooth)
    )
    assert low[0] < plain[0] / 3
    assert grey[1] < plain[1] / 4
    assert soft[2] < plain[2] / 2
    assert low[2] == pytest.approx(plain[2], rel=0.05)  # darkness alone is no blur


def test_quality_of_a_known_face() -> None:
    face = np.zeros((1, 112, 112, 3), np.uint8)
    face[:, :, ::2] = (255, 0, 0)  # red stripes one pixel wide: luma 76.245 and 0
    brightness, contrast, detail, *_ = measure_quality(face)[0]
    assert brightness == pytest.approx(76.245 / 2, rel=1e-4)
    assert contrast == pytest.approx(76.245 / 2, rel=1e-4)
    assert detail == pytest.approx(4, rel=1e-4)  # the Laplacian is -2 and +2 times the luma


def test_quality_says_small_and_turned() -> None:
    ahead = np.stack([draw_face(identity, 0) for identity in range(8)])
    small = ahead[:, 2::4, 2::4].repeat(4, axis=1).repeat(4, axis=2)
    size, shrunk = measure_quality(ahead)[:, 3], measure_quality(small)[:, 3]
    assert (size > 0.02).all()
    assert shrunk == pytest.approx(0, abs=1e-3)  # a face of 28 pixels holds all of it
    even = np.concatenate([ahead[:, :, :56], ahead[:, :, 55::-1]], axis=2)
    turned = np.roll(even, 12, axis=2)
    pose, pose_turned = measure_quality(even)[:, 4], measure_quality(turned)[:, 4]
    assert pose == pytest.approx(1, abs=1e-3)
    assert (pose_turned < 0.95).all()


def test_copies_are_worse_in_their_own_way() -> None:
    people = open_faces("synthetic:12x4@9")
    picks = [40, 3, 17]
    plain = np.stack([people.read(i) for i in picks])
    brightness, _, detail, *_ = measure_quality(plain).T
    measured = {}
    for kind in DEGRADATIONS:
        copies = degraded(people, picks, kind)
        assert list(copies.keys) == [people.keys[i] for i in picks]
        pixels = next(copies.batches(3))
        assert pixels.dtype == np.uint8
        assert (pixels == next(copies.batches(3))).all()
        assert np.abs(pixels.astype(int) - plain).mean() > 0.5
        measured[kind] = measure_quality(pixels).T
    small, blurred, noisy, dark = measured.values()
    assert (small[2] < detail).all()
    assert (blurred[2] < detail).all()
    assert (noisy[2] > detail).all()
    assert dark[0] == pytest.approx(brightness / 4, rel=0.15)


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


def test_few_faces_are_not_judged() -> None:
    assert alignment_warning(source((0, 20)), range(MIN_FACES - 1)) == ""


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
