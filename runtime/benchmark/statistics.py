"""Latencies of a run of any length in flat memory, their percentiles, and how sure those are.

Runs are kept by stretch: what followed one another stays together, as a sorted histogram. A bin is
a millionth of its value wide, and wider only where a long run has too many different values.
Knows numbers only.
"""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from ...arrays import F64, I64

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)

_PARTS = {10: 2.262, 5: 2.776}
"""Into how many parts a run is cut to see slow noise, and Student's t for 95 % of each."""

_MEMORY = 0.25
"""The spread of n parts is that of the whole times n to this power. Independent noise has 0.5, noise
that never averages out 0; that of a shared machine has a long memory and lies between (a Hurst
exponent of 0.75; docs/results/timing.md has what came of it)."""

_Z = NormalDist().inv_cdf(0.975)

_BOUNDED = -math.log(1 - 0.975)
"""With fewer independent runs expected above a percentile (3.7), not even the slowest of all is an
upper bound of it in 39 of 40 cases."""

_MOST_STRETCHES = 64

_FIRST_STRETCH = 128
"""Runs in a stretch at first; twice as many whenever there are too many stretches. Fewer runs than
fill the first ones are sorted after the run, not during it."""

_MOST_BINS = 1 << 18
"""Over all stretches; 16 bytes each, 4 MB."""

_DROPPED_BITS = 52 - 20
"""Of a float64's mantissa, at first."""


@dataclass(frozen=True)
class Stretch:
    """Runs that followed one another: `values_ms (v,) float64` ascending, `counts (v,) int64`."""

    values_ms: F64
    counts: I64

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    def order(self, rank: int) -> float:
        """The value of that rank, 0 for the least."""
        return float(self.values_ms[np.searchsorted(np.cumsum(self.counts), rank, side="right")])

    def percentile(self, q: float) -> float:
        """As numpy's: linear between the two nearest runs."""
        place = q / 100 * (self.count - 1)
        low = int(place)
        below = self.order(low)
        share = place - low
        return below + share * (self.order(low + 1) - below) if share else below


@dataclass(frozen=True)
class Latencies:
    """All runs, in order by stretch. `resolution` is a bin's width over its value; count, mean and
    extremes are exact. `memory` is how many of them tell as much as an independent one, where that
    is known, as of a queue."""

    stretches: tuple[Stretch, ...]
    count: int
    mean_ms: float
    min_ms: float
    max_ms: float
    resolution: float
    memory: float = 1.0

    @property
    def all(self) -> Stretch:
        return pool_stretches(self.stretches)

    def parts(self, number: int) -> list[Stretch]:
        """About equal parts in order; fewer where there are fewer runs."""
        cuts = np.array_split(np.arange(len(self.stretches)), min(number, len(self.stretches)))
        return [pool_stretches([self.stretches[i] for i in cut]) for cut in cuts]


def pool_stretches(stretches: Sequence[Stretch]) -> Stretch:
    """Several stretches as one."""
    if len(stretches) == 1:
        return stretches[0]
    return _counted(
        np.concatenate([s.values_ms for s in stretches]),
        np.concatenate([s.counts for s in stretches]),
    )


class LatencyRecorder:
    """Takes latencies in nanoseconds, one after the other; `latencies()` says what came so far."""

    def __init__(self) -> None:
        self._open = array("q")
        self._per = _FIRST_STRETCH
        self._until = _FIRST_STRETCH * _MOST_STRETCHES
        self._stretches: list[Stretch] = []
        self._dropped = _DROPPED_BITS
        self._count, self._sum_ns = 0, 0
        self._least_ns, self._most_ns = 0, 0

    def __len__(self) -> int:
        return self._count

    def add(self, ns: int) -> None:
        self._least_ns = min(self._least_ns, ns) if self._count else ns
        self._most_ns = max(self._most_ns, ns) if self._count else ns
        self._count += 1
        self._sum_ns += ns
        self._open.append(ns)
        if len(self._open) == self._until:
            self._close()

    def latencies(self) -> Latencies:
        """Of at least one run."""
        per = self._per if self._stretches else _evenly(len(self._open))
        stretches = [*self._stretches, *_cut(self._open, per, self._dropped)]
        return Latencies(
            tuple(stretches),
            sum(stretch.count for stretch in stretches),
            self._sum_ns / self._count / 1e6,
            self._least_ns / 1e6,
            self._most_ns / 1e6,
            2.0 ** (self._dropped - 52),
        )

    def _close(self) -> None:
        done, self._open = self._open, array("q")  # Ctrl-C between two lines counts nothing twice
        self._stretches += _cut(done, self._per, self._dropped)
        if len(self._stretches) >= _MOST_STRETCHES:
            pairs = zip(self._stretches[::2], self._stretches[1::2], strict=True)
            self._stretches = [pool_stretches(pair) for pair in pairs]
            self._per *= 2
        self._until = self._per
        while sum(len(stretch.counts) for stretch in self._stretches) > _MOST_BINS:
            self._dropped += 1
            self._stretches = [
                _counted(_rounded(s.values_ms, self._dropped), s.counts) for s in self._stretches
            ]


