"""Does the 95 % interval of a percentile hold the truth 95 times in 100?

Runs are drawn, so that the truth is known from a much longer draw: independent ones with tails of
several kinds, ones beside slow noise or a neighbour that comes and goes, and queries that wait for
one another (M/G/1). `(0.99)` is the share of runs whose interval holds the truth, `0.87 stated` that
of runs which state one. `python benchmarks/timing_coverage.py [--trials 150] [--json]`
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fr_edge.runtime.benchmark.statistics import (
    Latencies,
    latencies_of,
    percentile_interval,
    percentile_name,
)

Draw = Callable[[np.random.Generator, int], np.ndarray]
QUANTILES = (50.0, 90.0, 99.0)


def normal(random: np.random.Generator, n: int) -> np.ndarray:
    return np.exp(0.1 * random.standard_normal(n))


def heavy(random: np.random.Generator, n: int) -> np.ndarray:
    """Pareto's tail with an infinite variance."""
    return 1 + 0.2 * random.pareto(2, n)


def spiky(random: np.random.Generator, n: int) -> np.ndarray:
    """One run in 200 takes twenty times as long."""
    return np.exp(0.05 * random.standard_normal(n)) * (1 + 19 * (random.random(n) < 0.005)) / 1.095


def slow_noise(random: np.random.Generator, n: int) -> np.ndarray:
    """Half of the noise wanders, and is forgotten after about a hundred runs."""
    wander = np.empty(n)
    last = random.standard_normal()
    steps = np.sqrt(1 - 0.99**2) * random.standard_normal(n)
    for i in range(n):
        last = wander[i] = 0.99 * last + steps[i]
    return np.exp(0.07 * wander + 0.07 * random.standard_normal(n))


def neighbour(random: np.random.Generator, n: int) -> np.ndarray:
    """Another program works for about 40 of 440 runs, which then take 30 % longer."""
    there = np.zeros(n)
    at = int(random.exponential(400))
    while at < n:
        stays = 1 + int(random.exponential(40))
        there[at : at + stays] = 1
        at += stays + int(random.exponential(400))
    return np.exp(0.05 * random.standard_normal(n)) * (1 + 0.3 * there)


def constant(random: np.random.Generator, n: int) -> np.ndarray:
    return np.ones(n)


def exponential(random: np.random.Generator, n: int) -> np.ndarray:
    return random.exponential(1, n)


def queue(random: np.random.Generator, n: int, work: Draw, load: float) -> Latencies:
    """Lindley's recursion, all at once; the memory as `PoissonLoad` finds it."""
    takes, gaps = work(random, n), random.exponential(1 / load, n)
    walk = np.concatenate([[0.0], np.cumsum(takes[:-1] - gaps[1:])])
    latency = walk - np.minimum.accumulate(walk) + takes
    rest = 1 - takes.sum() / (gaps.sum() + latency[-1])
    memory = np.mean(takes**2) / np.mean(takes) ** 2 / rest**2 if rest > 0 else float("inf")
    return replace(latencies_of(latency), memory=float(memory))


def coverage(draw: Callable[[int], Latencies], n: int, long: int, trials: int) -> dict[str, dict]:
    """`percentile -> {held, stated}` over runs of n; the truth from one of `long`."""
    truth = {q: draw(long).percentile(q) for q in QUANTILES}
    held, stated = dict.fromkeys(QUANTILES, 0), dict.fromkeys(QUANTILES, 0)
    for _ in range(trials):
        found = draw(n)
        for q in QUANTILES:
            if (ends := percentile_interval(found, q)) is not None:
                stated[q] += 1
                held[q] += ends[0] - 1e-4 <= truth[q] <= ends[1] + 1e-4
    return {
        percentile_name(q): {
            "held": round(held[q] / stated[q], 3) if stated[q] else None,
            "stated": round(stated[q] / trials, 3),
        }
        for q in QUANTILES
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=150)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    random = np.random.default_rng(0)
    rows = {}
    for kind in (normal, heavy, spiky, slow_noise, neighbour):
        for n in (400, 1600):
            found = coverage(lambda n, k=kind: latencies_of(k(random, n)), n, 400_000, args.trials)
            rows[f"{kind.__name__}, {n} runs"] = found
    for work in (constant, exponential, spiky):
        varies = float(np.mean(work(random, 400_000) ** 2))  # the mean is 1
        for load in (0.3, 0.6, 0.8):
            for independent in (110, 450):
                n = round(independent * varies / (1 - load) ** 2)
                found = coverage(
                    lambda n, w=work, r=load: queue(random, n, w, r), n, 3_000_000, args.trials
                )
                rows[f"queue at {load}, {work.__name__} work, {n} queries"] = found
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    for what, found in rows.items():
        told = (f"{q} ({row['held']}, {row['stated']} stated)" for q, row in found.items())
        print(f"{what}: {', '.join(told)}")


if __name__ == "__main__":
    main()
