"""Sampled pair lists: balanced, true to the labels, folds that share no identity."""

import numpy as np
import pytest

from fr_edge.errors import FacesError
from fr_edge.metrics.protocols import FOLDS, draw_pairs


def _labels(counts: list[int]) -> np.ndarray:
    return np.repeat(np.arange(len(counts)), counts)


@pytest.mark.parametrize("counts", [[4] * 25, [1] * 30 + [2, 3], [90, 1, 5, 1, 1], [2, 1], [3] * 7])
def test_pairs_are_balanced_and_true_to_the_labels(counts: list[int]) -> None:
    labels = _labels(counts)
    pairs = draw_pairs(labels)
    assert (pairs.first != pairs.second).all()
    assert ((labels[pairs.first] == labels[pairs.second]) == pairs.same).all()
    assert pairs.same.sum() == (~pairs.same).sum() > 0
    people = [
        set(labels[pairs.first[pairs.fold == k]]) | set(labels[pairs.second[pairs.fold == k]])
        for k in np.unique(pairs.fold)
    ]
    assert sum(map(len, people)) == len(set().union(*people))
    assert len(people) <= FOLDS
    for k in np.unique(pairs.fold):
        assert pairs.same[pairs.fold == k].mean() == 0.5


def test_the_same_labels_give_the_same_pairs() -> None:
    a, b = (draw_pairs(_labels([4] * 30)) for _ in range(2))
    assert (a.first == b.first).all()
    assert (a.second == b.second).all()
    assert (draw_pairs(_labels([4] * 30), seed=8).first != a.first).any()


def test_folds_and_pairs_per_fold_are_limits() -> None:
    pairs = draw_pairs(_labels([8] * 40), folds=4, per_fold=20)
    assert np.unique(pairs.fold).tolist() == [0, 1, 2, 3]
    assert [int((pairs.fold == k).sum()) for k in range(4)] == [40] * 4


@pytest.mark.parametrize("counts", [[9], [1, 1, 1]])
def test_labels_without_a_fold_are_refused(counts: list[int]) -> None:
    with pytest.raises(FacesError, match=rf"{len(counts)} identities"):
        draw_pairs(_labels(counts))
