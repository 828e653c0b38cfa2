"""How often does a 95 % interval hold the truth, on people who differ?

Embeddings are drawn: people differ in how alike their faces are, in how many photographs there are
of them (2 to 40, heavy-tailed) and in whom they look like; the second network is the first with
noise and a small drift. The truth is that of 60,000 people from the same generator; the accuracy's
is the mean over the trials, for folds depend on how many people there are.

`OMP_NUM_THREADS=1 python benchmarks/interval_coverage.py [TRIALS [PEOPLE,... [SCENARIO,...]]]`
"""

import sys
import time
from dataclasses import dataclass

import numpy as np

from fr_edge.metrics.accuracy import accuracy_interval, pair_accuracy
from fr_edge.metrics.intervals import rate_intervals, tar_intervals
from fr_edge.metrics.protocols import draw_pairs
from fr_edge.metrics.rates import compare_embeddings
from fr_edge.metrics.verification import all_pairs

DIM = 64
FARS = (1e-2, 1e-3, 1e-4)
TYPES = np.random.default_rng(12345).normal(size=(200, DIM))  # what lookalikes have in common
DRIFT = np.random.default_rng(54321).normal(size=DIM)
BINS = 400_000  # of cosines, for the truth


@dataclass(frozen=True)
class Scenario:
    """A population.

    Attributes:
        spread: Mean distance of a face from its person's centre, by the centre's length.
        shape: Of the gamma distribution of people's spread; None if all have the same.
        alike: Squared cosine of a person's centre with its type's.
        uneven: Whether photographs are 2 to 40, heavy-tailed, and of uneven quality; else 5.
        tied: How much more people with many photographs spread, as an exponent.
    """

    spread: float = 0.65
    shape: float | None = 6.0
    alike: float = 0.0
    uneven: bool = True
    tied: float = 0.0


SCENARIOS = {
    "even": Scenario(spread=0.95, shape=None, uneven=False),
    "uneven": Scenario(),
    "alike": Scenario(alike=0.5),
    "hard": Scenario(shape=3.0, alike=0.6),
    "tied": Scenario(shape=10.0, alike=0.3, tied=0.15),
}


