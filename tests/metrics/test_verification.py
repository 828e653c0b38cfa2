"""Counted scores against plain loops over all pairs."""

import numpy as np
import pytest

from fr_edge.metrics import accuracy
from fr_edge.metrics import verification as metrics
from fr_edge.metrics.protocols import draw_pairs


def _embeddings(people: int, images: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(people, dim))
    labels = np.repeat(np.arange(people), images)
    embeddings = centres[labels] + 0.8 * random.normal(size=(people * images, dim))
    return embeddings.astype(np.float32), labels


def _plain_scores(embeddings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted genuine and impostor cosines, one pair at a time, in double precision."""
    unit = embeddings.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    genuine, impostor = [], []
    for i in range(len(unit)):
        for j in range(i + 1, len(unit)):
            (genuine if labels[i] == labels[j] else impostor).append(float(unit[i] @ unit[j]))
    return np.sort(genuine), np.sort(impostor)


def test_cosines_against_the_formula() -> None:
    random = np.random.default_rng(1)
    a, b = (random.normal(size=(5, 7)).astype(np.float32) for _ in range(2))
    expected = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(metrics.cosines(a, b), expected, rtol=1e-5)
    a[0], b[1], a[2] = 0, np.nan, np.inf
    assert (metrics.cosines(a, b)[:3] == 0).all()


def test_cosines_are_computed_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten million times nearer than float32 sums are; parts of a long list are all computed."""
    a = (np.random.default_rng(2).normal(size=(9, 512)) * 1e15).astype(np.float32)
    monkeypatch.setattr(metrics, "_ROWS", 4)
    np.testing.assert_allclose(metrics.cosines(a, 1e-20 * a.astype(np.float64)), 1, atol=1e-14)


def test_a_threshold_is_the_lowest_that_a_rate_allows_counted_or_listed() -> None:
    random = np.random.default_rng(4)
    same = random.random(5000) < 0.2
    cosine = np.clip(random.normal(0.1, 0.2, 5000) + 0.5 * same, -1, 1).astype(np.float32)
    counted = metrics.count_scores(cosine, same)
    listed = metrics.ScoreList(cosine[same], cosine[~same])
    for far in (0.5, 0.1, 0.01, 1e-3):
        exact = metrics.threshold_at_far(listed, far)
        assert exact is not None
        allowed = int(far * (~same).sum() + 1e-6)
        assert (cosine[~same] >= exact).sum() == allowed
        assert (cosine[~same] >= np.nextafter(np.float32(exact), np.float32(-2))).sum() > allowed
        assert metrics.threshold_at_far(counted, far) == pytest.approx(exact, abs=4e-6)
        assert metrics.tar_at_far(counted, far) == pytest.approx(
            metrics.tar_at_far(listed, far), abs=2e-3
        )
    for scores in (counted, listed):
        assert metrics.threshold_at_far(scores, 1e-6) is None
        assert metrics.threshold_at_far(scores, 1.0) == -1.0


def test_ties_at_the_threshold_are_all_refused() -> None:
    cosine, same = np.float32([0.9, 0.5, 0.5, 0.5, 0.1, 0.8]), np.arange(6) == 5
    listed = metrics.ScoreList(cosine[same], cosine[~same])
    assert metrics.threshold_at_far(listed, 0.4) == np.nextafter(np.float32(0.5), np.float32(1))
    assert metrics.rates_at(listed, metrics.threshold_at_far(listed, 0.4)) == (1.0, 0.2)


@pytest.mark.parametrize("pairs", [300_000, 700_000, 10_000, 3])
def test_rounding_of_a_rate_takes_no_impostor_away(pairs: int) -> None:
    for allowed in (1, 2, 3):
        assert metrics.allowed_impostors(allowed / pairs, pairs) == allowed


@pytest.mark.parametrize(("people", "images", "dim"), [(2, 2, 3), (7, 5, 16), (31, 3, 9)])
def test_rates_are_those_of_a_plain_loop(people: int, images: int, dim: int) -> None:
    embeddings, labels = _embeddings(people, images, dim)
    scores = metrics.all_pairs(embeddings, labels)
    genuine, impostor = _plain_scores(embeddings, labels)
    assert (scores.genuine_pairs, scores.impostor_pairs) == (len(genuine), len(impostor))
    for far in (0.5, 0.1, 0.03, 1e-3):
        tar = metrics.tar_at_far(scores, far)
        if len(impostor) * far < 1:
            assert tar is None
            continue
        allowed = int(far * len(impostor))
        threshold = metrics.threshold_at_far(scores, far)
        assert threshold is not None
        assert (impostor >= threshold + 2e-6).sum() <= allowed
        assert threshold <= impostor[len(impostor) - allowed - 1] + 4e-6
        assert tar == pytest.approx((genuine >= threshold).mean(), abs=1.5 / len(genuine))


def test_blocks_do_not_change_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, labels = _embeddings(23, 3, 8)
    whole = metrics.all_pairs(embeddings, labels)
    monkeypatch.setattr(metrics, "_BLOCK", 17)
    parts = metrics.all_pairs(embeddings, labels)
    # Block shapes may move a product by its last bit, so a score may change to the next bin.
    for a, b in ((whole.genuine, parts.genuine), (whole.impostor, parts.impostor)):
        assert a.sum() == b.sum()
        assert np.abs(np.cumsum(a) - np.cumsum(b)).max() <= 3


def test_equal_error_rate_of_overlapping_scores() -> None:
    genuine, impostor = np.linspace(0.2, 0.8, 1001), np.linspace(0.0, 0.6, 1001)
    bins = lambda s: np.bincount(((s + 1) * metrics.BINS / 2).astype(int), minlength=metrics.BINS)  # noqa: E731
    rate = metrics.equal_error_rate(metrics.Scores(bins(genuine), bins(impostor)))
    assert rate == pytest.approx(1 / 3, abs=2e-3)


def test_fold_accuracy_judges_each_fold_at_the_others_best_threshold() -> None:
    random = np.random.default_rng(3)
    same = random.random(240) < 0.5
    scores = (same * 0.4 + random.normal(size=240) * 0.3).astype(np.float32)
    fold = np.arange(240) % 5
    expected = []
    for k in range(5):
        others, values = fold != k, np.sort(scores)
        cuts = np.concatenate([[values[0] - 1], (values[:-1] + values[1:]) / 2, [values[-1] + 1]])
        right = [((scores[others] >= cut) == same[others]).mean() for cut in cuts]
        best = [cut for cut, r in zip(cuts, right, strict=True) if r == max(right)]
        options = {((scores[fold == k] >= cut) == same[fold == k]).mean() for cut in best}
        expected.append(options)
    folds = accuracy.fold_accuracy(scores, same, fold)
    assert len(folds) == 5
    for value, options in zip(folds, expected, strict=True):
        assert min(abs(value - option) for option in options) < 1e-9


def test_listed_pairs_count_each_pair_once() -> None:
    pairs = draw_pairs(np.repeat(np.arange(12), 4))
    embeddings, _ = _embeddings(12, 4, 16)
    cosine = metrics.cosines(embeddings[pairs.first], embeddings[pairs.second])
    scores = metrics.count_scores(cosine, pairs.same)
    assert scores.genuine_pairs == int(pairs.same.sum())
    assert scores.impostor_pairs == int((~pairs.same).sum())
    assert 0.5 < accuracy.pair_accuracy(embeddings, pairs).mean <= 1


def test_names_of_rates() -> None:
    assert [metrics.far_name(f) for f in (1e-4, 5e-3, 1e-6, 0.25)] == [
        "1e-4",
        "5e-3",
        "1e-6",
        "2.5e-1",
    ]
