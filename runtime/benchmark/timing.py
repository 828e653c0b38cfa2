"""Time a function honestly: warm up until it is steady, then count every run.

Knows neither networks nor verdicts: `timed_run` judges what stands here.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .poisson_load import LoadResult, PoissonLoad, wait_until
from .statistics import Latencies, LatencyRecorder

SEGMENTS = 10

_WINDOW_S = 0.25

_STEADY = 0.05


@dataclass(frozen=True)
class Timed:
    """`steady` is whether warm-up, `warmup_s` long, ended with equal windows; `waited` the share of
    the time they wanted a core in which this process's threads stood in line for one (None where
    the kernel does not tell). `interrupted` by Ctrl-C, it holds what had run by then. Of queries
    that came at random, `served` tells more."""

    latencies: Latencies
    warmup_s: float
    steady: bool
    waited: float | None
    interrupted: bool = False
    served: LoadResult | None = None

    @property
    def work(self) -> Latencies:
        """How long the work itself took, without waiting behind other queries."""
        return self.served.work if self.served else self.latencies

    @property
    def variation(self) -> float:
        """Spread of the middle two thirds of the work over its median: noise without the rare
        outliers."""
        whole = self.work.all
        low, middle, high = (whole.percentile(q) for q in (16, 50, 84))
        return (high - low) / 2 / middle

    @property
    def drift(self) -> float:
        """How far the medians of ten equal parts lie apart, over the median of all."""
        if self.work.count < SEGMENTS:
            return 0.0
        medians = [part.percentile(50) for part in self.work.parts(SEGMENTS)]
        return (max(medians) - min(medians)) / self.work.all.percentile(50)

    @property
    def outliers(self) -> int:
        """Runs that took more than three times the median."""
        whole = self.work.all
        return int(whole.counts[whole.values_ms > 3 * whole.percentile(50)].sum())


def time_runs(
    run: Callable[[int], None],
    duration_s: float,
    at_least: int = 1,
    *,
    warmup_s: float = 5.0,
    clock: Callable[[], int] = time.perf_counter_ns,
    between: Callable[[int, int], None] = lambda index, ns: None,
    rate_per_s: float | None = None,
    wait: Callable[[int], None] = wait_until,
) -> Timed:
    """Call `run(0)`, `run(1)`, ... for `duration_s` seconds after at most `warmup_s` of warm-up.

    With fewer than `at_least` runs by then it goes on, to three times the duration.
    `between(index, nanoseconds)` is called after each run and not timed. `clock` gives nanoseconds.
    With `rate_per_s` each run answers a query of a Poisson process and its latency counts from when
    that was due; `wait(ns)` returns then. `at_least` then means as many as independent ones tell.
    Memory does not grow with the duration. Ctrl-C ends the timing, not the program, once something
    has run.
    """
    warmed, steady = _warm_up(run, warmup_s, clock)
    before, cpu_before = waiting_ns(), time.process_time_ns()
    recorder, now = LatencyRecorder(), clock()
    queries = PoissonLoad(rate_per_s, now, wait) if rate_per_s else None
    end, latest = now + round(duration_s * 1e9), now + round(3 * duration_s * 1e9)
    interrupted = False

    def enough() -> bool:
        return queries.enough(at_least) if queries else len(recorder) >= at_least

    try:
        while not recorder or now < end or (now < latest and not enough()):
            index = len(recorder)
            if queries:
                queries.wait_for_next()
            start = clock()
            run(index)
            now = clock()
            latency = queries.answered(start, now) if queries else now - start
            recorder.add(latency)
            between(index, latency)
            if queries:
                queries.stand_still(clock() - now)
    except KeyboardInterrupt:
        if not recorder:
            raise
        interrupted = True
    cpu, after = time.process_time_ns() - cpu_before, waiting_ns()
    waited = None
    if before is not None and after is not None:
        waited = max(0, after - before) / max(1, after - before + cpu)
    latencies = recorder.latencies()
    if not queries:
        return Timed(latencies, warmed, steady, waited, interrupted)
    latencies = replace(latencies, memory=queries.memory)
    return Timed(latencies, warmed, steady, waited, interrupted, queries.served())


def waiting_ns() -> int | None:
    """How long this process's threads have stood in line for a core, nanoseconds; None where
    the kernel does not tell."""
    total = 0
    try:
        for task in os.listdir("/proc/self/task"):
            total += int(Path(f"/proc/self/task/{task}/schedstat").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return total


def _warm_up(
    run: Callable[[int], None], limit_s: float, clock: Callable[[], int]
) -> tuple[float, bool]:
    """Run until two windows of a quarter second have the same median within 5 %."""
    begin = clock()
    last: float | None = None
    count = 0
    while True:
        window: list[int] = []
        opened = clock()
        while not window or clock() - opened < _WINDOW_S * 1e9:
            start = clock()
            run(count)
            window.append(clock() - start)
            count += 1
        median = float(np.median(window))
        elapsed = (clock() - begin) / 1e9
        if last is not None and abs(median - last) <= _STEADY * last:
            return elapsed, True
        if elapsed >= limit_s:
            return elapsed, False
        last = median
