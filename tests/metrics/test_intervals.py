"""Intervals over people: the simulated coverage, the variances against plain loops, the edges."""

import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from fr_edge.metrics.accuracy import Accuracy, accuracy_interval, fold_interval, pair_accuracy
from fr_edge.metrics.changed_decisions import Decisions, change_variance
from fr_edge.metrics.intervals import rate_intervals, tar_intervals
from fr_edge.metrics.person_variance import (
    PairCorrelation,
    PeoplePairs,
    design_effect,
    effective_couples,
    far_error,
    far_variance,
    few_people,
    pair_moments,
    share_design,
)
from fr_edge.metrics.protocols import draw_pairs
from fr_edge.metrics.rates import compare_embeddings
from fr_edge.metrics.score_intervals import score_interval, student_t
from fr_edge.metrics.verification import all_pairs, equal_error_rate, tar_at_far

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from interval_coverage import measure_coverage
from interval_populations import SCENARIOS, draw, find_truth

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


def _people_pairs(faces: list[int]) -> PeoplePairs:
    """All pairs of people with so many photographs each."""
    person = np.repeat(np.arange(len(faces)), faces)
    pairs = [(i, j) for i, j in combinations(range(len(person)), 2) if person[i] == person[j]]
    first, second = np.array(pairs).T
    return PeoplePairs(first, second, person, np.array(faces, float))


def test_intervals_hold_the_truth_95_times_in_100() -> None:
    """benchmarks/interval_coverage.py does it at length. Each bound has 3 Monte-Carlo errors."""
    people, trials, fars = 40, 28, (1e-2, 1e-3)
    held: dict[str, list[bool]] = {}
    for name in ("uneven", "quality"):
        truth = find_truth(SCENARIOS[name], people=4000, faces=4000, lists=False)
        tables = measure_coverage(SCENARIOS[name], people, trials, truth, fars)
        for interval, (low, high, value) in ((key, rows.T) for key, rows in tables.items()):
            held.setdefault(interval, []).extend((low <= value) & (value <= high))
    assert {"TAR at 0.01", "change at 0.001", "kept TAR at 0.01", "EER", "accuracy"} <= set(held)
    assert {"likely loss at 0.001", "stratum at 0.01"} <= set(held)
    for interval, results in held.items():
        if "worst" in interval or "free" in interval or len(results) < 1.8 * trials:
            continue  # chosen for its value, of other thresholds, or seldom given
        slack = 3 * np.sqrt(0.93 * 0.07 / len(results))
        assert 0.93 - slack < np.mean(results) < 0.98 + slack, interval
    independent = []  # what the last population gives if pairs were independent
    for trial in range(trials):
        sample = draw(people, SCENARIOS[name], np.random.default_rng([trial, people, 0]))
        scores = all_pairs(sample.old, sample.labels)
        low, high = score_interval(tar_at_far(scores, 1e-2) or 0.0, 1 / scores.genuine_pairs)
        independent.append(low <= truth[0].tar[truth[0].at_far(1e-2)] <= high)
    assert np.mean(independent) < 0.93 - 3 * np.sqrt(0.93 * 0.07 / trials)


def test_tar_intervals_are_about_as_wide_as_tar_scatters() -> None:
    """An interval that is too wide covers as well."""
    tars, widths = [], []
    for trial in range(40):
        sample = draw(60, SCENARIOS["uneven"], np.random.default_rng(trial))
        old, new, labels = sample.old, sample.new, sample.labels
        scores = all_pairs(old, labels), all_pairs(new, labels)
        interval = tar_intervals(old, new, labels, scores, (1e-3,))[1e-3]
        tars.append((tar_at_far(scores[0], 1e-3), tar_at_far(scores[1], 1e-3)))
        widths.append([np.ptp(interval.reference), np.ptp(interval.delta)])
    before, after = np.array(tars, float).T
    expected = 2 * 1.96 * np.array([before.std(), (after - before).std()])
    assert (np.median(widths, axis=0) < 1.6 * expected).all()
    assert (np.median(widths, axis=0) > 0.7 * expected).all()


