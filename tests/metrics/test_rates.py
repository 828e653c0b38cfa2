"""Cosines, thresholds and rates against sorting all pairs by hand."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest

from fr_edge.metrics.dimensions import min_dimension_correlation, min_length_ratio
from fr_edge.metrics.person_variance import PeoplePairs
from fr_edge.metrics.rates import compare_embeddings, measure_drift, unseparated_warning
from fr_edge.metrics.smoothed_drop import PairPeople, smoothed_tar_drop
from fr_edge.metrics.verification import ScoreList, normalise


def two_models() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(20), 3)
    exact = rng.standard_normal((20, 16))[labels] + 0.8 * rng.standard_normal((60, 16))
    other = exact + 0.3 * rng.standard_normal((60, 16))
    return exact.astype(np.float32), 5 * other.astype(np.float32), labels


def test_against_sorting_all_pairs() -> None:
    exact, other, labels = two_models()
    loss = compare_embeddings(exact, other, labels, 0.005)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (exact, other)]
    cosine = (unit[0] * unit[1]).sum(axis=1)
    assert loss.cosine.min == pytest.approx(cosine.min(), abs=1e-5)
    assert loss.cosine.mean == pytest.approx(cosine.mean(), abs=1e-5)
    pairs = list(combinations(range(60), 2))
    same = np.array([labels[i] == labels[j] for i, j in pairs])
    old, new = (np.array([x[i] @ x[j] for i, j in pairs]) for x in unit)
    assert loss.genuine_pairs == same.sum() == 60
    assert [rate.far for rate in loss.rates] == [1e-2, 0.005, 1e-3]  # 1710 impostors
    for rate in loss.rates:
        allowed = int(rate.far * (~same).sum())
        for scores, threshold, tar in (
            (old, rate.threshold.reference, rate.reference),
            (new, rate.threshold.engine, rate.engine),
        ):
            impostors = np.sort(scores[~same])[::-1]
            assert threshold == pytest.approx(impostors[allowed], abs=1e-5)
            assert threshold < impostors[allowed - 1]
            assert tar == pytest.approx((scores[same] > impostors[allowed]).mean())
        assert rate.threshold_kept.tar == pytest.approx(
            (new[same] >= rate.threshold.reference).mean()
        )
        assert rate.threshold_kept.far == pytest.approx(
            (new[~same] >= rate.threshold.reference).mean()
        )
    last = loss.at(1e-3)
    assert last is not None
    assert last.drop == pytest.approx(last.reference - last.engine)
    assert loss.at(1e-5) is None


def test_a_model_loses_nothing_against_itself() -> None:
    exact, _, labels = two_models()
    loss = compare_embeddings(exact, exact, labels)
    assert loss.cosine.min == pytest.approx(1.0, abs=1e-6)
    assert all(rate.drop == 0 for rate in loss.rates)
    assert all(rate.threshold.reference == rate.threshold.engine for rate in loss.rates)


def test_people_with_one_image_give_no_rates() -> None:
    exact, other, _ = two_models()
    loss = compare_embeddings(exact, other, np.arange(60))
    assert loss.rates == ()
    assert loss.people == loss.faces == 60


def test_faces_that_the_float_network_does_not_tell_apart() -> None:
    exact, other, labels = two_models()
    assert unseparated_warning(compare_embeddings(exact, other, labels)) == ""
    noise = np.random.default_rng(3).standard_normal(exact.shape).astype(np.float32)
    warning = unseparated_warning(compare_embeddings(noise, noise, labels))
    assert "of 60 genuine pairs" in warning
    assert "one impostor pair in 100" in warning
    few = slice(0, 12)  # 12 genuine pairs of four people: luck
    assert unseparated_warning(compare_embeddings(noise[few], noise[few], labels[few])) == ""
    assert unseparated_warning(compare_embeddings(noise[:3], noise[:3], labels[:3])) == ""


def test_the_smoothed_drop_is_nearer_to_the_truth_than_counting() -> None:
    """250 genuine pairs again and again; INT8 makes all scores noisy and genuine ones lower."""
    rng = np.random.default_rng(4)

    def draw(genuine: int, impostors: int) -> tuple[np.ndarray, ...]:
        old = [rng.normal(0.6, 0.15, genuine), rng.normal(0, 0.08, impostors)]
        new = [
            old[0] - 0.006 + rng.normal(0, 0.02, genuine),
            old[1] + rng.normal(0, 0.02, impostors),
        ]
        return old[0], old[1], new[0], new[1]

    def counted(old: np.ndarray, other: np.ndarray, new: np.ndarray, others: np.ndarray) -> float:
        before, after = np.quantile(other, 0.999), np.quantile(others, 0.999)
        return float((old >= before).mean() - (new >= after).mean())

    truth = counted(*draw(1_000_000, 1_000_000))
    draws = [draw(250, 60_000) for _ in range(60)]
    # 250 people with two faces; impostor pairs are of 500 others.
    person = np.concatenate([np.repeat(np.arange(250), 2), np.arange(250, 750)])
    own = PeoplePairs(
        np.arange(0, 500, 2), np.arange(1, 500, 2), person, np.bincount(person).astype(float)
    )
    first, second = np.triu_indices(500, 1)
    people = PairPeople(own, 250 + first[:60_000], 250 + second[:60_000])
    drops = [
        smoothed_tar_drop(1e-3, ScoreList(a, b), ScoreList(c, d), people) for a, b, c, d in draws
    ]
    smoothed = np.array([(drop.drop, drop.error) for drop in drops])
    simple = np.array([counted(*scores) for scores in draws])
    assert np.sqrt(((smoothed[:, 0] - truth) ** 2).mean()) < 0.5 * np.sqrt(
        ((simple - truth) ** 2).mean()
    )
    assert smoothed[:, 0].mean() == pytest.approx(truth, rel=0.25)
    assert (smoothed[:, 0] + 2 * smoothed[:, 1] > truth).mean() > 0.9


def test_the_smoothed_drop_sees_few_large_moves() -> None:
    """One pair in twenty falls by more than a standard deviation of the scores, so pairs from far above
    the threshold cross it. With the density at the threshold alone 75 of 100 intervals held the truth."""
    pairs, threshold = 300, 0.12 * 2.3263
    person = np.arange(pairs)
    genuine = PeoplePairs(2 * person, 2 * person + 1, person.repeat(2), np.full(pairs, 2.0))

    def draw(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        old = rng.normal(0.6, 0.15, count)
        return old, old - np.where(rng.random(count) < 0.05, 0.2, 0.0)

    old, new = draw(np.random.default_rng(0), 1_000_000)
    truth = float((old >= threshold).mean() - (new >= threshold).mean())
    held = 0
    for seed in range(60):
        rng = np.random.default_rng([seed, 1])
        old, new = draw(rng, pairs)
        impostor, first = rng.normal(0, 0.12, 20_000), rng.integers(0, pairs, 20_000)
        people = PairPeople(genuine, first, (first + rng.integers(1, pairs, 20_000)) % pairs)
        drop = smoothed_tar_drop(1e-2, ScoreList(old, impostor), ScoreList(new, impostor), people)
        assert drop.interval_95 is not None
        held += drop.interval_95[0] <= truth <= drop.interval_95[1]
    assert held >= 55


def test_people_far_above_the_threshold_lose_nothing() -> None:
    """Noisy copies of one face each: no step is wide enough to reach the threshold from there."""
    rng = np.random.default_rng(0)
    labels = np.arange(80).repeat(3)
    exact = rng.standard_normal((80, 64))[labels] + 0.002 * rng.standard_normal((240, 64))
    other = exact + 0.05 * rng.standard_normal((240, 64))
    loss = compare_embeddings(exact.astype(np.float32), other.astype(np.float32), labels)
    assert [rate.smoothed_drop for rate in loss.rates] == pytest.approx([0] * len(loss.rates))


def test_the_same_scores_lose_nothing() -> None:
    exact, _, labels = two_models()
    for rate in compare_embeddings(exact, exact, labels).rates:
        assert (rate.drop, rate.smoothed_drop, rate.smoothed_drop_error) == (0, 0, 0)
        assert rate.smoothed_drop_interval_95 == ((0, 0) if rate.far == 1e-2 else None)


def test_lengths_of_embeddings_are_compared() -> None:
    """No cosine shows them."""
    reference = np.random.default_rng(0).normal(size=(20, 16)).astype(np.float32)
    engine = reference * np.where(np.arange(20) == 3, 0.25, 2.0).astype(np.float32)[:, None]
    assert min_length_ratio(reference, engine) == pytest.approx(0.25)
    assert min_length_ratio(engine, reference) == pytest.approx(0.25)
    drift = measure_drift(reference, 2 * reference, [str(face) for face in range(20)])
    assert (drift.min_length_ratio, drift.min) == (pytest.approx(0.5), pytest.approx(1.0))


def test_the_dimension_that_follows_the_reference_least() -> None:
    random = np.random.default_rng(0)
    spread = random.uniform(0.5, 1.5, 64)
    reference = normalise((random.normal(size=(400, 64)) * spread).astype(np.float32))
    engine = normalise((reference + random.normal(0, 0.02, reference.shape)).astype(np.float32))
    expected = min(np.corrcoef(reference[:, d], engine[:, d])[0, 1] for d in range(64))
    assert min_dimension_correlation(reference, engine) == pytest.approx(expected, abs=1e-5)
    assert min_dimension_correlation(reference, 7 * engine) == pytest.approx(expected, abs=1e-5)

    def edited(edit: Callable[[np.ndarray], object]) -> float | None:
        rows = reference.copy()
        edit(rows)
        return min_dimension_correlation(reference, rows)

    def swap(rows: np.ndarray) -> None:
        rows[:, [3, 7]] = rows[:, [7, 3]]

    swapped = edited(swap)
    assert swapped is not None
    assert abs(swapped) < 0.2
    assert edited(lambda rows: rows.__setitem__((slice(None), 3), 0)) == pytest.approx(0, abs=0.2)
    flipped = edited(lambda rows: rows.__setitem__((slice(None), 3), -rows[:, 3]))
    assert flipped == pytest.approx(-1, abs=1e-3)
    assert edited(lambda rows: rows.__setitem__(slice(None), rows[0])) == 0
    # Few faces, and faces that are all alike, show nothing.
    assert min_dimension_correlation(reference[:15], engine[:15]) is None
    assert min_dimension_correlation(np.tile(reference[:1], (20, 1)), engine[:20]) is None
    # A network that embeds all faces alike, to a mean cosine of .99999 and of .999.
    for spread_of_all, judged in ((0.003, False), (0.03, True)):
        alike = reference[:1] + spread_of_all * reference
        assert (min_dimension_correlation(alike, alike) is not None) == judged
    # A dimension that hardly varies is rounding.
    reference[:, 5] = 1e-3 * random.normal(size=400)
    engine[:, 5] = 1e-3 * random.normal(size=400)
    kept = min_dimension_correlation(reference, engine)
    assert kept is not None
    assert kept > 0.9
