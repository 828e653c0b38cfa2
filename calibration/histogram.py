"""Running histograms, one per channel of a tensor: all that calibration keeps of activations.

Memory does not grow with the number of faces: a channel has a fixed number of bins, and its bin
width doubles when a larger value comes. Widths are powers of two, so two halves of the faces
merged give exactly the whole. Knows numbers only, nothing of networks.
"""

from dataclasses import dataclass

import numpy as np

from ..arrays import F32, F64, I32, U32

HALF = 512
"""Bins on either side of zero. A channel that fills its tensor's range has at least two bins to an
INT8 step."""

MOST_FACES = 100_000
"""So many at 112x112 that no count passes 32 bits."""

_BLOCK_VALUES, _BLOCK_CHANNELS = 1 << 15, 64
"""So many values, and bins of so many channels, fit a core's cache."""

_LOG_HALF = 9

_SMALLEST = -100
"""log2 of the smallest bin width; what lies below counts as zero."""


@dataclass(frozen=True)
class Histogram:
    """A tensor's values, channel by channel.

    `counts` `(C, 2 * HALF) uint32`; bin i of channel c covers [i - HALF, i - HALF + 1) *
    2 ** `exponent[c]`; `low`, `high` `(C,)` the extremes; `total` `(C,)` the sum.
    """

    counts: U32
    exponent: I32
    low: F64
    high: F64
    total: F64

    @property
    def width(self) -> F64:
        """`(C,)`, each channel's bin width."""
        return np.exp2(self.exponent.astype(np.float64))

    @property
    def mean(self) -> F64:
        """`(C,)`."""
        mean: F64 = self.total / np.maximum(self.counts.sum(axis=1, dtype=np.int64), 1)
        return mean


def empty(channels: int) -> Histogram:
    return Histogram(
        np.zeros((channels, 2 * HALF), np.uint32),
        np.full(channels, _SMALLEST, np.int32),
        np.zeros(channels),
        np.zeros(channels),
        np.zeros(channels),
    )


def add(seen: Histogram, values: F32) -> Histogram:
    """Count the values `(N, C, ...)` into `seen`, and return it.

    Raises ValueError where one is not finite; what came before it may have been counted.
    """
    channels = values.shape[1]
    rows = np.moveaxis(values, 1, 0)
    # A block's values and bins stay in the cache from the first step to the last.
    size = max(1, min(_BLOCK_CHANNELS, _BLOCK_VALUES * channels // max(values.size, 1)))
    for start in range(0, channels, size):
        part = slice(start, start + size)
        x = np.ascontiguousarray(rows[part])
        x = x.reshape(len(x), -1)
        low = np.minimum(seen.low[part], x.min(axis=1))
        high = np.maximum(seen.high[part], x.max(axis=1))
        if not np.isfinite(high - low).all():
            raise ValueError("a value is not finite")
        exponent = np.maximum(seen.exponent[part], _exponent(np.maximum(high, -low)))
        seen.counts[part] = _widened(seen.counts[part], exponent - seen.exponent[part])
        seen.counts[part] += _counted(x, exponent)
        seen.low[part], seen.high[part], seen.exponent[part] = low, high, exponent
        seen.total[part] += x.sum(axis=1, dtype=np.float64)
    return seen


def _counted(x: F32, exponent: I32) -> U32:
    """The counts of `(C, V)` values, `(C, 2 * HALF)`."""
    place = x * np.exp2(-exponent.astype(np.float32))[:, None]
    # Adding HALF before rounding down would push values just below zero over it.
    np.floor(place, out=place)
    place += np.arange(HALF, 2 * HALF * len(x), 2 * HALF, dtype=np.float32)[:, None]
    index = place.astype(np.int32).ravel()
    counts = np.bincount(index, minlength=len(x) * 2 * HALF)
    return counts.reshape(-1, 2 * HALF).astype(np.uint32)


def merge(first: Histogram, second: Histogram) -> Histogram:
    """The histogram of both: what one pass over all their values would have given."""
    exponent = np.maximum(first.exponent, second.exponent)
    return Histogram(
        _widened(first.counts, exponent - first.exponent)
        + _widened(second.counts, exponent - second.exponent),
        exponent,
        np.minimum(first.low, second.low),
        np.maximum(first.high, second.high),
        first.total + second.total,
    )


def middle(seen: Histogram) -> F64:
    """`(C,)`, halfway between each channel's extremes, as a whole number of bin widths."""
    halfway: F64 = np.rint((seen.low + seen.high) / 2.0 / seen.width) * seen.width
    return halfway


def _exponent(peak: F64) -> I32:
    """The smallest power of two for which `peak` falls inside the last bin."""
    power = np.frexp(peak)[1]  # peak < 2 ** power
    return np.where(peak > 0.0, power - _LOG_HALF, _SMALLEST).astype(np.int32)


def _widened(counts: U32, steps: I32) -> U32:
    """The counts in bins 2 ** `steps` as wide: neighbours fall together, on each side of zero for
    itself."""
    if not steps.any():
        return counts
    steps = np.minimum(steps, _LOG_HALF)
    out = np.zeros_like(counts)
    for step in np.unique(steps):
        rows = steps == step
        folded = counts[rows].reshape(-1, (2 * HALF) >> step, 1 << step).sum(axis=2)
        start = HALF - folded.shape[1] // 2
        out[rows, start : start + folded.shape[1]] = folded
    return out