def test_moments_of_pairs_by_a_plain_loop() -> None:
    """Every person counts about as much as another; pairs sharing a face and others apart."""
    pairs = _people_pairs([4, 4, 4])
    values = np.random.default_rng(0).normal(size=len(pairs.face_a))
    centred = values - values.mean()
    shared, apart = [], []
    both = list(zip(pairs.face_a, pairs.face_b, strict=True))
    for i, j in combinations(range(len(values)), 2):
        if pairs.person[both[i][0]] == pairs.person[both[j][0]]:
            group = shared if set(both[i]) & set(both[j]) else apart
            group.append(centred[i] * centred[j])
    moments = pair_moments(values, pairs)
    leverage = 1 - 1 / 3  # three people of equal weight
    assert moments.face == pytest.approx(np.mean(shared) / leverage)
    assert moments.person == pytest.approx(np.mean(apart) / leverage)
    assert moments.pair == pytest.approx(np.mean(centred**2))


def test_design_effect_by_a_plain_loop() -> None:
    pairs = _people_pairs([2, 5, 1, 3])
    both = list(zip(pairs.face_a, pairs.face_b, strict=True))
    total = 0.0
    for a in both:
        for b in both:
            if pairs.person[a[0]] != pairs.person[b[0]]:
                continue
            total += 1.0 if a == b else 0.4 if set(a) & set(b) else 0.1
    assert design_effect(pairs, PairCorrelation(0.4, 0.1)) == pytest.approx(total / len(both) ** 2)
    # Each person accepted or refused as a whole: the inverse of the effective number of people.
    whole = design_effect(pairs, PairCorrelation(1.0, 1.0))
    assert whole == pytest.approx((pairs.weights**2).sum())


def test_variance_of_a_far_by_a_plain_loop() -> None:
    """Couples of pairs of people that share a person, every couple once (dyadic clusters)."""
    faces = np.array([2.0, 3.0, 1.0, 4.0])
    a, b = np.array([0, 0, 1, 3, 2]), np.array([1, 1, 3, 2, 0])
    error = far_error(a, b, faces)
    people = list(combinations(range(4), 2))
    total = sum(faces[i] * faces[j] for i, j in people)
    e = {
        (i, j): sum({x, y} == {i, j} for x, y in zip(a, b, strict=True)) / len(a)
        - faces[i] * faces[j] / total
        for i, j in people
    }
    share = faces * (faces.sum() - faces) / total
    own = sum(value**2 for value in e.values())
    expected = -own
    for person in range(4):
        each = sum(value for pair, value in e.items() if person in pair)
        assert error.person[person] == pytest.approx(each)
        expected += each**2 / (1 - share[person])
    # Never less than if every two people's pairs were independent of all others.
    assert far_variance([(1.0, error)], faces) == pytest.approx(max(own, expected))
    assert far_variance([(2.0, error)], faces) == pytest.approx(4 * max(own, expected))
    assert far_variance([(1.0, error), (-1.0, error)], faces) == 0


def test_a_score_interval_is_wilsons() -> None:
    """19 of 20 independent trials: the interval of R's prop.test(19, 20, correct = FALSE)."""
    assert score_interval(0.95, 1 / 20) == pytest.approx((0.763869, 0.991119), abs=1e-5)
    low, high = score_interval(1.0, 1 / 30)
    assert (low, high) == (pytest.approx(1 / (1 + 1.959964**2 / 30)), 1.0)
    assert score_interval(0.0, 1 / 30) == (0.0, pytest.approx(1 - low))
    wide = score_interval(0.95, 1 / 20, logit_variance=1.0)
    assert wide[0] < 0.75
    assert wide[1] > 0.992


def test_students_t() -> None:
    """Against tables of Student's distribution."""
    table = {1: 12.7062, 2: 4.3027, 4: 2.7764, 9: 2.2622, 11: 2.2010, 15: 2.1314, 30: 2.0423}
    for freedom, quantile in table.items():
        assert student_t(freedom) == pytest.approx(quantile, abs=1.1e-3)