def latencies_of(milliseconds: npt.ArrayLike) -> Latencies:
    """Of latencies that are all there, `(n,)` in ms, n at least 1: as a `Recorder` keeps them."""
    ns = np.rint(np.asarray(milliseconds, np.float64) * 1e6)
    return Latencies(
        tuple(_cut(ns, _evenly(len(ns)), _DROPPED_BITS)),
        len(ns),
        float(ns.mean()) / 1e6,
        float(ns.min()) / 1e6,
        float(ns.max()) / 1e6,
        2.0 ** (_DROPPED_BITS - 52),
    )


def latency_percentile(latencies: Latencies, q: float) -> float | None:
    """The q-th percentile in ms; None where fewer than one independent run is expected above it."""
    return latencies.all.percentile(q) if _above(latencies, q) >= 1 else None


def percentile_interval(latencies: Latencies, q: float) -> tuple[float, float] | None:
    """A 95 % interval of the q-th percentile in ms, as wide as the widest of three.

    Order statistics (the binomial's normal approximation) hold for independent runs, of which there
    are as many fewer as the runs have a memory that is known; the spread of
    the percentile over ten and over five parts of the run (batch means, of noise with a memory) sees
    what lasts, as a busy neighbour does. What lasts longer than the run is not seen. None where too
    few independent runs are above it to bound it (p99 wants 369, p99.9 3,689).
    """
    if _above(latencies, q) < _BOUNDED:
        return None
    whole, count, share = latencies.all, latencies.count, q / 100
    middle = whole.percentile(q)
    reach = _Z * math.sqrt(count * share * (1 - share) * latencies.memory)
    low = whole.order(max(0, int(np.floor(count * share - reach)) - 1))
    high = whole.order(min(count - 1, int(np.ceil(count * share + reach))))
    for number, student in _PARTS.items():
        if len(latencies.stretches) >= number:
            found = [part.percentile(q) for part in latencies.parts(number)]
            half = student * float(np.std(found, ddof=1)) / number**_MEMORY
            low, high = min(low, middle - half), max(high, middle + half)
    return max(0.0, low), high


def percentile_name(q: float) -> str:
    """`50.0` -> `p50`, `99.9` -> `p99.9`."""
    return f"p{q:g}"


def _above(latencies: Latencies, q: float) -> float:
    """Independent runs expected above that percentile."""
    return round(latencies.count / latencies.memory * (100 - q) / 100, 9)


def _evenly(count: int) -> int:
    """Runs in a stretch, if all are to make at most the most stretches."""
    return -(-count // _MOST_STRETCHES)


def _cut(ns: npt.ArrayLike, per: int, dropped: int) -> list[Stretch]:
    # A clock that jumped back has no bin of its own.
    values = _rounded(np.maximum(np.asarray(ns, np.float64), 1) / 1e6, dropped)
    parts = [values[start : start + per] for start in range(0, len(values), max(1, per))]
    return [_counted(part, np.ones(len(part), np.int64)) for part in parts]


def _rounded(values: F64, dropped: int) -> F64:
    """To the middle of the bin that keeps all but `dropped` bits of the mantissa."""
    bits = values.view(np.int64) >> dropped
    return ((bits << dropped) + (1 << (dropped - 1))).view(np.float64)


def _counted(values: F64, counts: I64) -> Stretch:
    unique, places = np.unique(values, return_inverse=True)
    return Stretch(unique, np.bincount(places, weights=counts).astype(np.int64))
