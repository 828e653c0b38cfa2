"""How often does a 95 % interval hold the truth, on people who differ?

Every interval that verify, evaluate, compare and calibrate show is found on drawn people
(`interval_populations.py`). The truth is that of 60,000 people from the same generator; the accuracy's
is the mean over the trials, for folds depend on how many people there are. Rates at a kept threshold
and of strata are those of the population at the threshold in question.

`OMP_NUM_THREADS=1 python benchmarks/interval_coverage.py TRIALS PEOPLE,... SCENARIO,... [SEED] [KIND]`

KIND is "people" (the default; a negative number of PEOPLE is a pair list's genuine pairs per fold),
"rates" or "likely" (of these TAR and EER, and the likely loss alone, in a fraction of the time), "gallery" (the
second network's faces against those that the first one has enrolled), "student" (the same with a second
network that is far from the first), "templates" or "compare".
"""

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from interval_populations import (
    FRESH,
    SCENARIOS,
    Clusters,
    Curves,
    Sample,
    Scenario,
    bin_of,
    draw,
    find_truth,
)

from fr_edge.metrics.accuracy import accuracy_interval, fold_interval, fold_intervals, pair_accuracy
from fr_edge.metrics.intervals import rate_intervals, tar_intervals
from fr_edge.metrics.protocols import draw_pairs
from fr_edge.metrics.rates import RateChange, compare_embeddings, compare_rates
from fr_edge.metrics.score_intervals import score_interval
from fr_edge.metrics.strata import compare_strata
from fr_edge.metrics.template_intervals import template_intervals
from fr_edge.metrics.verification import ScoreList, all_pairs, cosines, normalise, tar_at_far

FARS = (1e-2, 1e-3, 1e-4, 1e-5)
LISTED_PEOPLE = 1500  # of a pair list without names, as many as LFW has of two photographs

Truth = tuple[Curves, Curves]
Row = tuple[str, tuple[float, float], float]  # the interval's name, the interval, the truth