def test_equal_networks_have_no_change() -> None:
    old, _, labels = _draw(40, 3, seed=2)
    scores = all_pairs(old, labels)
    intervals = tar_intervals(old, old, labels, (scores, scores), (1e-1, 1e-2, 1e-6))
    assert set(intervals) == {1e-1, 1e-2}  # 1e-6 is not resolved by 7,020 pairs
    for interval in intervals.values():
        assert interval.delta == (0, 0)
        assert interval.reference[0] < interval.reference[1]


def test_networks_that_decide_alike_can_differ_on_other_people() -> None:
    old, _, labels = _draw(40, 3, seed=2)
    noise = np.random.default_rng(0).normal(size=old.shape).astype(np.float32)
    new = old + 1e-5 * noise
    scores = all_pairs(old, labels), all_pairs(new, labels)
    low, high = tar_intervals(old, new, labels, scores, (1e-1,))[1e-1].delta
    assert -1e-3 < low < 0 < high < 1e-3


def test_labels_need_not_be_sorted_or_counted() -> None:
    old, new, labels = _draw(40, 3, seed=4)
    scores = all_pairs(old, labels), all_pairs(new, labels)
    order = np.random.default_rng(0).permutation(len(labels))
    a = tar_intervals(old, new, labels, scores, (1e-2,))[1e-2]
    b = tar_intervals(old[order], new[order], 7 * labels[order] - 3, scores, (1e-2,))[1e-2]
    assert a.delta == pytest.approx(b.delta, abs=1e-9)
    assert a.engine == pytest.approx(b.engine, abs=1e-9)


def test_no_errors_leave_a_lower_end() -> None:
    """Nobody was refused: that is little proof with few people, and more with many."""
    ends = []
    for people in (20, 200):
        labels = np.repeat(np.arange(people), 4)
        embeddings = np.eye(people, dtype=np.float32)[labels]
        embeddings += 0.01 * np.random.default_rng(0).random(embeddings.shape, np.float32)
        scores = all_pairs(embeddings, labels)
        assert tar_at_far(scores, 1e-2) == 1.0
        rates = rate_intervals(embeddings, labels, scores, (1e-2,))
        assert rates.tar[1e-2][1] == 1.0
        assert rates.eer is not None
        assert rates.eer[0] == 0.0
        assert rates.eer[1] > 0
        ends.append((rates.tar[1e-2][0], rates.eer[1]))
    assert ends[0][0] < ends[1][0] < 1
    assert ends[0][1] > ends[1][1]


def test_the_eer_is_inside_its_interval() -> None:
    old, _, labels = _draw(60, 5, seed=1)
    scores = all_pairs(old, labels)
    ends = rate_intervals(old, labels, scores, (1e-2,)).eer
    assert ends is not None
    assert ends[0] < equal_error_rate(scores) < ends[1]


def test_two_lookalikes_do_not_make_a_small_eer_a_large_one() -> None:
    """All false accepts at the EER's threshold are of one couple, who tell nothing of the others."""
    random = np.random.default_rng(2)
    labels = np.repeat(np.arange(100), 4)
    centres = random.normal(size=(100, 128))
    centres[1] = centres[0] + 0.3 * centres[1]
    embeddings = (centres[labels] + 0.5 * random.normal(size=(400, 128))).astype(np.float32)
    scores = all_pairs(embeddings, labels)
    eer = equal_error_rate(scores)
    assert 0 < eer < 0.001
    low, high = rate_intervals(embeddings, labels, scores, ()).eer or (1.0, 1.0)
    assert low < eer < high < 0.05


def test_accuracy_of_people_and_of_folds() -> None:
    old, _, labels = _draw(100, 5, seed=1)
    pairs = draw_pairs(labels)
    accuracy = pair_accuracy(old, pairs)
    by_people, by_folds = accuracy_interval(old, pairs, labels), fold_interval(accuracy)
    assert by_people is not None
    assert by_folds is not None
    for low, high in (by_people, by_folds):
        assert 0.5 < low < accuracy.mean < high < 1
    assert fold_interval(Accuracy(0.99, 0.01, 2)) is None
    low, high = fold_interval(Accuracy(1.0, 0.0, 10)) or (0, 0)
    assert 0.999 < low < high == 1


