"""Which faces calibrate, which judge, and the warnings about them."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fr_edge.calibration.constants import ENOUGH_FACES
from fr_edge.calibration.subset import (
    CalibrationSubset,
    FaceStatistics,
    is_blank,
    select_subset,
    subset_warnings,
    usable_faces,
)
from fr_edge.errors import FacesError
from fr_edge.faces.sources import Faces


def source(labels: list[int], read: Callable[[int], np.ndarray] | None = None) -> Faces:
    def noise(index: int) -> np.ndarray:
        rng = np.random.default_rng(index)
        return rng.integers(60, 200, (112, 112, 3), np.uint8)

    keys = [f"{label}/{i}.jpg" for i, label in enumerate(labels)]
    return Faces("faces", keys, np.array(labels, np.int64), read or noise)


def inspected(faces: Faces, subset: CalibrationSubset) -> tuple[FaceStatistics, list[str]]:
    """What reading the calibration faces gives, and the warnings about them."""
    stats = FaceStatistics()
    images = list(usable_faces(faces, subset.calibration, stats))
    assert len(images) == len(stats.used)
    return stats, subset_warnings(faces, stats)


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("limit", [7, 1000])
def test_nobody_calibrates_and_judges(images: int, limit: int) -> None:
    faces = source([i for i in range(40) for _ in range(images)])
    subset = select_subset(faces, limit, 50)
    people = [set(faces.labels[list(part)]) for part in (subset.calibration, subset.held_out)]
    assert not people[0] & people[1]
    assert len(people[1]) == 8
    assert len(subset.calibration) == min(limit, 32 * images)
    assert select_subset(faces, limit, 50) == subset
    # A new limit moves nobody from one side to the other.
    assert not set(select_subset(faces, 1000, 1000).held_out) & set(subset.calibration)


@pytest.mark.parametrize(("limit", "judging"), [(60, 20), (61, 8)])
def test_more_people_judge_pairs_where_enough_remain(limit: int, judging: int) -> None:
    faces = source([i for i in range(40) for _ in range(3)])
    subset = select_subset(faces, limit, 1000, pairs=True)
    people = [set(faces.labels[list(part)]) for part in (subset.calibration, subset.held_out)]
    assert not people[0] & people[1]
    assert len(people[1]) == judging
    assert len(subset.calibration) == limit


def test_people_with_several_images_judge_first() -> None:
    labels = [i for i in range(50) for _ in range(3 if i % 10 == 4 else 1)]
    judge = select_subset(source(labels), 10, 12).held_out
    chosen, counts = np.unique(np.array(labels)[list(judge)], return_counts=True)
    assert sorted(counts)[-4:] == [2, 3, 3, 3] or (counts >= 2).sum() >= 4
    assert len(judge) == 12


def test_too_few_people_judge_nothing_and_the_user_hears_it() -> None:
    subset = select_subset(source([0, 0, 1, 1, 2, 3]), 100, 100)
    assert subset.held_out == ()
    assert len(subset.calibration) == 6
    assert "4 people" in subset.reason
    unknown = replace(source(list(range(30))), labelled=False)
    assert select_subset(unknown, 100, 100).held_out == ()


def test_few_faces_and_few_people_are_told() -> None:
    faces = source(list(range(20)))
    warnings = inspected(faces, select_subset(faces, 100, 10))[1]
    assert any("16 different faces are few" in text for text in warnings)
    many = source([i % 40 for i in range(2 * ENOUGH_FACES)])
    assert inspected(many, select_subset(many, 1000, 10))[1] == []


def test_blank_images_are_left_out() -> None:
    faces = source([i % 40 for i in range(2 * ENOUGH_FACES)])
    blank = {7, 11}

    def read(index: int) -> np.ndarray:
        return np.zeros((112, 112, 3), np.uint8) if index in blank else faces.read(index)

    darkened = replace(faces, read=read)
    subset = select_subset(darkened, 1000, 50)
    assert blank & set(subset.calibration)
    stats, warnings = inspected(darkened, subset)
    assert set(stats.used) == set(subset.calibration) - blank
    assert any(f"{stats.blank} of" in text for text in warnings)
    assert [i for i in range(20) if is_blank(darkened.read(i))] == sorted(blank)


@pytest.mark.parametrize(
    "read",
    [
        lambda _: np.zeros((112, 112, 3), np.uint8),
        lambda _: np.random.default_rng(0).integers(0, 255, (112, 112, 3), np.uint8),
    ],
    ids=["black", "alike"],
)
def test_faces_that_say_nothing_are_refused(read: Callable[[int], np.ndarray]) -> None:
    faces = source(list(range(30)), read)
    with pytest.raises(FacesError, match="different faces"):
        inspected(faces, select_subset(faces, 100, 10))


def test_one_face_is_refused() -> None:
    faces = source([0])
    with pytest.raises(FacesError, match="1 different faces that are not blank, of 1"):
        inspected(faces, select_subset(faces, 100, 10))


@pytest.mark.parametrize(("shift", "word"), [((0, 0, 40), "swapped"), ((-55,) * 3, "dark")])
def test_colours_that_are_no_faces(shift: tuple[int, int, int], word: str) -> None:
    def read(index: int) -> np.ndarray:
        rng = np.random.default_rng(index)
        face = rng.integers(60, 100, (112, 112, 3)) + np.array(shift)
        return face.astype(np.uint8)

    faces = source([i % 40 for i in range(2 * ENOUGH_FACES)], read)
    assert word in inspected(faces, select_subset(faces, 1000, 10))[1][0]