def measure_coverage(
    scenario: Scenario | Clusters,
    people: int,
    trials: int,
    truth: Truth,
    fars: tuple[float, ...] = FARS,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Interval's name -> low, high and truth of each trial that has one, `(n, 3)`."""
    rows: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    means = []
    for trial in range(trials):
        sample = draw(people, scenario, np.random.default_rng([trial, people, seed]))
        for name, interval, value in people_rows(sample, truth, fars):
            rows[name].append((*interval, value))
        pairs = draw_pairs(sample.labels)
        means.append(pair_accuracy(sample.old, pairs).mean)
        if ends := accuracy_interval(sample.old, pairs, sample.labels):
            rows["accuracy"].append((*ends, 0.0))
    return _tables(rows, "accuracy", means)


def people_rows(sample: Sample, truth: Truth, fars: tuple[float, ...]) -> Iterator[Row]:
    """Intervals over people with names, but for the accuracy's."""
    old, new, labels = sample.old, sample.new, sample.labels
    before, after = truth
    scores = all_pairs(old, labels), all_pairs(new, labels)
    intervals = tar_intervals(old, new, labels, scores, fars)
    for rate in compare_rates(*scores, fars, intervals):
        if rate.interval_95 is None:
            continue
        ends, far = rate.interval_95, f" at {rate.far:g}"
        places = _places(truth, rate.far)
        drop = float(before.tar[places[0]] - after.tar[places[1]])
        yield "TAR" + far, ends.reference, float(before.tar[places[0]])
        yield "change" + far, ends.delta, -drop
        kept = bin_of(rate.threshold.reference or 0.0)
        if ends.kept_tar:
            yield "kept TAR" + far, ends.kept_tar, float(after.tar[kept])
        if ends.kept_far:
            yield "kept FAR" + far, ends.kept_far, float(after.far[kept])
        if not rate.low_confidence:
            yield from _strata_rows(sample, truth, rate)
    for rate in compare_embeddings(old, new, labels).rates:
        if rate.far in fars and (likely := rate.smoothed_drop_interval_95):
            places = _places(truth, rate.far)
            drop = float(before.tar[places[0]] - after.tar[places[1]])
            yield f"likely loss at {rate.far:g}", likely, drop
    if eer := rate_intervals(old, labels, scores[0], fars).eer:
        yield "EER", eer, before.eer


def measure_alone(
    scenario: Scenario | Clusters, people: int, trials: int, truth: Truth, kind: str, seed: int = 0
) -> dict[str, np.ndarray]:
    """As `measure_coverage`, on the same people, of TAR and EER ("rates") or of the likely loss."""
    rows: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    before, after = truth
    for trial in range(trials):
        sample = draw(people, scenario, np.random.default_rng([trial, people, seed]))
        if kind == "rates":
            scores = all_pairs(sample.old, sample.labels)
            rates = rate_intervals(sample.old, sample.labels, scores, FARS)
            for far, ends in rates.tar.items():
                rows[f"TAR at {far:g}"].append((*ends, float(before.tar[before.at_far(far)])))
            if rates.eer:
                rows["EER"].append((*rates.eer, before.eer))
            continue
        for rate in compare_embeddings(sample.old, sample.new, sample.labels).rates:
            if likely := rate.smoothed_drop_interval_95:
                places = _places(truth, rate.far)
                drop = float(before.tar[places[0]] - after.tar[places[1]])
                rows[f"likely loss at {rate.far:g}"].append((*likely, drop))
    return _tables(rows, "", [])


def measure_gallery(
    scenario: Scenario | Clusters, people: int, trials: int, truth: Truth, seed: int = 0
) -> dict[str, np.ndarray]:
    """As `measure_coverage`, of the second network's faces against those that the first one has enrolled."""
    rows: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    before, after = truth
    for trial in range(trials):
        sample = draw(people, scenario, np.random.default_rng([trial, people, seed, 4]))
        old, new, labels = sample.old, sample.new, sample.labels
        scores = all_pairs(old, labels), all_pairs(old, labels, new)
        intervals = tar_intervals(old, new, labels, scores, FARS, mixed=True)
        for rate in compare_rates(*scores, FARS, intervals):
            if rate.interval_95 is None:
                continue
            ends, far = rate.interval_95, f" at {rate.far:g}"
            places, kept = _places(truth, rate.far), bin_of(rate.threshold.reference or 0.0)
            rows["mixed TAR" + far].append((*ends.engine, float(after.tar[places[1]])))
            change = float(after.tar[places[1]] - before.tar[places[0]])
            rows["mixed change" + far].append((*ends.delta, change))
            if ends.kept_tar:
                rows["mixed kept TAR" + far].append((*ends.kept_tar, float(after.tar[kept])))
            if ends.kept_far:
                rows["mixed kept FAR" + far].append((*ends.kept_far, float(after.far[kept])))
    return _tables(rows, "", [])


def far_from_the_first(scenario: Scenario | Clusters) -> Scenario | Clusters:
    """The same people with a second network like a student's: three times as far from the first."""
    if isinstance(scenario, Clusters):
        return replace(scenario, step=3 * scenario.step)
    return replace(scenario, noise=3 * scenario.noise, drift=3 * scenario.drift)


def measure_lists(
    scenario: Scenario | Clusters, per_fold: int, trials: int, truth: Truth, seed: int = 0
) -> dict[str, np.ndarray]:
    """As `measure_coverage`, of pair lists in ten folds that do not name people."""
    rows: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    means = []
    people = LISTED_PEOPLE * per_fold // 300
    for trial in range(trials):
        sample = draw(people, scenario, np.random.default_rng([trial, per_fold, seed, 1]))
        pairs = draw_pairs(sample.labels, per_fold=per_fold)
        accuracy = pair_accuracy(sample.old, pairs)
        means.append(accuracy.mean)
        if ends := fold_interval(accuracy):
            rows["fold accuracy"].append((*ends, 0.0))
        both = [cosines(e[pairs.first], e[pairs.second]) for e in (sample.old, sample.new)]
        intervals = fold_intervals(both[0], both[1], pairs.same, pairs.fold, FARS)
        for far, interval in intervals.items():
            tars = [curves.listed[0][curves.at_far(far, True)] for curves in truth]
            rows[f"fold TAR at {far:g}"].append((*interval.reference, tars[0]))
            rows[f"fold change at {far:g}"].append((*interval.delta, tars[1] - tars[0]))
    return _tables(rows, "fold accuracy", means)


def measure_templates(
    scenario: Scenario | Clusters, people: int, trials: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """As `measure_coverage`, of the TAR of IJB's kind of templates: several faces each, pairs that do
    not name people. "pairs" is the interval as if each template counted for half a genuine pair."""
    rows: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    random = np.random.default_rng([777, seed])
    scores, same, *_ = _templates(draw(20_000, scenario, random), random, 4_000_000)
    everyone = ScoreList(scores[same], scores[~same])
    truth = {far: tar_at_far(everyone, far) or 0.0 for far in FARS}
    for trial in range(trials):
        random = np.random.default_rng([trial, people, seed, 2])
        scores, same, first, second = _templates(
            draw(people, scenario, random), random, 2000 * people
        )
        listed = ScoreList(scores[same], scores[~same])
        number = 1 + int(max(first.max(), second.max()))
        for far, ends in template_intervals(scores, same, first, second, FARS).items():
            rows[f"template TAR at {far:g}"].append((*ends, truth[far]))
            pairs = 2 / min(listed.genuine_pairs, number)
            by_pairs = score_interval(tar_at_far(listed, far) or 0.0, pairs)
            rows[f"pairs TAR at {far:g}"].append((*by_pairs, truth[far]))
    return _tables(rows, "", [])


def _templates(
    sample: Sample, random: np.random.Generator, impostors: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cosines of all genuine and of drawn impostor pairs of templates, whether genuine, and both."""
    labels = sample.labels
    begins = (np.diff(labels, prepend=-1) > 0) | (random.random(len(labels)) < 0.6)
    starts = np.flatnonzero(begins)
    unit = normalise(np.add.reduceat(sample.old, starts, axis=0))
    person = labels[starts]
    later = np.searchsorted(person, person, side="right") - np.arange(len(person)) - 1
    first = np.repeat(np.arange(len(person)), later)
    second = np.arange(len(first)) - np.repeat(np.cumsum(later) - later, later) + first + 1
    a, b = random.integers(0, len(person), (2, impostors))
    apart = person[a] != person[b]
    same = np.arange(len(first) + int(apart.sum())) < len(first)
    first, second = np.concatenate([first, a[apart]]), np.concatenate([second, b[apart]])
    scores = np.empty(len(first), np.float32)
    for part in np.array_split(np.arange(len(first)), 1 + len(first) // 100_000):
        scores[part] = np.einsum("nd,nd->n", unit[first[part]], unit[second[part]])
    return scores, same, first, second


def measure_comparison(
    scenario: Scenario | Clusters, people: int, trials: int, seed: int = 0
) -> dict[str, float]:
    """How often `compare` calls a network different from itself, by figure: of two reports on other
    people ("others"), and of two networks that differ by noise alone on the same people ("same")."""
    different: dict[str, list[bool]] = defaultdict(list)
    for trial in range(trials):
        random = np.random.default_rng([trial, people, seed, 3])
        a, b = (draw(people, scenario, random) for _ in range(2))
        noise = 0.05 * random.normal(size=(2, *a.old.shape)) / np.sqrt(a.old.shape[1])
        twins = [replace(a, old=normalise((a.old + part).astype(np.float32))) for part in noise]
        for kind, samples in (("others", (a, b)), ("same", twins)):
            figures = [_figures(sample) for sample in samples]
            for name in figures[0].keys() & figures[1].keys():
                (low, high), (other_low, other_high) = (side[name] for side in figures)
                different[f"{name}, {kind}"].append(max(low, other_low) > min(high, other_high))
    return {
        f"{name} ({len(values)} trials)": float(np.mean(values))
        for name, values in sorted(different.items())
    }


def _figures(sample: Sample) -> dict[str, tuple[float, float]]:
    scores = all_pairs(sample.old, sample.labels)
    rates = rate_intervals(sample.old, sample.labels, scores, FARS)
    ends = {f"TAR at {far:g}": interval for far, interval in rates.tar.items()}
    pairs = draw_pairs(sample.labels)
    mean = accuracy_interval(sample.old, pairs, sample.labels)
    named = {"EER": rates.eer, "accuracy": mean}
    return ends | {name: interval for name, interval in named.items() if interval}


def coverage(table: np.ndarray) -> float:
    """The share of intervals that hold the truth."""
    low, high, truth = table.T
    return float(((low <= truth) & (truth <= high)).mean())


def main(trials: int, numbers: list[int], names: list[str], seed: int, kind: str) -> None:
    for name in names:
        scenario = SCENARIOS[name]
        if kind == "student":
            scenario = far_from_the_first(scenario)
        mixed = kind in ("gallery", "student")
        truth = None
        if kind not in ("templates", "compare"):
            truth = find_truth(scenario, lists=not mixed, mixed=mixed)
        for number in numbers:
            start = time.perf_counter()
            title = f"{number} people" if number > 0 else f"lists of 10 x {2 * -number} pairs"
            if kind == "compare":
                shares = measure_comparison(scenario, number, trials, seed)
                print(f"{name}, {title} ({time.perf_counter() - start:.0f} s): called different")
                for figure, share in shares.items():
                    print(f"  {figure:40} {100 * share:5.1f} %", flush=True)
                continue
            if truth is None:
                tables = measure_templates(scenario, number, trials, seed)
            elif mixed:
                tables = measure_gallery(scenario, number, trials, truth, seed)
            elif kind != "people":
                tables = measure_alone(scenario, number, trials, truth, kind, seed)
            else:
                measure = measure_coverage if number > 0 else measure_lists
                tables = measure(scenario, abs(number), trials, truth, seed=seed)
            print(f"{name}, {title} ({time.perf_counter() - start:.0f} s)")
            for interval, table in tables.items():
                print(_line(interval, table, trials), flush=True)


def _line(interval: str, table: np.ndarray, trials: int) -> str:
    share, (low, high, truth) = coverage(table), table.T
    error = 100 * np.sqrt(share * (1 - share) / len(table))
    return (
        f"  {interval:22} held {100 * share:5.1f} +- {error:.1f} %, above {100 * (low > truth).mean():.1f},"
        f" below {100 * (high < truth).mean():.1f}, median width {np.median(high - low):.4f},"
        f" given {len(table)} of {trials} times"
    )


def _places(truth: Truth, far: float) -> tuple[int, int]:
    return truth[0].at_far(far), truth[1].at_far(far)


def _strata_rows(sample: Sample, truth: Truth, rate: RateChange) -> Iterator[Row]:
    """At the thresholds shown, which are the same for a device; and at the population's."""
    strata = compare_strata(sample.old, sample.new, sample.labels, {}, rate, sample.groups)
    shown = bin_of(rate.threshold.reference or 0.0), bin_of(rate.threshold.engine or 0.0)
    kinds = [f"stratum at {rate.far:g}", f"worst stratum at {rate.far:g}"]
    for stratum in strata:
        if ends := stratum.drop_interval_95:
            before, after = (curves.strata[stratum.name] for curves in truth)
            drop = float(before[shown[0]] - after[shown[1]])
            for kind in kinds:
                yield kind, ends, drop
            del kinds[1:]
            places = _places(truth, rate.far)
            free = float(before[places[0]] - after[places[1]])
            yield f"stratum, free, {rate.far:g}", ends, free


def _tables(rows: dict, mean_of: str, means: list[float]) -> dict[str, np.ndarray]:
    tables = {name: np.array(values) for name, values in sorted(rows.items())}
    if mean_of in tables:
        tables[mean_of][:, 2] = np.mean(means)
    return tables


if __name__ == "__main__":
    given = dict(enumerate(sys.argv[1:]))
    main(
        int(given.get(0, 200)),
        [int(number) for number in given.get(1, "30,60,200").split(",")],
        given.get(2, ",".join(FRESH)).split(","),
        int(given.get(3, 0)),
        given.get(4, "people"),
    )