def test_few_people_or_impostors_give_no_interval() -> None:
    old, new, labels = _draw(9, 4, seed=3)
    scores = all_pairs(old, labels), all_pairs(new, labels)
    assert tar_intervals(old, new, labels, scores, (1e-1,)) == {}
    assert rate_intervals(old, labels, scores[0], (1e-1,)).eer is None
    assert accuracy_interval(old, draw_pairs(labels), labels) is None
    assert "9 people have two faces, 10 needed" in few_people(labels)
    assert few_people(np.repeat(np.arange(20), 2)) == ""
    old, new, labels = _draw(30, 2, seed=3)  # 1,740 impostor pairs: 1.7 at 1e-3
    scores = all_pairs(old, labels), all_pairs(new, labels)
    assert set(tar_intervals(old, new, labels, scores, (1e-2, 1e-3))) == {1e-2}


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
    intervals = tar_intervals(old, new, labels, scores, (1e-1, 1e-2))
    assert set(intervals) == {1e-1, 1e-2}
    for interval in intervals.values():
        assert 0 <= interval.reference[0] <= interval.reference[1] <= 1
        assert -1 <= interval.delta[0] <= interval.delta[1] <= 1


def test_a_change_is_as_uncertain_as_people_differ() -> None:
    """Against plain sums: the jackknife over people, and the freedom of people weighted by pairs."""
    random = np.random.default_rng(0)
    pairs = _people_pairs([9, *[3] * 12])
    before = (random.random(len(pairs.face_a)) < 0.9).astype(float)
    after = (random.random(len(before)) < 0.8).astype(float)
    scores = random.random(len(before)), random.random(len(before))
    spread = change_variance(Decisions(before, after), [], scores, (0.05, 0.05), pairs)
    owner = pairs.person[pairs.face_a]
    change = after - before - (after - before).mean()
    weights = [float((owner == person).mean()) for person in range(13)]
    jackknife = sum(
        (change[owner == person].sum() / len(change) / (1 - weights[person])) ** 2
        for person in range(13)
    )
    assert jackknife < spread.variance < 1.5 * jackknife
    assert spread.freedom == int(2 * sum(w**2 for w in weights) ** 2 / sum(w**4 for w in weights))
    even = _people_pairs([3] * 12)
    same = np.ones(36)
    spread = change_variance(Decisions(same, same), [], (same, 2 * same), (0.05, 0.05), even)
    assert spread.freedom in (11, 12)


def test_folds_that_scatter_widen_the_accuracy() -> None:
    """Few people, some with many photographs: the other folds' threshold misses the best one."""
    sample = draw(30, SCENARIOS["celebrities"], np.random.default_rng(0))
    pairs = draw_pairs(sample.labels)
    accuracy = pair_accuracy(sample.old, pairs)
    ends = accuracy_interval(sample.old, pairs, sample.labels)
    assert ends is not None
    error = accuracy.std / np.sqrt(accuracy.folds - 1)
    assert accuracy.mean - ends[0] > 2 * 1.96 * error  # by people alone 1.1 times


def test_few_people_with_most_pairs_widen_the_likely_loss() -> None:
    """One person in ten has 50 photographs: Student's t has few degrees of freedom."""
    sample = draw(30, SCENARIOS["celebrities"], np.random.default_rng(0))
    rate = compare_embeddings(sample.old, sample.new, sample.labels).rates[0]
    assert rate.smoothed_drop_interval_95 is not None
    assert rate.smoothed_drop_error is not None
    half = np.ptp(rate.smoothed_drop_interval_95) / 2
    assert half > 3.5 * rate.smoothed_drop_error  # 2.6 times with the normal quantile


