"""Batches, the learning rate, the other heads and validation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from fr_edge.distill.dataset import Batch, Pixels, batches, relight, split_identities, translate
from fr_edge.distill.distributed import Ranks
from fr_edge.distill.heads import FeatureLoss, MarginHead
from fr_edge.distill.recipe import Recipe
from fr_edge.distill.train_step import learning_rate
from fr_edge.errors import FacesError, UsageError
from fr_edge.faces.sources import Faces


def run(
    faces: Faces, recipe: Recipe, start: int, stop: int, ranks: Ranks | None = None
) -> list[Batch]:
    pixels = Pixels(faces, split_identities(faces, 0).train, recipe.memory_mb)
    return list(batches(pixels, recipe, ranks or Ranks(), start, stop))


def test_an_epoch_visits_every_image_once_in_a_new_order(faces: Faces) -> None:
    recipe = Recipe(batch=10)
    first, second = (
        np.concatenate([b.index for b in run(faces, recipe, k, k + 5)]) for k in (0, 5)
    )
    assert sorted(first) == sorted(second) == list(range(50))
    assert list(first) != list(second)


def test_a_batch_depends_on_its_step_alone(faces: Faces) -> None:
    recipe = Recipe(batch=8, shift=5, light=0.3)
    whole = run(faces, recipe, 0, 9)
    late = run(faces, replace(recipe, memory_mb=0, workers=1), 7, 9)
    for one, other in zip(whole[7:], late, strict=True):
        assert np.array_equal(one.pixels, other.pixels)
        assert np.array_equal(one.index, other.index)


def test_ranks_share_one_batch(faces: Faces) -> None:
    recipe = Recipe(batch=8, shift=5, light=0.3)
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


def test_shift_and_light_do_what_they_say() -> None:
    face = np.arange(112 * 112 * 3, dtype=np.uint32).reshape(1, 112, 112, 3).astype(np.uint8)
    moved = translate(face, 4, np.array([[6, 1]]))
    assert np.array_equal(moved[0, :110, 3:], face[0, 2:, :109])
    assert np.array_equal(moved[0, :110, 0], face[0, 2:, 0])
    assert translate(face, 0, np.zeros((1, 2), np.int64)) is face
    grey = np.full((1, 112, 112, 3), 100, np.uint8)
    expected = round((100 - 127.5) * 1.2 + 127.5 * 0.9)
    assert abs(int(relight(grey, np.array([[0.2, -0.1]]))[0, 0, 0, 0]) - expected) <= 1
    assert relight(grey, np.array([[0.5, 0.9]])).max() <= 255


def test_the_last_people_are_kept_apart(faces: Faces) -> None:
    parts = split_identities(faces, 3)
    assert parts.classes == 7
    assert set(parts.labels) == set(range(7))
    assert set(faces.labels[parts.verification]) == {7, 8, 9}
    with pytest.raises(UsageError, match="fewer than 2"):
        split_identities(faces, 9)


def test_images_that_never_can_be_read_stop_the_run(faces: Faces) -> None:
    def read(index: int) -> np.ndarray:  # type: ignore[type-arg]
        raise FacesError("damaged")

    with pytest.raises(FacesError):
        run(replace(faces, read=read), Recipe(batch=8, bad_images=1000), 0, 1)


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


@pytest.mark.parametrize(("kind", "scale"), [("mse", 1.0), ("cosine", 0.5)])
def test_features_are_the_distance_of_unit_vectors(kind: str, scale: float) -> None:
    student, teacher = torch.randn(7, 12), torch.randn(7, 12)
    labels = torch.tensor([0, 1, 2, -1, 3, 4, 5])
    known = labels >= 0
    distance = functional.normalize(student[known]) - functional.normalize(teacher[known])
    loss = FeatureLoss(kind, 3.0)(student, teacher, labels)
    assert loss.item() == pytest.approx(
        3.0 * scale * distance.square().sum(1).mean().item(), rel=1e-5
    )


@pytest.mark.parametrize("kind", ["arcface", "cosface", "elasticface"])
def test_learned_heads_are_their_formulas(kind: str) -> None:
    torch.manual_seed(0)
    head = MarginHead(9, 12, kind, 0.3, 16.0, 0.0)
    student, labels = torch.randn(5, 12), torch.tensor([1, 8, -1, 1, 0])
    known = labels >= 0
    cosine = functional.normalize(student[known]) @ functional.normalize(head.weight).T
    own = functional.one_hot(labels[known], 9) > 0
    with_margin = cosine - 0.3 if kind == "cosface" else torch.cos(torch.acos(cosine) + 0.3)
    expected = functional.cross_entropy(16.0 * torch.where(own, with_margin, cosine), labels[known])
    assert head(student, None, labels).item() == pytest.approx(expected.item(), rel=1e-5)


def test_elastic_margins_are_drawn_anew() -> None:
    head = MarginHead(9, 12, "elasticface", 0.3, 16.0, 0.1)
    student, labels = torch.randn(5, 12), torch.arange(5)
    assert head(student, None, labels).item() != head(student, None, labels).item()
