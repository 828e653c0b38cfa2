"""Drawn pair lists: balanced, true to the labels, folds that share nobody."""

import numpy as np
import pytest

from fr_edge.errors import FacesError
from fr_edge.faces.sources import Faces, open_faces
from fr_edge.metrics.protocols import FOLDS, draw_pairs


def _faces(counts: list[int]) -> Faces:
    labels = np.repeat(np.arange(len(counts)), counts)
    keys = tuple(f"{label}/{i}" for i, label in enumerate(labels))
    return Faces("made up", keys, labels, lambda _: np.zeros((112, 112, 3), np.uint8))


@pytest.mark.parametrize("counts", [[4] * 25, [1] * 30 + [2, 3], [90, 1, 5, 1, 1], [2, 1], [3] * 7])
def test_pairs_are_honest(counts: list[int]) -> None:
    faces = _faces(counts)
    pairs = draw_pairs(faces)
    labels = np.asarray(faces.labels)
    assert (pairs.first != pairs.second).all()
    assert ((labels[pairs.first] == labels[pairs.second]) == pairs.same).all()
    assert pairs.same.sum() == (~pairs.same).sum() > 0
    seen = [
        set(labels[pairs.first[pairs.fold == k]]) | set(labels[pairs.second[pairs.fold == k]])
        for k in np.unique(pairs.fold)
    ]
    assert sum(len(people) for people in seen) == len(set().union(*seen))
    assert len(seen) <= FOLDS


def test_same_faces_same_pairs() -> None:
    one, other = (draw_pairs(open_faces("synthetic:30x4")) for _ in range(2))
    assert (one.first == other.first).all()
    assert (one.second == other.second).all()


@pytest.mark.parametrize("counts", [[9], [1, 1, 1]])
def test_what_cannot_be_judged_is_said(counts: list[int]) -> None:
    with pytest.raises(FacesError, match=rf"{len(counts)} identities"):
        draw_pairs(_faces(counts))