def test_people_who_differ_more_than_their_pairs_show_widen_a_share() -> None:
    """Against plain sums: the jackknife over people, but each of them at most wholly accepted."""
    pairs = _people_pairs([9, *[3] * 12])
    owner = pairs.person[pairs.face_a]
    weights = np.bincount(owner) / len(owner)
    whole = float((weights**2).sum())
    # The person with half of the pairs has all others' refusals: one such person says little.
    accepted = np.where(owner == 0, 1.0, 0.0)
    accepted[np.flatnonzero(owner)[::3]] = 1.0
    often_refused = (np.arange(len(owner)) % 7 > 0).astype(float)
    share = accepted.mean()
    sums = np.bincount(owner, accepted - share) / len(owner)
    jackknife = ((sums / (1 - weights)) ** 2).sum() / (share * (1 - share))
    assert share_design(accepted, often_refused, pairs) == pytest.approx(min(jackknife, whole))


def test_equal_impostors_widen_a_tar() -> None:
    """40 impostor pairs tie where a FAR allows 30: none is accepted, and one counts as one."""
    people, alike, far = 30, 5, 30 / 1740
    labels = np.repeat(np.arange(people), 2)
    embeddings = np.zeros((2 * people, 1 + 3 * people), np.float32)
    for face, person in enumerate(labels):
        own = 1.0 if person < 20 else 0.3  # squared share that both faces have in common
        common = 0.52 if person < alike else 0.0
        embeddings[face, 0] = np.sqrt(common)
        embeddings[face, 1 + person] = np.sqrt(max(0.0, own - common))
        embeddings[face, 1 + people + face] = np.sqrt(1 - own)
    scores = all_pairs(embeddings, labels)
    low, high = rate_intervals(embeddings, labels, scores, (far,)).tar[far]
    all_accepted = np.log((1 - 0.5 / people) / (0.5 / people))
    slope = (all_accepted - np.log(2)) / np.log(4)  # of the logit, 2/3 accepted at the FAR
    t = student_t(people)  # all people have as much of both variances
    expected = score_interval(2 / 3, 1 / people, (slope * t / 1.959964) ** 2, t)
    assert (low, high) == pytest.approx(expected)


def test_few_people_with_most_photographs_show_no_low_far() -> None:
    """Couples of people weigh as their pairs; a FAR of less than .015 of a couple is not shown."""
    assert effective_couples(np.full(30, 4.0)) == pytest.approx(30 * 29 / 2)
    faces = np.array([50.0, 50.0, *[2.0] * 8])
    couples = [a * b for a, b in combinations(faces, 2)]
    kish = sum(couples) ** 2 / sum(couple**2 for couple in couples)
    assert effective_couples(faces) == pytest.approx(kish)
    assert effective_couples(np.array([5.0])) == 0
    random = np.random.default_rng(1)
    labels = np.repeat(np.arange(40), [40] * 4 + [2] * 36)
    embeddings = random.normal(size=(40, DIM))[labels]
    embeddings = (embeddings + random.normal(size=embeddings.shape)).astype(np.float32)
    far = 0.012 / effective_couples(np.bincount(labels).astype(float))
    scores = all_pairs(embeddings, labels)
    assert set(rate_intervals(embeddings, labels, scores, (far, 1.5 * far)).tar) == {1.5 * far}
    both = scores, scores
    intervals = tar_intervals(embeddings, embeddings, labels, both, (far, 1.5 * far))
    assert set(intervals) == {1.5 * far}


def test_few_impostors_that_stay_the_same_do_not_fix_a_threshold() -> None:
    """Where both networks accept the same few impostor pairs, scores have moved nevertheless."""
    for seed in range(4):
        old, _, labels = _draw(60, 8, seed)
        new = old + 0.01 * np.random.default_rng(seed).normal(size=old.shape).astype(np.float32)
        scores = all_pairs(old, labels), all_pairs(new, labels)
        far = 6.5 / scores[0].impostor_pairs
        delta = tar_intervals(old, new, labels, scores, (far,))[far].delta
        assert np.ptp(delta) > 0.013  # .0055 to .0101 by these pairs alone, but for one seed
        same = tar_intervals(old, old, labels, (scores[0], scores[0]), (far,))[far].delta
        assert same == (0.0, 0.0)
