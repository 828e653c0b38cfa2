"""One to many against a plain search."""

import numpy as np
import pytest

from fr_edge.metrics.identification import identify
from fr_edge.metrics.verification import far_name


def test_search_among_enrolled_people() -> None:
    random = np.random.default_rng(0)
    labels = np.concatenate([np.repeat(np.arange(30), 3), np.arange(30, 130)])
    order = random.permutation(len(labels))
    labels = labels[order]
    embeddings = random.normal(size=(130, 24))[labels] + 0.9 * random.normal(size=(len(labels), 24))
    embeddings = embeddings.astype(np.float32)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    enrolled = {p: int(np.flatnonzero(labels == p)[0]) for p in range(30)}
    top = {}
    for face in range(len(labels)):
        if face not in enrolled.values():
            score, person = max((float(unit[face] @ unit[i]), p) for p, i in enrolled.items())
            top[face] = (score, person)
    mated = [f for f in top if labels[f] < 30]
    alarms = sorted((top[f][0] for f in top if labels[f] >= 30), reverse=True)
    result = identify(embeddings, labels)
    assert result is not None
    assert (result.gallery, result.probes, result.strangers) == (30, 60, 100)
    assert result.rank1 == pytest.approx(np.mean([top[f][1] == labels[f] for f in mated]))
    for fpir in (1e-1, 1e-2):
        threshold = alarms[round(fpir * 100)]
        hits = [top[f][1] == labels[f] and top[f][0] > threshold for f in mated]
        assert result.tpir_at_fpir[far_name(fpir)] == pytest.approx(np.mean(hits))
    assert result.tpir_at_fpir["1e-3"] is None


def test_nobody_twice() -> None:
    assert identify(np.eye(4, dtype=np.float32), np.arange(4)) is None


def test_no_strangers() -> None:
    result = identify(np.eye(4, dtype=np.float32)[[0, 0, 1, 1]], np.array([0, 0, 1, 1]))
    assert result is not None
    assert result.rank1 == 1
    assert set(result.tpir_at_fpir.values()) == {None}
