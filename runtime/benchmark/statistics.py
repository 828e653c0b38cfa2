"""Latencies of a run in order, their percentiles, and 95 % intervals of those percentiles.

Every run is kept, 8 bytes each: an hour at 1 ms is 29 MB.
"""

from array import array
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ...arrays import I64
from ...metrics.time_series import MIN_BEYOND, Ends, Series, mean_interval, quantile_interval

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)  # that reports hold

_MIN_DEPENDENT = 1000  # runs


@dataclass(frozen=True)
class Latencies:
    """The runs of one setting.

    Attributes:
        ns: Nanoseconds of each run in order, `(n,) int64`, n at least 1.
        memory: How many runs carry as much information as one independent run: 1 for runs that
            follow each other, more for queries that wait in a queue.
    """

    ns: I64
    memory: float = 1.0

    @property
    def count(self) -> int:
        return len(self.ns)

    @cached_property
    def mean_ms(self) -> float:
        return float(self.ns.mean()) / 1e6

    @property
    def min_ms(self) -> float:
        return self.order(0)

    @property
    def max_ms(self) -> float:
        return self.order(self.count - 1)

    def order(self, rank: int) -> float:
        """The latency of a rank, milliseconds; rank 0 is the fastest run."""
        return float(self._ascending[rank]) / 1e6

    def percentile(self, q: float) -> float:
        """The q-th percentile (0 to 100), milliseconds; linear between the two nearest runs."""
        place = q / 100 * (self.count - 1)
        rank = int(place)
        below, share = self.order(rank), place - rank
        return below + share * (self.order(rank + 1) - below) if share else below

    def parts(self, number: int) -> "list[Latencies]":
        """About equal parts in order; fewer than `number` where there are fewer runs."""
        cuts = np.array_split(self.ns, min(number, self.count))
        return [Latencies(cut, self.memory) for cut in cuts]

    @cached_property
    def series(self) -> Series:
        """The latencies in milliseconds."""
        return Series(self.ns / 1e6, self.memory)

    @cached_property
    def _ascending(self) -> I64:
        return np.sort(self.ns)


class LatencyRecorder:
    """Takes latencies one after the other; an append costs less than a microsecond."""

    def __init__(self) -> None:
        self._ns = array("q")

    def __len__(self) -> int:
        return len(self._ns)

    def add(self, ns: int) -> None:
        """Append the latency of one run, nanoseconds."""
        self._ns.append(ns)

    def latencies(self, memory: float = 1.0) -> Latencies:
        """All runs so far, at least one; `memory` as `Latencies` has it."""
        return Latencies(np.array(self._ns, np.int64), memory)


def latencies_of(milliseconds: npt.ArrayLike) -> Latencies:
    """Latencies that are already measured.

    Args:
        milliseconds: `(n,)`, in order, n at least 1.
    """
    return Latencies(np.rint(np.asarray(milliseconds, np.float64) * 1e6).astype(np.int64))


def latency_percentile(latencies: Latencies, q: float) -> float | None:
    """A percentile, where the runs can show it.

    Args:
        latencies: The runs.
        q: Percentile, 0 to 100.

    Returns:
        Milliseconds; None where fewer than one independent run is expected above it.
    """
    return latencies.percentile(q) if _runs_above(latencies, q) >= 1 else None


def percentile_interval(latencies: Latencies, q: float) -> Ends | None:
    """A 95 % interval of a percentile, as `metrics.time_series.quantile_interval` finds it.

    Args:
        latencies: The runs.
        q: Percentile, 0 to 100.

    Returns:
        Its ends in milliseconds; None where fewer than 3.7 independent runs are expected above the
        percentile (p99 needs 369 runs, p99.9 3,689; queries that wait half as many again), or where
        the runs drift, come in bursts, or are too few for how long they depend on each other.
    """
    if _runs_above(latencies, q) < MIN_BEYOND or _too_few(latencies):
        return None
    return quantile_interval(latencies.series, q / 100)


def mean_latency_interval(latencies: Latencies) -> Ends | None:
    """A 95 % interval of the mean, as `metrics.time_series.mean_interval` finds it.

    Args:
        latencies: The runs.

    Returns:
        Its ends in milliseconds; None where the runs show none.
    """
    ends = None if _too_few(latencies) else mean_interval(latencies.series)
    return None if ends is None or ends[0] <= 0 else ends


def percentile_name(q: float) -> str:
    """The key of a percentile in reports: `p50`, `p99.9`.

    Args:
        q: Percentile, 0 to 100.
    """
    return f"p{q:g}"


def _too_few(latencies: Latencies) -> bool:
    """Runs that depend on each other show the slow part of their noise to a long series only."""
    dependent = latencies.memory == 1 and (latencies.series.batch_size or 1) > 1
    return dependent and latencies.count < _MIN_DEPENDENT


def _runs_above(latencies: Latencies, q: float) -> float:
    """Independent runs expected above a percentile."""
    return round(latencies.count / latencies.memory * (100 - q) / 100, 9)
