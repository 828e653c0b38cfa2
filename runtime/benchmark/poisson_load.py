"""Queries that arrive at random, whether or not the last one is answered (MLPerf's Server scenario).

A query's latency counts from when it was due, so waiting behind other queries is part of it.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, islice, takewhile

import numpy as np

from .statistics import Latencies, LatencyRecorder

MAX_BUSY = 0.95  # share of the time at work; nearer to 1 a queue takes long to settle, or grows

_GAPS_AT_ONCE = 4096  # drawn in one call
_SPIN_NS = 1_000_000  # the last millisecond before a query is due is spent awake: sleeps end late
_MAX_BACKLOG = 1_000_000  # counted at most: an hour at a rate far too high leaves billions


@dataclass(frozen=True)
class LoadResult:
    """How an engine served the queries.

    Attributes:
        rate_per_s: Queries per second that were asked for.
        achieved_per_s: Queries per second that were answered.
        busy: Share of the time in which a query was worked on.
        backlog: Queries that waited when the time was over, one million at most.
        late_ms: How late the benchmark itself handed over a query, mean over the queries.
        work: How long each query took once begun.
    """

    rate_per_s: float
    achieved_per_s: float
    busy: float
    backlog: int
    late_ms: float
    work: Latencies

    @property
    def max_per_s(self) -> float:
        """Queries per second that the engine could answer without a pause."""
        return 1e3 / self.work.mean_ms


class PoissonLoad:
    """The queries of one run: `wait_for_next`, work, `answered`, and again.

    `skip` leaves out of the queries' time what the benchmark does for itself in between.
    """

    def __init__(
        self,
        rate_per_s: float,
        begin_ns: int,
        wait: Callable[[int], None],
        gaps: Iterator[int] | None = None,
    ) -> None:
        self._rate, self._wait = rate_per_s, wait
        self._gaps = gaps or poisson_gaps(rate_per_s)
        self._begin = self._due = self._free = begin_ns
        self._work = LatencyRecorder()
        self._busy_ns = self._squares = self._late_ns = 0

    def wait_for_next(self) -> None:
        """Return when the next query is due."""
        self._due += next(self._gaps)
        self._wait(self._due)

    def answered(self, start_ns: int, now_ns: int) -> int:
        """Count a query that was worked on from `start_ns` to `now_ns`; its latency, nanoseconds."""
        work = now_ns - start_ns
        self._work.add(work)
        self._busy_ns += work
        self._squares += work * work
        self._late_ns += start_ns - max(self._due, self._free)
        self._free = now_ns
        return now_ns - self._due

    def skip(self, ns: int) -> None:
        """Move all times by `ns`, as if the benchmark had needed none for itself."""
        self._begin += ns
        self._due += ns
        self._free += ns

    @property
    def memory(self) -> float:
        """How many answered queries carry as much information as an independent one.

        Infinite where the queue grows. A queue forgets after about (1 + c^2) / (1 - busy)^2
        queries, c being the work's standard deviation over its mean (the relaxation time in heavy
        traffic, as in Whitt, "Planning queueing simulations", Management Science 35 (1989);
        docs/results/timing.md has the coverage that follows).
        """
        rest = 1 - self._busy
        spread = self._squares * len(self._work) / max(1, self._busy_ns) ** 2
        return spread / rest**2 if rest > 0 else float("inf")

    def enough(self, min_queries: float) -> bool:
        """Whether so many independent queries were answered, or more time would not help."""
        return self._busy > MAX_BUSY or len(self._work) >= min_queries * self.memory

    @property
    def _busy(self) -> float:
        return self._busy_ns / max(1, self._free - self._begin)

    def result(self) -> LoadResult:
        """What happened so far; needs one answered query."""
        count = len(self._work)
        coming = accumulate(self._gaps, initial=self._due)
        waiting = takewhile(lambda due: due <= self._free, islice(coming, 1, _MAX_BACKLOG + 1))
        return LoadResult(
            self._rate,
            count / max(1, self._free - self._begin) * 1e9,
            self._busy,
            sum(1 for _ in waiting),
            self._late_ns / count / 1e6,
            self._work.latencies(),
        )


def poisson_gaps(rate_per_s: float, seed: int = 0) -> Iterator[int]:
    """Times between the queries of a Poisson process, without end.

    Args:
        rate_per_s: Queries per second in the mean.
        seed: The same seed gives the same times.

    Yields:
        Nanoseconds from one query to the next, exponentially distributed.
    """
    random = np.random.default_rng(seed)
    while True:
        gaps = random.exponential(1e9 / rate_per_s, _GAPS_AT_ONCE)
        yield from np.rint(gaps).astype(int).tolist()


def wait_until(due_ns: int) -> None:
    """Return at a time of `time.perf_counter_ns`; at once when it is past.

    Args:
        due_ns: Nanoseconds.
    """
    while (left := due_ns - time.perf_counter_ns()) > 0:
        if left > _SPIN_NS:
            time.sleep((left - _SPIN_NS) / 1e9)