def draw(
    people: int, scenario: Scenario, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings `(N, 64) float32` by both networks, and labels `(N,)`."""
    faces = np.full(people, 5)
    if scenario.uneven:
        faces = np.minimum(40, np.floor(2 * random.random(people) ** (-1 / 1.1))).astype(int)
    own = _unit(random.normal(size=(people, DIM)))
    kind = _unit(TYPES)[random.integers(0, len(TYPES), people)]
    centre = _unit(np.sqrt(scenario.alike) * kind + np.sqrt(1 - scenario.alike) * own)
    spread = np.full(people, scenario.spread)
    if scenario.shape:
        spread = random.gamma(scenario.shape, scenario.spread / scenario.shape, people)
    spread = spread * (faces / 5.0) ** scenario.tied
    labels = np.repeat(np.arange(people), faces)
    quality = np.exp(random.normal(0, 0.25 if scenario.uneven else 0.0, len(labels)))
    noise = random.normal(size=(len(labels), DIM)) / np.sqrt(DIM)
    old = _unit(centre[labels] + (spread[labels] * quality)[:, None] * noise)
    noise = random.normal(size=old.shape) / np.sqrt(DIM)
    new = _unit(old + 0.12 * noise + 0.04 * DRIFT / np.linalg.norm(DRIFT))
    return old.astype(np.float32), new.astype(np.float32), labels


def find_truth(
    scenario: Scenario, people: int = 60_000, faces: int = 20_000, seed: int = 777
) -> tuple[dict[float, tuple[float, float]], float]:
    """TAR of both networks by FAR, and the first network's EER, in a large population.

    Genuine pairs are all of `people`; impostor pairs those of two times `faces` of their faces.
    """
    random = np.random.default_rng(seed)
    *networks, labels = draw(people, scenario, random)
    order = random.permutation(len(labels))[: 2 * faces]
    a, b = np.array_split(order, 2)
    starts = np.searchsorted(labels, np.arange(people + 1))
    count = np.diff(starts)
    tars, eers = [], []
    for unit in networks:
        genuine, impostor = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
        for size in np.unique(count):
            first, second = np.triu_indices(size, 1)
            members = starts[np.flatnonzero(count == size)][:, None] + np.arange(size)
            for part in np.array_split(members, 1 + members.size * size // 2_000_000):
                x = unit[part]
                genuine += _counts((x @ x.transpose(0, 2, 1))[:, first, second])
        for rows in np.array_split(a, 1 + faces // 500):
            cosine = unit[rows] @ unit[b].T
            impostor += _counts(cosine[labels[rows][:, None] != labels[b][None]])
        far = np.cumsum(impostor[::-1])[::-1] / impostor.sum()
        tar = np.cumsum(genuine[::-1])[::-1] / genuine.sum()
        tars.append([float(tar[np.searchsorted(-far, -rate)]) for rate in FARS])
        at = int(np.argmin(np.abs(far - 1 + tar)))
        eers.append(float(far[at] + 1 - tar[at]) / 2)
    return {rate: (tars[0][i], tars[1][i]) for i, rate in enumerate(FARS)}, eers[0]


def measure_coverage(
    scenario: Scenario,
    people: int,
    trials: int,
    truth: tuple[dict[float, tuple[float, float]], float],
    fars: tuple[float, ...] = FARS,
) -> dict[str, np.ndarray]:
    """Interval's name -> low, high and truth of each trial that has one, `(n, 3)`."""
    tars, eer = truth
    rows: dict[str, list[tuple[float, float, float]]] = {}
    means = []
    for trial in range(trials):
        old, new, labels = draw(people, scenario, np.random.default_rng([trial, people]))
        scores = all_pairs(old, labels), all_pairs(new, labels)
        drops = {far: tars[far][0] - tars[far][1] for far in fars}
        for far, ends in tar_intervals(old, new, labels, scores, fars).items():
            rows.setdefault(f"TAR at {far:g}", []).append((*ends.reference, tars[far][0]))
            rows.setdefault(f"change at {far:g}", []).append((*ends.delta, -drops[far]))
        for rate in compare_embeddings(old, new, labels).rates:
            if rate.far in drops and (ends := rate.smoothed_drop_interval_95):
                name = f"likely loss at {rate.far:g}"
                rows.setdefault(name, []).append((*ends, drops[rate.far]))
        if ends := rate_intervals(old, labels, scores[0], fars).eer:
            rows.setdefault("EER", []).append((*ends, eer))
        pairs = draw_pairs(labels)
        means.append(pair_accuracy(old, pairs).mean)
        if ends := accuracy_interval(old, pairs, labels):
            rows.setdefault("accuracy", []).append((*ends, 0.0))
    tables = {name: np.array(values) for name, values in sorted(rows.items())}
    if "accuracy" in tables:
        tables["accuracy"][:, 2] = np.mean(means)
    return tables


def coverage(table: np.ndarray) -> float:
    """The share of intervals that hold the truth."""
    low, high, truth = table.T
    return float(((low <= truth) & (truth <= high)).mean())


def main(trials: int, numbers: list[int], names: list[str]) -> None:
    for name in names:
        truth = find_truth(SCENARIOS[name])
        for people in numbers:
            start = time.perf_counter()
            tables = measure_coverage(SCENARIOS[name], people, trials, truth)
            print(f"{name}, {people} people ({time.perf_counter() - start:.0f} s)")
            for interval, table in tables.items():
                share = coverage(table)
                error = 100 * np.sqrt(share * (1 - share) / len(table))
                width = np.median(table[:, 1] - table[:, 0])
                print(
                    f"  {interval:20} held {100 * share:5.1f} +- {error:.1f} %, median width"
                    f" {width:.4f}, given {len(table)} of {trials} times",
                    flush=True,
                )


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _counts(cosine: np.ndarray) -> np.ndarray:
    index = ((cosine.ravel() + 1) * (BINS / 2)).astype(np.int64)
    return np.bincount(np.clip(index, 0, BINS - 1), minlength=BINS)


if __name__ == "__main__":
    given = dict(enumerate(sys.argv[1:]))
    main(
        int(given.get(0, 200)),
        [int(number) for number in given.get(1, "30,60,200").split(",")],
        given.get(2, ",".join(SCENARIOS)).split(","),
    )
