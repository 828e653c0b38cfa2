"""Queries that come at random, whether the last is answered or not: MLPerf's Server in small.

A query's latency counts from when it was due, so that waiting behind others is part of it; nothing
waits for the engine before it sends the next.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, islice, takewhile

import numpy as np

from .statistics import Latencies, LatencyRecorder

_AT_ONCE = 4096

_SPIN_NS = 1_000_000
"""Before a query is due the last millisecond is spent awake: a sleep may end late."""

MAX_BUSY = 0.95
"""A queue this near to its engine's limit takes long to settle, and beyond it never does."""

_MOST_BACKLOG = 1_000_000
"""Counted at most: a hopeless rate over an hour leaves milliards."""


@dataclass(frozen=True)
class LoadResult:
    """`work` is how long the queries took once begun; `busy` the share of the time that this made;
    `backlog` the queries that waited when the time was over; `late_ms` how late a query was handed
    over in the mean, though nothing was in the way: the benchmark's own fault."""

    rate_per_s: float
    achieved_per_s: float
    busy: float
    backlog: int
    late_ms: float
    work: Latencies

    @property
    def most_per_s(self) -> float:
        """What the engine could answer without a pause."""
        return 1e3 / self.work.mean_ms


class PoissonLoad:
    """Those of one run: `wait_for_next`, then `answered`; `stand_still` leaves out of their time
    what the benchmark does for itself in between, as if it had taken none."""

    def __init__(
        self,
        rate_per_s: float,
        begin_ns: int,
        wait: Callable[[int], None],
        gaps: Iterator[int] | None = None,
    ) -> None:
        self._rate, self._wait = rate_per_s, wait
        self._gaps = gaps or poisson_gaps(rate_per_s)
        self._begun = self._due = self._free = begin_ns
        self._work = LatencyRecorder()
        self._busy_ns = self._squares = self._late_ns = 0

    def wait_for_next(self) -> None:
        self._due += next(self._gaps)
        self._wait(self._due)

    def answered(self, start_ns: int, now_ns: int) -> int:
        """The query's latency, nanoseconds."""
        work = now_ns - start_ns
        self._work.add(work)
        self._busy_ns += work
        self._squares += work * work
        self._late_ns += start_ns - max(self._due, self._free)
        self._free = now_ns
        return now_ns - self._due

    def stand_still(self, ns: int) -> None:
        self._begun += ns
        self._due += ns
        self._free += ns

    @property
    def memory(self) -> float:
        """How many answered queries tell as much as an independent one; infinite where the queue
        grows.

        A queue forgets after about (1 + c^2) / (1 - busy)^2 queries, c being the work's standard
        deviation over its mean (the relaxation time in heavy traffic, as in Whitt, "Planning
        queueing simulations", Management Science 35 (1989); what it does for intervals is in
        docs/results/timing.md).
        """
        rest = 1 - self._busy
        spread = self._squares * len(self._work) / max(1, self._busy_ns) ** 2
        return spread / rest**2 if rest > 0 else float("inf")

    def enough(self, at_least: float) -> bool:
        """As many answered as so many independent ones; or hopeless, however long it goes on."""
        return self._busy > MAX_BUSY or len(self._work) >= at_least * self.memory

    @property
    def _busy(self) -> float:
        return self._busy_ns / max(1, self._free - self._begun)

    def served(self) -> LoadResult:
        """Of at least one query."""
        count = len(self._work)
        coming = accumulate(self._gaps, initial=self._due)
        waiting = takewhile(lambda due: due <= self._free, islice(coming, 1, _MOST_BACKLOG + 1))
        return LoadResult(
            self._rate,
            count / max(1, self._free - self._begun) * 1e9,
            self._busy,
            sum(1 for _ in waiting),
            self._late_ns / count / 1e6,
            self._work.latencies(),
        )


def poisson_gaps(rate_per_s: float, seed: int = 0) -> Iterator[int]:
    """Nanoseconds from each query to the next: exponential, the same for the same seed."""
    random = np.random.default_rng(seed)
    while True:
        yield from np.rint(random.exponential(1e9 / rate_per_s, _AT_ONCE)).astype(int).tolist()


def wait_until(due_ns: int) -> None:
    """By `time.perf_counter_ns`; returns at once when it is past."""
    while (left := due_ns - time.perf_counter_ns()) > 0:
        if left > _SPIN_NS:
            time.sleep((left - _SPIN_NS) / 1e9)
