"""Queries that come at random, whether the last is answered or not: MLPerf's Server in small.

A query's latency counts from when it was due, so that waiting behind others is part of it; nothing
waits for the engine before it sends the next.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .latency import Latencies

_AT_ONCE = 4096
_SPIN_NS = 1_000_000
"""Before a query is due the last millisecond is spent awake: a sleep may end late."""


@dataclass(frozen=True)
class Served:
    """`work` is how long the queries took once begun; `busy` the share of the time that this made;
    `backlog` the queries that waited when the time was over."""

    rate_per_s: float
    achieved_per_s: float
    busy: float
    backlog: int
    work: Latencies

    @property
    def most_per_s(self) -> float:
        """What the engine could answer without a pause."""
        return 1e3 / self.work.mean_ms


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
