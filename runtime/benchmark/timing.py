"""Time a function: warm up until it is steady, then time every run."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .poisson_load import LoadResult, PoissonLoad, wait_until
from .statistics import Latencies, LatencyRecorder

SEGMENTS = 10  # parts of a run whose medians are compared

_WINDOW_S = 0.25  # of a warm-up window
_STEADY = 0.05  # two windows' medians may differ by this share
_OUTLIER = 3.0  # times the median
_MIN_MS = 1e-6  # a median that a clock set backwards makes zero or negative counts as this


@dataclass(frozen=True)
class Timing:
    """The latencies of one setting, and how they came about.

    Attributes:
        latencies: Of every run; of queries that arrive at random, from when each was due.
        warmup_s: How long the warm-up took, seconds.
        steady: Whether the warm-up ended with two windows of equal medians.
        cpu_wait_share: Share of the time in which this process's threads were ready to run and
            waited for a core; None where the kernel does not report it.
        interrupted: Whether Ctrl-C ended it early.
        load: With queries that arrive at random, how the engine served them.
        span_s: Begin and end of the timed runs, seconds of the clock.
    """

    latencies: Latencies
    warmup_s: float
    steady: bool
    cpu_wait_share: float | None
    interrupted: bool = False
    load: LoadResult | None = None
    span_s: tuple[float, float] | None = None

    @property
    def work(self) -> Latencies:
        """How long the work itself took, without waiting behind other queries."""
        return self.load.work if self.load else self.latencies

    @property
    def variation(self) -> float:
        """Half the spread of the middle 68 % of the work over its median: noise without outliers."""
        low, median, high = (self.work.percentile(q) for q in (16, 50, 84))
        return (high - low) / 2 / max(median, _MIN_MS)

    @property
    def drift(self) -> float:
        """Spread of the medians of ten equal parts over the median of all."""
        if self.work.count < SEGMENTS:
            return 0.0
        medians = [part.percentile(50) for part in self.work.parts(SEGMENTS)]
        return (max(medians) - min(medians)) / max(self.work.percentile(50), _MIN_MS)

    @property
    def outliers(self) -> int:
        """Runs that took more than three times the median."""
        return int((self.work.ns > _OUTLIER * 1e6 * self.work.percentile(50)).sum())


def time_runs(
    run: Callable[[int], None],
    duration_s: float,
    min_runs: int = 1,
    *,
    warmup_s: float = 5.0,
    clock: Callable[[], int] = time.perf_counter_ns,
    between: Callable[[int, int], None] = lambda index, ns: None,
    rate_per_s: float | None = None,
    wait: Callable[[int], None] = wait_until,
) -> Timing:
    """Call `run(0)`, `run(1)`, ... for a time, after a warm-up, and time each call.

    Ctrl-C ends the timing, not the program, once something has run.

    Args:
        run: The work; its argument is the number of the run.
        duration_s: How long to go on, seconds.
        min_runs: With fewer runs by then it goes on, to three times the duration. With a rate, so
            many independent queries.
        warmup_s: Longest warm-up, seconds.
        clock: Gives nanoseconds.
        between: Called after each run with its number and nanoseconds; not timed.
        rate_per_s: Each run answers a query of a Poisson process of this rate; its latency counts
            from when the query was due.
        wait: Returns at the given nanoseconds of `clock`.

    Returns:
        The latencies and how they came about.
    """
    warmed_s, steady = _warm_up(run, warmup_s, clock)
    waiting_before, cpu_before = waiting_ns(), time.process_time_ns()
    recorder, now = LatencyRecorder(), clock()
    begin = now
    queries = PoissonLoad(rate_per_s, now, wait) if rate_per_s else None
    end, latest = now + round(duration_s * 1e9), now + round(3 * duration_s * 1e9)
    interrupted = False

    def enough() -> bool:
        return queries.enough(min_runs) if queries else len(recorder) >= min_runs

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
                queries.skip(clock() - now)
    except KeyboardInterrupt:
        if not recorder:
            raise
        interrupted = True
    share = _wait_share(waiting_before, waiting_ns(), time.process_time_ns() - cpu_before)
    load = queries.result() if queries else None
    latencies = recorder.latencies(queries.memory if queries else 1.0)
    span_s = (begin / 1e9, now / 1e9)
    return Timing(latencies, warmed_s, steady, share, interrupted, load, span_s)


def waiting_ns() -> int | None:
    """How long this process's threads have waited for a core so far.

    Returns:
        Nanoseconds; None where the kernel does not report it.
    """
    total = 0
    try:
        for task in os.listdir("/proc/self/task"):
            total += int(Path(f"/proc/self/task/{task}/schedstat").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return total


def _wait_share(before: int | None, after: int | None, cpu_ns: int) -> float | None:
    if before is None or after is None:
        return None
    return max(0, after - before) / max(1, after - before + cpu_ns)


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
