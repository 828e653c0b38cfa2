"""Do the 95 % intervals of latency, throughput and energy hold the truth 95 times in 100?

Runs are drawn, so that the truth is known from a much longer draw: independent ones with tails of
several kinds, ones with a memory, ones that drift, ones beside a neighbour that comes and goes, and
queries that wait for one another (M/G/1). Then boards are drawn whose power has a memory, a tail or
a drift. `.95 (80)` means that 95 % of the stated intervals hold the truth, and that 80 % of the runs
state one. `python benchmarks/timing_coverage.py [--trials 400] [--json]`
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fr_edge.runtime.benchmark.statistics import (
    Latencies,
    latencies_of,
    mean_latency_interval,
    percentile_interval,
    percentile_name,
)
from fr_edge.runtime.machine.energy import energy
from fr_edge.runtime.machine.monitor import SensorTrace
from fr_edge.runtime.machine.sensors import Reading

Draw = Callable[[np.random.Generator, int, int], np.ndarray]  # trials, runs -> (trials, runs)
Work = Callable[[np.random.Generator, int], np.ndarray]
QUANTILES = (50.0, 90.0, 99.0)
COUNTS = (400, 1600, 6400)
SECONDS = (10, 30, 120)
IDLE_MW, BUSY_MW, FACE_S = 3000.0, 9000.0, 0.02


def white(random: np.random.Generator, trials: int, n: int) -> np.ndarray:
    return random.standard_normal((trials, n))


def wander(random: np.random.Generator, trials: int, n: int, memory: float) -> np.ndarray:
    """Noise of unit deviation that is forgotten by a factor of `memory` a run."""
    out, last = np.empty((n, trials)), random.standard_normal(trials)
    scale = np.sqrt(1 - memory**2)
    for i in range(n):
        last = out[i] = memory * last + scale * random.standard_normal(trials)
    return out.T


def tailed(index: float) -> Draw:
    return lambda random, trials, n: 1 + 0.2 * random.pareto(index, (trials, n))


def spiky(random: np.random.Generator, trials: int, n: int) -> np.ndarray:
    spikes = random.random((trials, n)) < 0.005
    return np.exp(0.05 * white(random, trials, n)) * (1 + 19 * spikes)


def autocorrelated(memory: float) -> Draw:
    return lambda random, trials, n: np.exp(0.1 * wander(random, trials, n, memory))


def partly(random: np.random.Generator, trials: int, n: int) -> np.ndarray:
    return np.exp(0.05 * wander(random, trials, n, 0.9) + 0.1 * white(random, trials, n))


def slow(random: np.random.Generator, trials: int, n: int) -> np.ndarray:
    return np.exp(0.07 * wander(random, trials, n, 0.99) + 0.07 * white(random, trials, n))


def tailed_memory(random: np.random.Generator, trials: int, n: int) -> np.ndarray:
    return 1 + 0.2 * np.exp(wander(random, trials, n, 0.8))


def neighbour(random: np.random.Generator, trials: int, n: int) -> np.ndarray:
    there = random.random(trials) < 40 / 440
    out = np.empty((n, trials))
    for i in range(n):
        chance = random.random(trials)
        there = out[i] = np.where(there, chance > 1 / 41, chance < 1 / 401)
    return np.exp(0.05 * white(random, trials, n)) * (1 + 0.3 * out.T)


def drifting(share: float) -> Draw:
    return lambda random, trials, n: (
        np.exp(0.05 * white(random, trials, n)) + share * np.linspace(-0.5, 0.5, n)
    )


KINDS: dict[str, Draw] = {
    "independent": lambda random, trials, n: np.exp(0.1 * white(random, trials, n)),
    "Pareto's tail, finite variance (4.5)": tailed(4.5),
    "Pareto's tail, infinite variance (2)": tailed(2.0),
    "one in 200 takes 20 times as long": spiky,
    "memory of 2 runs": autocorrelated(0.6),
    "memory of 10 runs": autocorrelated(0.9),
    "a fifth of it has a memory of 10 runs": partly,
    "heavy tail, memory of 5 runs": tailed_memory,
    "half of it wanders, over 100 runs": slow,
    "neighbour for 40 of 440 runs": neighbour,
    "drifts by 2 %, beside noise of 5 %": drifting(0.02),
    "drifts by 10 %, beside noise of 5 %": drifting(0.10),
}
POWERS: dict[str, Draw] = {
    "independent": white,
    "memory of 2 readings": lambda random, trials, n: wander(random, trials, n, 0.6),
    "memory of 5 readings": lambda random, trials, n: wander(random, trials, n, 0.8),
    "heavy tail (Student's t, 3)": lambda random, trials, n: random.standard_t(3, (trials, n)),
    "warms up by 3 deviations": lambda random, trials, n: (
        white(random, trials, n) + np.linspace(-1.5, 1.5, n)
    ),
}


def queue(random: np.random.Generator, n: int, work: Work, load: float) -> Latencies:
    """Lindley's recursion, all at once; the memory as `PoissonLoad` finds it."""
    takes, gaps = work(random, n), random.exponential(1 / load, n)
    walk = np.concatenate([[0.0], np.cumsum(takes[:-1] - gaps[1:])])
    latency = walk - np.minimum.accumulate(walk) + takes
    rest = 1 - takes.sum() / (gaps.sum() + latency[-1])
    memory = np.mean(takes**2) / np.mean(takes) ** 2 / rest**2 if rest > 0 else float("inf")
    return replace(latencies_of(latency), memory=float(memory))


