"""Batches, people kept apart, and the learning rate."""

import math
import os
import signal
import time
from dataclasses import replace
from multiprocessing import active_children

import numpy as np
import pytest

from fr_edge.distill import distributed
from fr_edge.distill.dataset import (
    Batch,
    Pixels,
    balanced_order,
    batches,
    grouped_order,
    split_identities,
)
from fr_edge.distill.distributed import Ranks
from fr_edge.distill.recipe import Recipe
from fr_edge.distill.train_step import learning_rate
from fr_edge.errors import FacesError, MachineError, UsageError
from fr_edge.faces.sources import Faces


def run(
    faces: Faces, recipe: Recipe, start: int, stop: int, ranks: Ranks | None = None
) -> list[Batch]:
    split = split_identities(faces, 0)
    pixels = Pixels(faces, split.train, recipe.memory_mb)
    return list(batches(pixels, split, recipe, ranks or Ranks(), start, stop))


def test_an_epoch_visits_every_image_once_in_a_new_order(faces: Faces) -> None:
    recipe = Recipe(batch=10)
    first, second = (
        np.concatenate([b.index for b in run(faces, recipe, k, k + 5)]) for k in (0, 5)
    )
    assert sorted(first) == sorted(second) == list(range(50))
    assert list(first) != list(second)


def test_a_batch_depends_on_its_step_alone(faces: Faces) -> None:
    recipe = Recipe(batch=8, shift=5, light=0.3, occlusion=0.2)
    whole = run(faces, recipe, 0, 9)
    late = run(faces, replace(recipe, memory_mb=0, workers=1), 7, 9)
    for one, other in zip(whole[7:], late, strict=True):
        assert np.array_equal(one.pixels, other.pixels)
        assert np.array_equal(one.index, other.index)


def test_ranks_share_one_batch(faces: Faces) -> None:
    recipe = Recipe(batch=8, shift=5, light=0.3, occlusion=0.2)
    whole = run(faces, recipe, 3, 4)[0]
    parts = [run(faces, recipe, 3, 4, Ranks(r, 2))[0] for r in range(2)]
    assert np.array_equal(whole.pixels, np.concatenate([p.pixels for p in parts]))
    assert np.array_equal(whole.flipped, np.concatenate([p.flipped for p in parts]))


def test_half_the_images_are_mirrored_and_nothing_else(faces: Faces) -> None:
    flips = []
    for batch in run(faces, Recipe(batch=25), 0, 8):
        for pixels, index, flipped in zip(batch.pixels, batch.index, batch.flipped, strict=True):
            face = faces.read(int(index))
            assert np.array_equal(pixels, face[:, ::-1] if flipped else face)
        flips.extend(batch.flipped)
    assert 0.35 < np.mean(flips) < 0.65


def test_everybody_has_equally_many_images_where_a_recipe_says_so() -> None:
    """Three people of 1, 4 and 13 images: 6 images each an epoch of 18, in groups of two."""
    labels = np.repeat([4, 0, 2], [1, 4, 13])
    order = balanced_order(labels, 2, np.random.default_rng(0))
    groups = labels[order].reshape(-1, 2)
    assert (groups[:, 0] == groups[:, 1]).all()
    assert sorted(labels[order]) == sorted([0, 2, 4] * 6)
    times = np.bincount(order, minlength=18)
    assert times[0] == 6
    assert set(times[1:5]) == {1, 2}
    assert set(times[5:]) == {0, 1}  # a part of those with many, and no image twice
    seen = {i for seed in range(20) for i in balanced_order(labels, 1, np.random.default_rng(seed))}
    assert seen == set(range(18))
    uneven = balanced_order(np.array([0, 0, 0, 1, 1]), 2, np.random.default_rng(0))
    assert len(uneven) == 8  # no epoch is shorter than the images


def test_a_balanced_training_takes_its_batches_from_that_order(faces: Faces) -> None:
    few = faces.subset(np.r_[0:5, 5, 10:15, 15])  # two people of five images, two of one
    labels = np.asarray(few.labels)
    run_of = np.concatenate([b.index for b in run(few, Recipe(batch=4, balanced=True), 0, 3)])
    assert list(np.unique(labels[run_of], return_counts=True)[1]) == [3, 3, 3, 3]


def test_images_of_a_person_stand_together_where_a_recipe_says_so(faces: Faces) -> None:
    """Ten people of five images in groups of two: the third group of each takes one of the others."""
    recipe = Recipe(batch=10, per_identity=2)
    labels = np.asarray(faces.labels)
    for batch in run(faces, recipe, 0, 5):
        pairs = labels[batch.index].reshape(-1, 2)
        assert (pairs[:, 0] == pairs[:, 1]).all()
    order = grouped_order(labels, 2, np.random.default_rng(0))
    assert len(order) == 60
    assert set(order) == set(range(50))
    assert np.bincount(order).max() == 2
    other = grouped_order(labels, 2, np.random.default_rng(1))
    assert list(order) != list(other)
    few = grouped_order(np.array([0, 1, 1, 1]), 4, np.random.default_rng(0)).reshape(-1, 4)
    assert sorted(sorted(set(group)) for group in few.tolist()) == [[0], [1, 2, 3]]


