"""Running histograms of |x|, one per channel of a tensor: all that calibration keeps of activations.

Memory does not grow with the number of faces: a channel has a fixed number of bins, and its bin
width doubles when a larger value comes. Widths are powers of two, so two halves of the faces
merged give exactly the whole. Knows numbers only, nothing of networks.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BINS = 512
"""Per channel. A channel that fills its tensor's range has over two bins to an INT8 step."""

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_SMALLEST = -100
"""log2 of the smallest bin width; what lies below counts as zero."""


@dataclass(frozen=True)
class Histogram:
    """A tensor's values, channel by channel.

    `counts` `(C, BINS) int64`; bin i of channel c covers |x| in [i, i + 1) * 2 ** `exponent[c]`;
    `peak` `(C,)` largest |x|; `total` `(C,)` sum of x (signed).
    """

    counts: I64
    exponent: npt.NDArray[np.int32]
    peak: F64
    total: F64

    @property
    def width(self) -> F64:
        """`(C,)`, each channel's bin width."""
        return np.exp2(self.exponent.astype(np.float64))

    @property
    def mean(self) -> F64:
        """`(C,)`, the mean of x (signed)."""
        mean: F64 = self.total / np.maximum(self.counts.sum(axis=1), 1)
        return mean


def empty(channels: int) -> Histogram:
    return Histogram(
        np.zeros((channels, BINS), np.int64),
        np.full(channels, _SMALLEST, np.int32),
        np.zeros(channels),
        np.zeros(channels),
    )


def add(seen: Histogram, values: npt.NDArray[np.float32]) -> Histogram:
    """`seen` and the values `(N, C, ...)`, which must be finite."""
    x = np.ascontiguousarray(np.moveaxis(values, 1, 0)).reshape(values.shape[1], -1)
    total = x.sum(axis=1, dtype=np.float64)
    np.abs(x, out=x)
    peak = x.max(axis=1).astype(np.float64)
    exponent = _exponent(np.maximum(peak, seen.peak), seen.exponent)
    x *= np.exp2(-exponent.astype(np.float32))[:, None]
    index = x.astype(np.int32)
    index += np.arange(len(index), dtype=np.int32)[:, None] * BINS
    fresh = np.bincount(index.ravel(), minlength=len(index) * BINS).reshape(-1, BINS)
    return Histogram(
        _widened(seen, exponent) + fresh, exponent, np.maximum(peak, seen.peak), seen.total + total
    )


def merge(first: Histogram, second: Histogram) -> Histogram:
    """The histogram of both: what one pass over all their values would have given."""
    exponent = np.maximum(first.exponent, second.exponent)
    return Histogram(
        _widened(first, exponent) + _widened(second, exponent),
        exponent,
        np.maximum(first.peak, second.peak),
        first.total + second.total,
    )


def pooled(seen: Histogram, scale: F64, bins: int = 2048) -> tuple[F64, float]:
    """All channels in one histogram after dividing channel c by `scale[c]`.

    Returns counts `(bins,) float64` over [0, largest value] and the bin width. Within a channel's
    bin, values are taken as spread evenly.
    """
    width = seen.width / scale
    top = float((seen.peak / scale).max(initial=0.0))
    if top == 0.0:
        return np.concatenate([[float(seen.counts.sum())], np.zeros(bins - 1)]), 0.0
    edges = np.linspace(0.0, top, bins + 1)
    below = np.zeros(bins + 1)
    for counts, w in zip(seen.counts, width, strict=True):
        below += np.interp(edges, np.arange(BINS + 1) * w, np.concatenate([[0], counts.cumsum()]))
    return np.diff(below), top / bins


def _exponent(peak: F64, least: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The smallest power of two for which `peak` falls inside the last bin."""
    _, power = np.frexp(peak)  # peak < 2 ** power
    needed = np.where(peak > 0.0, power - int(np.log2(BINS)), _SMALLEST)
    return np.maximum(least, needed).astype(np.int32)


def _widened(seen: Histogram, exponent: npt.NDArray[np.int32]) -> I64:
    """The counts in wider bins: neighbours fall together."""
    steps = np.minimum(exponent - seen.exponent, int(np.log2(BINS)))
    if not steps.any():
        return seen.counts
    out = np.zeros_like(seen.counts)
    for step in np.unique(steps):
        rows = steps == step
        if step == int(np.log2(BINS)):
            out[rows, 0] = seen.counts[rows].sum(axis=1)
        else:
            folded = seen.counts[rows].reshape(-1, BINS >> step, 1 << step).sum(axis=2)
            out[rows, : folded.shape[1]] = folded
    return out
