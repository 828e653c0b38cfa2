"""Running histograms of activations, one per channel: all that calibration keeps of a tensor.

Memory does not grow with the number of faces: a channel has a fixed number of bins, and its bin
width doubles when a larger value arrives. Widths are powers of two, so the counts do not depend on
how the values were split into batches.
"""

from dataclasses import dataclass

import numpy as np

from ..arrays import F32, F64, I32, U32
from . import constants


@dataclass(frozen=True)
class Histogram:
    """A tensor's values, channel by channel.

    Attributes:
        counts: `(C, 2 * HALF_BINS) uint32`; bin i of channel c covers
            [i - HALF_BINS, i - HALF_BINS + 1) * 2 ** `exponent[c]`.
        exponent: `(C,) int32`, log2 of each channel's bin width.
        low: `(C,) float64`, the smallest value, at most 0.
        high: `(C,) float64`, the largest value, at least 0.
        total: `(C,) float64`, the sum of the values.
    """

    counts: U32
    exponent: I32
    low: F64
    high: F64
    total: F64

    @property
    def width(self) -> F64:
        """`(C,) float64`, each channel's bin width."""
        return np.exp2(self.exponent.astype(np.float64))

    @property
    def mean(self) -> F64:
        """`(C,) float64`, each channel's mean; 0 where no value was counted."""
        mean: F64 = self.total / np.maximum(self.counts.sum(axis=1, dtype=np.int64), 1)
        return mean


def empty_histogram(channels: int) -> Histogram:
    """A histogram without values.

    Args:
        channels: Number of channels C.
    """
    return Histogram(
        np.zeros((channels, 2 * constants.HALF_BINS), np.uint32),
        np.full(channels, constants.MIN_EXPONENT, np.int32),
        np.zeros(channels),
        np.zeros(channels),
        np.zeros(channels),
    )


def add_values(histogram: Histogram, values: F32) -> Histogram:
    """Count values into a histogram, in place.

    Args:
        histogram: Changed by the call.
        values: `(N, C, ...) float32`.

    Returns:
        `histogram` itself.

    Raises:
        ValueError: A value is not finite; channels before its own may have been counted.
    """
    channels = values.shape[1]
    rows = np.moveaxis(values, 1, 0)
    # A block's values and bins stay in the cache from the first operation to the last.
    size = max(
        1, min(constants.BLOCK_CHANNELS, constants.BLOCK_VALUES * channels // max(values.size, 1))
    )
    for start in range(0, channels, size):
        part = slice(start, start + size)
        x = np.ascontiguousarray(rows[part])
        x = x.reshape(len(x), -1)
        low, high, exponent = histogram.low[part], histogram.high[part], histogram.exponent[part]
        lowest, highest = x.min(axis=1), x.max(axis=1)
        if not ((lowest >= low) & (highest <= high)).all():  # rare after the first batches
            low, high = np.minimum(low, lowest), np.maximum(high, highest)
            if not np.isfinite(high - low).all():
                raise ValueError("a value is not finite")
            exponent = np.maximum(exponent, _bin_exponent(np.maximum(high, -low)))
            doublings = exponent - histogram.exponent[part]
            if doublings.any():
                histogram.counts[part] = _widen_bins(histogram.counts[part], doublings)
                histogram.exponent[part] = exponent
            histogram.low[part], histogram.high[part] = low, high
        histogram.counts[part] += _count(x, exponent)
        histogram.total[part] += x.sum(axis=1, dtype=np.float64)
    return histogram


def channel_midpoints(histogram: Histogram) -> F64:
    """Halfway between each channel's extremes, rounded to a whole number of bin widths.

    Args:
        histogram: A tensor's values.

    Returns:
        `(C,) float64`.
    """
    width = histogram.width
    midpoints: F64 = np.rint((histogram.low + histogram.high) / 2.0 / width) * width
    return midpoints


def _count(x: F32, exponent: I32) -> U32:
    """The counts `(C, 2 * HALF_BINS)` of values `(C, V)`."""
    place = x * np.exp2(-exponent.astype(np.float32))[:, None]
    # Adding constants.HALF_BINS before rounding down would move values just below zero to its other side.
    np.floor(place, out=place)
    offsets = np.arange(
        constants.HALF_BINS,
        2 * constants.HALF_BINS * len(x),
        2 * constants.HALF_BINS,
        dtype=np.float32,
    )
    place += offsets[:, None]
    index = place.astype(np.int32).ravel()
    counts = np.bincount(index, minlength=len(x) * 2 * constants.HALF_BINS)
    return counts.reshape(-1, 2 * constants.HALF_BINS).astype(np.uint32)


def _bin_exponent(peak: F64) -> I32:
    """log2 of the smallest bin width for which `peak` falls inside the last bin."""
    power = np.frexp(peak)[1]  # peak < 2 ** power
    return np.where(
        peak > 0.0, power - int(np.log2(constants.HALF_BINS)), constants.MIN_EXPONENT
    ).astype(np.int32)


def _widen_bins(counts: U32, doublings: I32) -> U32:
    """The counts in bins 2 ** `doublings[c]` as wide; each side of zero keeps its own bins."""
    doublings = np.minimum(doublings, int(np.log2(constants.HALF_BINS)))
    out = np.zeros_like(counts)
    for power in np.unique(doublings):
        rows = doublings == power
        folded = (
            counts[rows].reshape(-1, (2 * constants.HALF_BINS) >> power, 1 << power).sum(axis=2)
        )
        start = constants.HALF_BINS - folded.shape[1] // 2
        out[rows, start : start + folded.shape[1]] = folded
    return out