def test_groups_are_those_of_a_loop_over_people() -> None:
    draw = np.random.default_rng(0)
    for seed in range(40):
        labels, size = draw.integers(0, draw.integers(1, 9), draw.integers(1, 40)), 2 + seed % 4
        rng = np.random.default_rng(seed)
        shuffled = rng.permutation(len(labels))
        groups = []
        for person in np.unique(labels):
            own = list(shuffled[labels[shuffled] == person])
            while len(own) % size:
                own.append(own[len(own) - np.count_nonzero(labels == person)])
            groups += np.reshape(own, (-1, size)).tolist()
        expected = np.array(groups)[rng.permutation(len(groups))].reshape(-1)
        order = grouped_order(labels, size, np.random.default_rng(seed))
        assert np.array_equal(order, expected)


def test_the_last_people_are_kept_apart(faces: Faces) -> None:
    parts = split_identities(faces, 3)
    assert parts.classes == 7
    assert set(parts.labels) == set(range(7))
    assert set(faces.labels[parts.verification]) == {7, 8, 9}
    with pytest.raises(UsageError, match="fewer than 2"):
        split_identities(faces, 9)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_never_can_be_read_stop_the_run(faces: Faces, workers: int) -> None:
    """In the words of the error alone, also from a worker; torch would add the worker's traceback."""

    def read(index: int) -> np.ndarray:  # type: ignore[type-arg]
        raise FacesError("damaged", "remove it")

    recipe = Recipe(batch=8, bad_images=1000, workers=workers)
    with pytest.raises(FacesError) as error:
        run(replace(faces, read=read), recipe, 0, 1)
    assert (error.value.message, error.value.hint) == ("damaged", "remove it")
    assert active_children() == []  # while the error's traceback is held


def test_an_image_that_is_left_out_takes_nobodys_place(faces: Faces) -> None:
    """It may have no target."""

    def read(index: int) -> np.ndarray:  # type: ignore[type-arg]
        if index in (3, 49):
            raise FacesError("damaged")
        return faces.read(index)

    excluded = np.isin(np.arange(50), (0, 4, 5))
    split = split_identities(faces, 0, excluded)
    pixels = Pixels(replace(faces, read=read), split.train, 0)
    recipe = Recipe(batch=47, bad_images=2)
    (batch,) = batches(pixels, split, recipe, Ranks(), 0, 1)
    read_for = dict(zip(batch.planned.tolist(), batch.index.tolist(), strict=True))
    assert sorted(read_for) == np.flatnonzero(~excluded).tolist()
    stand_ins = {planned: index for planned, index in read_for.items() if planned != index}
    assert stand_ins == {3: 6, 49: 1}


def test_a_killed_worker_is_said(faces: Faces) -> None:
    parent, read = os.getpid(), faces.read

    def killed(index: int) -> np.ndarray:  # type: ignore[type-arg]
        if index == 3 and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(index)

    recipe = Recipe(batch=25, workers=2, memory_mb=0)
    with pytest.raises(MachineError, match="process that reads images was killed") as error:
        run(replace(faces, read=killed), recipe, 0, 9)
    assert "--set workers=N" in error.value.hint
    assert active_children() == []


def test_workers_end_with_a_training_that_does_not(faces: Faces) -> None:
    split = split_identities(faces, 0)
    recipe = Recipe(batch=8, workers=2)
    images = batches(Pixels(faces, split.train, 0), split, recipe, Ranks(), 0, 90)
    next(images)
    assert len(active_children()) == 2
    images.close()
    assert active_children() == []


def test_workers_do_not_overwrite_what_is_still_to_be_copied(
    faces: Faces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share memory with the parent: here they have time to read all they may before each copy."""
    copied = distributed._Reader.with_pixels

    def late(reader: distributed._Reader, place: int, item: object) -> object:
        time.sleep(0.1)
        return copied(reader, place, item)

    monkeypatch.setattr(distributed._Reader, "with_pixels", late)
    recipe = Recipe(batch=5, memory_mb=0, shift=5)
    by_workers = run(faces, replace(recipe, workers=2), 0, 12)
    for one, other in zip(by_workers, run(faces, recipe, 0, 12), strict=True):
        assert np.array_equal(one.pixels, other.pixels)
        assert np.array_equal(one.index, other.index)
        assert np.array_equal(one.flipped, other.flipped)


def test_schedules() -> None:
    def rates(**changes: object) -> list[float]:
        recipe = replace(Recipe(lr=0.4, warmup=0.0), **changes)  # type: ignore[arg-type]
        return [learning_rate(recipe, step, 100, 10) for step in range(100)]

    steps = rates(milestones=(3, 7), gamma=0.1)
    assert steps[29] == 0.4
    assert steps[30] == pytest.approx(0.04)
    assert steps[70] == pytest.approx(0.004)
    assert rates(schedule="polynomial")[50] == pytest.approx(0.2)
    assert rates(schedule="polynomial", power=2.0)[50] == pytest.approx(0.1)
    assert rates(schedule="cosine")[50] == pytest.approx(0.2)
    assert rates(schedule="cosine")[25] == pytest.approx(0.2 * (1 + math.sqrt(0.5)))
    warm = rates(schedule="polynomial", warmup=0.1)
    assert warm[0] == pytest.approx(0.04)
    assert warm[9] == pytest.approx(0.4)
    assert warm[10] == pytest.approx(0.4)
    assert warm[99] < 0.005
