"""Latencies of a run in order, their percentiles, and 95 % intervals of those percentiles.

Every run is kept, 8 bytes each: an hour at 1 ms is 29 MB.
"""

import math
from array import array
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from ...arrays import I64

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)  # that reports hold

_STUDENT_T = {10: 2.262, 5: 2.776}  # parts that a run is cut into -> Student's t for 95 %

# The spread of n parts is that of the whole times n to this power. Independent noise has 0.5, noise
# that never averages out 0; that of a shared machine has a long memory and lies between (a Hurst
# exponent of 0.75; docs/results/timing.md has the coverage that follows).
_SPREAD_EXPONENT = 0.25

_Z = NormalDist().inv_cdf(0.975)  # half width of a 95 % interval in standard deviations

# With fewer independent runs expected above a percentile (3.7), not even the slowest of all is an
# upper bound of it in 39 of 40 cases.
_MIN_RUNS_ABOVE = -math.log(1 - 0.975)


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


def percentile_interval(latencies: Latencies, q: float) -> tuple[float, float] | None:
    """A 95 % interval of a percentile: the union of three.

    Order statistics (the binomial's normal approximation) hold for independent runs; a queue's
    memory reduces their number. The spread of the percentile over ten and over five parts of the
    run (batch means) covers noise that lasts, such as a busy neighbour. Noise that lasts longer
    than the run is not covered.

    Args:
        latencies: The runs.
        q: Percentile, 0 to 100.

    Returns:
        Its ends in milliseconds; None where fewer than 3.7 independent runs are expected above the
        percentile (p99 needs 369 runs, p99.9 3,689).
    """
    if _runs_above(latencies, q) < _MIN_RUNS_ABOVE:
        return None
    count, share = latencies.count, q / 100
    center = latencies.percentile(q)
    reach = _Z * math.sqrt(count * share * (1 - share) * latencies.memory)
    low = latencies.order(max(0, math.floor(count * share - reach) - 1))
    high = latencies.order(min(count - 1, math.ceil(count * share + reach)))
    for number, student_t in _STUDENT_T.items():
        if count >= number:
            values = [part.percentile(q) for part in latencies.parts(number)]
            half = student_t * float(np.std(values, ddof=1)) / number**_SPREAD_EXPONENT
            low, high = min(low, center - half), max(high, center + half)
    return max(0.0, low), high


def percentile_name(q: float) -> str:
    """The key of a percentile in reports: `p50`, `p99.9`.

    Args:
        q: Percentile, 0 to 100.
    """
    return f"p{q:g}"


def _runs_above(latencies: Latencies, q: float) -> float:
    """Independent runs expected above a percentile."""
    return round(latencies.count / latencies.memory * (100 - q) / 100, 9)
