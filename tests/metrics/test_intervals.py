"""Intervals by people: against a plain resampling loop, and against the truth."""

import numpy as np
import pytest

from fr_edge.metrics import intervals as bootstrap
from fr_edge.metrics.intervals import tar_intervals
from fr_edge.metrics.verification import all_pairs, tar_at_far

DIM = 24


def _draw(people: int, images: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings by two networks and labels; people differ in how alike their faces are."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(people), images)
    spread = random.gamma(6.0, 0.1, people)[labels, None]
    old = random.normal(size=(people, DIM))[labels] + spread * random.normal(
        size=(len(labels), DIM)
    )
    new = old + 0.3 * random.normal(size=old.shape)
    return old.astype(np.float32), new.astype(np.float32), labels


def _plain_tar(
    embeddings: np.ndarray, labels: np.ndarray, drawn: np.ndarray, soft: float, far: float
) -> float:
    """TAR when person i is there `drawn[i]` times: all pairs with their weights, in a loop."""
    unit = embeddings.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    weight = 1 + soft * (drawn - 1)
    genuine, impostor = [], []
    for i in range(len(unit)):
        for j in range(i + 1, len(unit)):
            a, b = labels[i], labels[j]
            if a == b:
                genuine.append((unit[i] @ unit[j], drawn[a]))
            else:
                impostor.append((unit[i] @ unit[j], weight[a] * weight[b]))
    allowed = far * sum(weight for _, weight in impostor)
    threshold, taken = 2.0, 0
    for score, pair in sorted(impostor, reverse=True):
        threshold = score
        if taken + pair > allowed:
            break
        taken += pair
    return sum(w for s, w in genuine if s > threshold) / sum(w for _, w in genuine)


def test_each_draw_is_judged_as_a_plain_loop_would(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, labels = _draw(14, 3, seed=5)
    order = np.random.default_rng(0).permutation(len(labels))  # labels need not be sorted
    old, new, labels = old[order], new[order], labels[order]
    calls = []
    plain = bootstrap._tar

    def spy(side: object, drawn: np.ndarray, *rest: object) -> float:
        tar = plain(side, drawn, *rest)  # type: ignore[arg-type]
        calls.append((drawn, *rest, tar))
        return tar

    monkeypatch.setattr(bootstrap, "_tar", spy)
    scores = all_pairs(old, labels), all_pairs(new, labels)
    tar_intervals(old, new, labels, scores, (0.1, 0.02), replicates=6)
    assert len(calls) == 24
    for number, (drawn, _, far, soft, _, tar) in enumerate(calls):
        embeddings = new if number % 4 > 1 else old
        assert tar == pytest.approx(_plain_tar(embeddings, labels, drawn, soft, far), abs=1e-9)


def test_softening_follows_what_decides() -> None:
    def softness(one: list[int], other: list[int]) -> float:
        count = len(one)
        side = bootstrap._PersonScores(
            np.zeros(0),
            np.zeros(41, np.int64),
            np.linspace(1, 0, count, dtype=np.float32),
            np.array(one),
            np.array(other),
            np.ones(count),
        )
        return bootstrap._softness(side, count, 40)

    # Single pairs of people who have nothing else in common: sqrt(sqrt(2) - 1).
    assert softness(list(range(0, 40, 2)), list(range(1, 40, 2))) == pytest.approx(0.6436, abs=1e-3)
    # One person whom everybody is taken for: the draw of people says it all.
    assert softness([0] * 39, list(range(1, 40))) > 0.95


def test_thinning_millions_of_impostors_changes_next_to_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new, labels = _draw(150, 4, seed=1)
    scores = all_pairs(old, labels), all_pairs(new, labels)
    whole = tar_intervals(old, new, labels, scores, (1e-2,), replicates=60)[1e-2]
    monkeypatch.setattr(bootstrap, "_DENSE", 512)
    thin = tar_intervals(old, new, labels, scores, (1e-2,), replicates=60)[1e-2]
    assert np.abs(np.subtract(whole.delta, thin.delta)).max() < 5e-3


def test_the_interval_holds_the_truth_about_95_times_in_100() -> None:
    """30 trials only: nearly all must hold it. benchmarks/bootstrap_coverage.py does it at length."""
    old, new, labels = _draw(700, 4, seed=99)
    before, after = (
        tar_at_far(all_pairs(old, labels), 1e-2),
        tar_at_far(all_pairs(new, labels), 1e-2),
    )
    assert before is not None
    assert after is not None
    inside = 0
    for trial in range(30):
        old, new, labels = _draw(60, 4, seed=trial)
        scores = all_pairs(old, labels), all_pairs(new, labels)
        low, high = tar_intervals(old, new, labels, scores, (1e-2,), 80, trial)[1e-2].delta
        inside += low <= after - before <= high
    assert 25 <= inside <= 30


def test_equal_networks_have_no_change() -> None:
    old, _, labels = _draw(40, 3, seed=2)
    scores = all_pairs(old, labels)
    intervals = tar_intervals(old, old, labels, (scores, scores), (1e-1, 1e-2, 1e-6), replicates=50)
    assert set(intervals) == {1e-1, 1e-2}  # 1e-6 is not resolved by 7,020 pairs
    for interval in intervals.values():
        assert interval.delta == (0, 0)
        assert interval.reference[0] < interval.reference[1]


def test_one_person_with_two_faces_is_no_sample() -> None:
    old, new, labels = _draw(30, 2, seed=3)
    labels = np.where(labels == 0, 0, np.arange(len(labels)))
    scores = all_pairs(old, labels), all_pairs(new, labels)
    assert tar_intervals(old, new, labels, scores, (1e-2,)) == {}


@pytest.mark.parametrize("noise", [1e-3, 1e-4, 1e-5, 0.0])
def test_embeddings_that_are_nearly_all_equal(noise: float) -> None:
    """Cosines of .9999 and above share the highest bins, and the threshold may round to 1."""
    random = np.random.default_rng(3)
    labels = np.repeat(np.arange(40), 4)
    base = random.normal(size=DIM)
    old, new = (
        (base + noise * random.normal(size=(len(labels), DIM))).astype(np.float32) for _ in range(2)
    )
    scores = all_pairs(old, labels), all_pairs(new, labels)
    intervals = tar_intervals(old, new, labels, scores, (1e-1, 1e-2), replicates=20)
    assert set(intervals) == {1e-1, 1e-2}
    for interval in intervals.values():
        assert 0 <= interval.reference[0] <= interval.reference[1] <= 1


@pytest.mark.parametrize("noise", [0.5, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("far", [0.3, 0.1, 1e-2, 1e-3])
def test_the_highest_impostors_lie_above_the_floor(noise: float, far: float) -> None:
    random = np.random.default_rng(6)
    labels = np.repeat(np.arange(60), 2)
    embeddings = random.normal(size=DIM) + noise * random.normal(size=(len(labels), DIM))
    scores = all_pairs(embeddings.astype(np.float32), labels)
    unit = bootstrap.normalise(embeddings.astype(np.float32))
    cosine = unit @ unit.T
    impostors = cosine[labels[:, None] < labels[None, :]]
    floor = bootstrap._impostor_floor(scores, far)
    assert (impostors >= np.float32(floor)).sum() > far * len(impostors)
