"""The published conventions, against loops written from their description."""

import numpy as np
import pytest

from fr_edge.metrics.accuracy import (
    accuracy_interval,
    insightface_accuracy,
    nearest_tar,
    pair_accuracy,
)
from fr_edge.metrics.protocols import PairList, draw_pairs


def _pairs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    first = random.normal(size=(count, 12)).astype(np.float32)
    same = np.arange(count) // 3 % 2 == 0
    second = np.where(
        same[:, None], first + random.normal(size=first.shape), random.normal(size=first.shape)
    )
    return first * 3, second.astype(np.float32), same


def _plain_accuracy(first: np.ndarray, second: np.ndarray, same: np.ndarray) -> tuple[float, float]:
    distance = [
        float(((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2).sum())
        for a, b in zip(first, second, strict=True)
    ]
    folds = np.array_split(np.arange(len(same)), 10)  # the first ones are longer by one
    accuracies = []
    for fold in folds:
        train = [i for i in range(len(same)) if i not in set(fold)]
        best, at = -1.0, 0.0
        for k in range(400):
            accuracy = np.mean([(distance[i] < k * 0.01) == same[i] for i in train])
            if accuracy > best:
                best, at = accuracy, k * 0.01
        accuracies.append(np.mean([(distance[i] < at) == same[i] for i in fold]))
    return float(np.mean(accuracies)), float(np.std(accuracies))


@pytest.mark.parametrize(("count", "seed"), [(60, 0), (97, 1), (140, 2)])
def test_insightface_accuracy(count: int, seed: int) -> None:
    first, second, same = _pairs(count, seed)
    result = insightface_accuracy(first, second, same)
    assert (result.mean, result.std) == pytest.approx(
        _plain_accuracy(first, second, same), abs=1e-9
    )
    assert result.folds == 10


def _plain_curve(scores: np.ndarray, same: np.ndarray) -> list[tuple[float, float]]:
    """(FAR, TAR) from the most lenient threshold to the strictest, one for each distinct score."""
    thresholds = [np.inf, *sorted(set(scores.tolist()), reverse=True)]
    points = [
        (float((scores[~same] >= t).mean()), float((scores[same] >= t).mean())) for t in thresholds
    ]
    # A curve drawn through fewer points is the same: those on a straight line fall away.
    counts = [(round(f * (~same).sum()), round(t * same.sum())) for f, t in points]
    corners = [
        i
        for i in range(len(points))
        if i in (0, 1, len(points) - 1)
        or counts[i + 1][0] - 2 * counts[i][0] + counts[i - 1][0]
        or counts[i + 1][1] - 2 * counts[i][1] + counts[i - 1][1]
    ]
    return [points[i] for i in corners][::-1]


@pytest.mark.parametrize("decimals", [1, 2, 6])
def test_nearest_tar(decimals: int) -> None:
    random = np.random.default_rng(decimals)
    same = random.random(500) < 0.3
    scores = np.round(random.normal(size=500) + 1.5 * same, decimals)  # with and without ties
    curve = _plain_curve(scores, same)
    for far in (1e-3, 1e-2, 0.05, 0.1, 0.3):
        nearest = min(abs(f - far) for f, _ in curve)
        expected = next(t for f, t in curve if abs(f - far) == nearest)
        assert nearest_tar(scores, same, [far]) == [pytest.approx(expected)]


def test_accuracy_is_one_for_a_perfect_network_and_a_half_for_a_blind_one() -> None:
    labels = np.repeat(np.arange(10), 5)
    pairs = draw_pairs(labels)
    perfect = pair_accuracy(np.eye(10, dtype=np.float32)[labels], pairs)
    assert (perfect.mean, perfect.std, perfect.folds) == (1.0, 0.0, 5)
    blind = np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32)
    assert 0.3 < pair_accuracy(blind, pairs).mean < 0.7


def test_one_fold_alone_is_judged_at_its_own_best_threshold() -> None:
    embeddings = np.float32([[1, 0], [1, 0.1], [0, 1], [-1, 0]])
    pairs = PairList(
        np.zeros(3, np.int64),
        np.array([0, 0, 2]),
        np.array([1, 2, 3]),
        np.array([True, False, False]),
    )
    assert pair_accuracy(embeddings, pairs).folds == 1
    assert pair_accuracy(embeddings, pairs).mean == 1.0


def test_the_interval_where_the_best_threshold_refuses_every_pair() -> None:
    """Impostors are nearer than genuine pairs: no error is left over to have a variance."""
    people, generator = 40, np.random.default_rng(3)
    embeddings = np.repeat(generator.normal(size=(people, 8)), 2, axis=0).astype(np.float32)
    embeddings[1::2] *= -1
    labels, even = np.repeat(np.arange(people), 2), np.arange(0, 2 * people, 2)
    first, second = np.tile(even, 2), np.concatenate([even + 1, (even + 2) % (2 * people)])
    same = np.arange(2 * people) < people
    pairs = PairList(np.arange(2 * people) % 5, first, second, same)
    interval = accuracy_interval(embeddings, pairs, labels)
    assert interval is not None
    assert 0 < interval[0] < 0.5 < interval[1] < 1