def count(known: list[tuple[float, float] | None], truth: float) -> dict[str, float | None]:
    ends = [pair for pair in known if pair is not None]
    held = sum(low - 1e-4 <= truth <= high + 1e-4 for low, high in ends)
    return {"held": held / len(ends) if ends else None, "stated": len(ends) / len(known)}


def latency_row(runs: list[Latencies], long: Latencies) -> dict[str, dict]:
    row = {
        percentile_name(q): count([percentile_interval(r, q) for r in runs], long.percentile(q))
        for q in QUANTILES
    }
    if runs[0].memory == 1:  # the throughput of queries is that of their arrivals
        row["throughput"] = count([mean_latency_interval(run) for run in runs], long.mean_ms)
    return row


def rail(values: np.ndarray) -> list[Reading]:
    return [Reading(power_mw={"VDD_IN": float(value)}) for value in values]


def energy_row(
    random: np.random.Generator, power: Draw, seconds: int, trials: int
) -> dict[str, float | None]:
    """Of a board read every half second, a second of warm-up before the run, and at rest."""
    n = 2 * seconds
    noise = 300 * power(random, trials, n)
    rest = IDLE_MW + 50 * wander(random, trials, 101, 0.3)
    ends: list[tuple[float, float] | None] = []
    for busy, calm in zip(noise, rest, strict=True):
        levels = np.concatenate([[IDLE_MW, BUSY_MW, BUSY_MW], BUSY_MW + busy, [IDLE_MW]])
        times = [0.0, 0.5, 1.0, *(1.25 + 0.5 * i for i in range(n)), 1.1 + seconds]
        run = SensorTrace(times, rail(levels), load_s=(1.05, 1.05 + seconds))
        idle = SensorTrace([0.1 * i for i in range(101)], rail(calm))
        half = 0.002 * FACE_S
        drawn = FACE_S + half / 1.96 * random.standard_normal()
        result = energy(run, idle, 1, drawn, (drawn - half, drawn + half))
        assert result is not None
        ends.append(result.interval_95_mj)
    return count(ends, (BUSY_MW - IDLE_MW) * FACE_S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    random, rows = np.random.default_rng(0), {}
    for kind, draw in KINDS.items():
        for n in COUNTS:
            long = latencies_of(draw(random, 400, max(n, 2000)).ravel())
            runs = [latencies_of(run) for run in draw(random, args.trials, n)]
            rows[f"{kind} | {n:,} runs"] = latency_row(runs, long)
            show(args, f"{kind} | {n:,}", rows[f"{kind} | {n:,} runs"])
    works: dict[str, Work] = {
        "constant work": lambda random, n: np.ones(n),
        "exponential work": lambda random, n: random.exponential(1, n),
    }
    for name, work in works.items():
        varies = float(np.mean(work(random, 400_000) ** 2))  # the mean is 1
        for load in (0.3, 0.8):
            long = queue(random, 3_000_000, work, load)
            for independent in (110, 450):
                n = round(independent * varies / (1 - load) ** 2)
                runs = [queue(random, n, work, load) for _ in range(args.trials)]
                label = f"queries, {name}, at work {load:.0%} of the time | {n:,}"
                rows[label] = latency_row(runs, long)
                show(args, label, rows[label])
    for kind, power in POWERS.items():
        for seconds in SECONDS:
            label = f"power: {kind} | {seconds} s"
            rows[label] = {"energy": energy_row(random, power, seconds, args.trials)}
            show(args, label, rows[label])
    if args.json:
        print(json.dumps(rows, indent=1))


def show(args: argparse.Namespace, label: str, row: dict[str, dict]) -> None:
    if args.json:
        return
    cells = []
    for one in row.values():
        held = "-" if one["held"] is None else f"{one['held']:.3f}".lstrip("0")
        cells.append(f"{held} ({100 * one['stated']:.0f})" if one["stated"] else "-")
    print(f"| {label} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
