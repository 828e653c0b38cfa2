"""One to many against a plain search."""

import numpy as np
import pytest

from fr_edge.metrics import identification
from fr_edge.metrics.identification import identify, nearest, threshold_at_fpir
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


@pytest.mark.parametrize("count", [1, 3, 40_000])
def test_the_nearest_rows_are_those_of_a_full_sort(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identification, "_ROWS", 100)
    monkeypatch.setattr(identification, "_PROBES", 7)
    random = np.random.default_rng(1)
    # Whole numbers: sums are exact, and many cosines are equal.
    probes = random.integers(-2, 3, (20, 6)).astype(np.float32)
    gallery = random.integers(-2, 3, (730, 6)).astype(np.float32)
    order = np.argsort(-(probes @ gallery.T), axis=1, kind="stable")[:, :count]
    cosine, row = nearest(probes, gallery, count)
    assert np.array_equal(row, order)
    assert np.array_equal(cosine, np.take_along_axis(probes @ gallery.T, order, axis=1))


def test_no_gallery_and_no_probes() -> None:
    some, empty = np.eye(3, dtype=np.float32), np.zeros((0, 3), np.float32)
    assert nearest(some, empty, 2)[0].shape == (3, 0)
    assert nearest(empty, some, 2)[1].shape == (0, 2)


def test_the_threshold_lets_pass_as_many_strangers_as_asked_for() -> None:
    strangers = np.random.default_rng(2).permutation(200).astype(np.float32) / 200
    for fpir, passes in ((0.005, 1), (0.01, 2), (0.1, 20), (0.5, 100)):
        threshold = threshold_at_fpir(strangers, fpir)
        assert threshold is not None
        assert (strangers >= threshold).sum() == passes
        assert (strangers >= np.nextafter(np.float32(threshold), np.float32(-2))).sum() > passes
    assert threshold_at_fpir(strangers, 0.004) is None
    assert threshold_at_fpir(strangers, 1.0) == -1.0
