"""What a student sees: each change is what it says, and follows from the numbers it is given."""

from dataclasses import replace

import numpy as np
import pytest

from fr_edge.distill.augmentation import (
    DRAWS,
    augment,
    cut_away,
    gaussian_blur,
    lose_resolution,
    occlude,
    relight,
    translate,
)
from fr_edge.distill.recipe import Recipe

FACE = np.arange(112 * 112 * 3, dtype=np.uint32).reshape(112, 112, 3).astype(np.uint8)


def test_a_face_moves_and_its_border_repeats() -> None:
    moved = translate(FACE, 4, 0.25, 0.875)  # two pixels up, three to the right
    assert np.array_equal(moved[:110, 3:], FACE[2:, :109])
    assert np.array_equal(moved[:110, 0], FACE[2:, 0])
    assert translate(FACE, 0, 0.1, 0.9) is FACE


def test_light_is_around_the_middle_grey() -> None:
    grey = np.full((112, 112, 3), 100, np.uint8)
    expected = round((100 - 127.5) * 1.2 + 127.5 * 0.9)
    assert abs(int(relight(grey, 0.2, -0.1)[0, 0, 0]) - expected) <= 1
    assert relight(grey, 0.5, 0.9).max() <= 255


def test_a_crop_blackens_the_rest() -> None:
    out = cut_away(FACE, 0.5, np.array([1.0, 0.5, 0.0, 1.0]))
    assert np.array_equal(out[:56, 28:], FACE[:56, 28:])
    assert out[56:].max() == out[:, :28].max() == 0


def test_lost_resolution_and_blur_keep_the_mean_and_lose_the_detail() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    for out in (lose_resolution(noise, 0.75, 0.3), gaussian_blur(noise, 2.0)):
        assert out.shape == noise.shape
        assert abs(float(out.mean()) - float(noise.mean())) < 2
        assert out.std() < 0.5 * noise.std()
    assert lose_resolution(noise, 0.0, 0.3) is noise
    assert gaussian_blur(noise, 0.0) is noise


def test_an_occlusion_hides_its_share() -> None:
    white = np.full((112, 112, 3), 255, np.uint8)
    for place in ((0.0, 0.0), (0.5, 0.3), (1.0, 0.999)):
        hidden = (occlude(white, 0.2, np.array(place)) == 128).all(2)
        assert hidden.mean() == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize(
    ("name", "value"),
    [("shift", 9), ("crop", 0.4), ("low_resolution", 0.8), ("blur", 3.0), ("light", 0.4),
     ("occlusion", 0.3)],
)  # fmt: skip
def test_each_key_changes_its_share_of_the_images(name: str, value: float) -> None:
    faces = np.broadcast_to(FACE, (40, 112, 112, 3)).copy()
    draws = np.random.default_rng(1).random((40, DRAWS))
    assert augment(faces, draws, Recipe()) is faces
    recipe = replace(Recipe(), augment=0.5, **{name: value})  # type: ignore[arg-type]
    out = augment(faces, draws, recipe)
    changed = [not np.array_equal(one, FACE) for one in out]
    assert 8 < sum(changed) < 32
    assert np.array_equal(out, augment(faces, draws, recipe))
    assert np.array_equal(out[3:4], augment(faces[3:4], draws[3:4], recipe))
