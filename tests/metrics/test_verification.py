"""Counted scores against plain loops over all pairs."""

import numpy as np
import pytest

from fr_edge.metrics import accuracy
from fr_edge.metrics import verification as metrics


def _embeddings(people: int, images: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(people, dim))
    labels = np.repeat(np.arange(people), images)
    found = centres[labels] + 0.8 * random.normal(size=(people * images, dim))
    return found.astype(np.float32), labels


def _plain_scores(embeddings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted genuine and impostor cosines, one pair at a time, in double precision."""
    unit = embeddings.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    genuine, impostor = [], []
    for i in range(len(unit)):
        for j in range(i + 1, len(unit)):
            (genuine if labels[i] == labels[j] else impostor).append(float(unit[i] @ unit[j]))
    return np.sort(genuine), np.sort(impostor)


@pytest.mark.parametrize(("people", "images", "dim"), [(2, 2, 3), (7, 5, 16), (31, 3, 9)])
def test_rates_are_those_of_a_plain_loop(people: int, images: int, dim: int) -> None:
    embeddings, labels = _embeddings(people, images, dim)
    scores = metrics.all_pairs(embeddings, labels)
    genuine, impostor = _plain_scores(embeddings, labels)
    assert (scores.genuine_pairs, scores.impostor_pairs) == (len(genuine), len(impostor))
    for far in (0.5, 0.1, 0.03, 1e-3):
        found = metrics.tar_at_far(scores, far)
        if len(impostor) * far < 1:
            assert found is None
            continue
        allowed = int(far * len(impostor))
        threshold = metrics.threshold_at_far(scores, far)
        assert threshold is not None
        assert (impostor >= threshold + 2e-6).sum() <= allowed
        assert threshold <= impostor[len(impostor) - allowed - 1] + 4e-6
        assert found == pytest.approx((genuine >= threshold).mean(), abs=1.5 / len(genuine))


def test_blocks_do_not_change_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, labels = _embeddings(23, 3, 8)
    whole = metrics.all_pairs(embeddings, labels)
    monkeypatch.setattr(metrics, "_BLOCK", 17)
    parts = metrics.all_pairs(embeddings, labels)
    # Block shapes may move a product by its last bit, so a score may change to the next bin.
    for one, other in ((whole.genuine, parts.genuine), (whole.impostor, parts.impostor)):
        assert one.sum() == other.sum()
        assert np.abs(np.cumsum(one) - np.cumsum(other)).max() <= 3


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
    found = accuracy.fold_accuracy(scores, same, fold)
    assert len(found) == 5
    for value, options in zip(found, expected, strict=True):
        assert min(abs(value - option) for option in options) < 1e-9


def test_listed_pairs_count_each_pair_once(people) -> None:
    from fr_edge.metrics.protocols import draw_pairs

    pairs = draw_pairs(people)
    embeddings, _ = _embeddings(12, 4, 16)
    scores = accuracy.listed_pairs(embeddings, pairs)
    assert scores.genuine_pairs == int(pairs.same.sum())
    assert scores.impostor_pairs == int((~pairs.same).sum())
    assert 0.5 < accuracy.listed_pair_accuracy(embeddings, pairs).mean <= 1


def test_names_of_rates() -> None:
    assert [metrics.far_name(f) for f in (1e-4, 5e-3, 1e-6, 0.25)] == [
        "1e-4",
        "5e-3",
        "1e-6",
        "2.5e-1",
    ]
