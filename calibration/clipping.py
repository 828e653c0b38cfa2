"""Where to clip a tensor: from histograms of |x - shift| to amax, the largest magnitude of INT8.

Symmetric INT8 represents [-amax, amax] in steps of amax / 127. `minmax`, `percentile`, `entropy`
and `mse` look at the tensor alone; `min_error_amax` (method `auto`) minimises the error of what its
readers compute.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..arrays import F64
from . import constants
from .histogram import Histogram


@dataclass(frozen=True)
class AbsHistogram:
    """Magnitudes |x - shift| of a tensor, channel by channel.

    Attributes:
        counts: `(C, B) float64`; bin i of channel c covers [i, i + 1) * `width[c]`.
        width: `(C,) float64`, bin widths.
        peak: `(C,) float64`, the largest magnitude.
        variance: `(C,) float64`, the variance of x.
    """

    counts: F64
    width: F64
    peak: F64
    variance: F64


@dataclass(frozen=True)
class CumulativeMoments:
    """Moments of the magnitudes below each bin's edge, `(C, B + 1) float64` each.

    Attributes:
        m0: Number of values.
        m1: Sum of |x|.
        m2: Sum of |x| ** 2.
    """

    m0: F64
    m1: F64
    m2: F64


def abs_histogram(histogram: Histogram, shift: F64) -> AbsHistogram:
    """Fold a histogram around a shift.

    Args:
        histogram: A tensor's values, C channels.
        shift: `(C,) float64`, whole numbers of bin widths, so that no bin has to be split.
    """
    bins = 2 * constants.HALF_BINS
    offset = np.rint(shift / histogram.width).astype(np.int64)
    place = np.arange(bins) - constants.HALF_BINS - offset[:, None]
    place = np.where(place < 0, -1 - place, place)
    index = place + np.arange(len(offset))[:, None] * bins
    folded = np.bincount(index.ravel(), histogram.counts.ravel(), len(offset) * bins)
    folded = folded.reshape(-1, bins)
    used = np.flatnonzero(folded.any(axis=0))[-1:].sum() + 1  # the bins beyond are empty
    counts = folded[:, :used].astype(np.float64)
    x = (np.arange(bins) - constants.HALF_BINS + 0.5) * histogram.width[:, None]
    total = np.maximum(counts.sum(axis=1), 1.0)
    variance = (histogram.counts * x**2).sum(axis=1) / total - histogram.mean**2
    peak = np.maximum(histogram.high - shift, shift - histogram.low)
    return AbsHistogram(counts, histogram.width, peak, np.maximum(variance, 0.0))


def cumulative_moments(magnitudes: AbsHistogram) -> CumulativeMoments:
    """Count, sum and sum of squares below each bin's edge; bins count with their midpoints.

    Args:
        magnitudes: C channels of B bins.
    """
    counts = magnitudes.counts
    x = (np.arange(counts.shape[1]) + 0.5) * magnitudes.width[:, None]

    def cumulate(values: F64) -> F64:
        return np.pad(values.cumsum(axis=1), ((0, 0), (1, 0)))

    return CumulativeMoments(cumulate(counts), cumulate(counts * x), cumulate(counts * x * x))


def quantization_error(magnitudes: AbsHistogram, moments: CumulativeMoments, amax: F64) -> F64:
    """Mean squared error of clipping at amax and rounding to 127 steps.

    Rounding costs step ** 2 / 12 per value, but never more than the value's own square. Clipping
    counts `CLIPPING_WEIGHT` times.

    Args:
        magnitudes: C channels.
        moments: The cumulative moments of `magnitudes`.
        amax: `(..., C) float64`, above 0.

    Returns:
        `(..., C) float64`.
    """
    m0, m1, m2 = moments.m0, moments.m1, moments.m2
    row = np.arange(len(magnitudes.width))
    # Clipped before the cast: a silent channel's bins are so narrow that int64 overflows.
    edge = np.clip(amax / magnitudes.width, 0, magnitudes.counts.shape[1]).astype(np.int64)
    rounding = np.minimum((amax / 127.0) ** 2 / 12.0 * m0[row, edge], m2[row, edge])
    clipping = (
        (m2[:, -1] - m2[row, edge])
        - 2.0 * amax * (m1[:, -1] - m1[row, edge])
        + amax**2 * (m0[:, -1] - m0[row, edge])
    )
    total: F64 = rounding + constants.CLIPPING_WEIGHT * np.maximum(clipping, 0.0)
    return total / np.maximum(m0[:, -1], 1.0)


def min_error_amax(
    magnitudes: AbsHistogram, moments: CumulativeMoments, scale: F64, gain: F64
) -> tuple[float, float]:
    """The amax with the least error in what the tensor's readers compute.

    Args:
        magnitudes: C channels.
        moments: The cumulative moments of `magnitudes`.
        scale: `(C,) float64`; channel c is divided by `scale[c]` before it is quantized.
        gain: `(C,) float64`; the sum of the squared weights that read channel c.

    Returns:
        amax after scaling, and the error there: the sum over channels of `gain` times the mean
        squared error of the unscaled channel.
    """
    peak = float((magnitudes.peak / scale).max())
    errors = (
        quantization_error(magnitudes, moments, scale * peak * constants.AUTO_SHARES[:, None])
        @ gain
    )
    best = int(np.argmin(errors))
    return peak * float(constants.AUTO_SHARES[best]), float(errors[best])


def pool_channels(magnitudes: AbsHistogram, scale: F64) -> tuple[F64, float]:
    """All channels in one histogram; values are taken as spread evenly within a channel's bin.

    Args:
        magnitudes: C channels.
        scale: `(C,) float64`; channel c is divided by `scale[c]`.

    Returns:
        Counts `(2048,) float64` over [0, largest value], and the bin width.
    """
    peak = float((magnitudes.peak / scale).max(initial=0.0))
    edges = np.linspace(0.0, peak, constants.POOLED_BINS + 1)
    below = np.zeros(constants.POOLED_BINS + 1)
    bins = np.arange(magnitudes.counts.shape[1] + 1)
    for counts, width in zip(magnitudes.counts, magnitudes.width / scale, strict=True):
        below += np.interp(edges, bins * width, np.concatenate([[0.0], counts.cumsum()]))
    below[-1] = magnitudes.counts.sum()  # the largest value's bin reaches beyond the last edge
    return np.diff(below), peak / constants.POOLED_BINS


def _minmax_amax(counts: F64, width: float) -> float:
    """The largest magnitude: nothing is clipped."""
    return len(counts) * width


def _percentile_amax(counts: F64, width: float) -> float:
    """The magnitude below which 99.99 % of the values lie."""
    below = np.cumsum(counts) / counts.sum()
    return (int(np.searchsorted(below, constants.PERCENTILE / 100.0)) + 1) * width


def _mse_amax(counts: F64, width: float) -> float:
    """The amax with the least squared error after rounding to 127 steps."""
    x = (np.arange(len(counts)) + 0.5) * width

    def squared_error(amax: float) -> float:
        step = amax / (constants.LEVELS - 1)
        rounded = np.clip(np.rint(x / step), 0, constants.LEVELS - 1) * step
        return float(counts @ np.square(rounded - x))

    return min(
        (len(counts) * width * float(share) for share in constants.MSE_SHARES), key=squared_error
    )


def _entropy_amax(counts: F64, width: float) -> float:
    """The amax with the least KL divergence between the values and their 128 levels.

    S. Migacz, 8-bit inference with TensorRT, GTC 2017: reference P holds the clipped tail in its
    last bin; Q spreads each level evenly over the bins of P that are not empty. Zeros, of which
    ReLU makes many, need no level: the first bin counts as much as its neighbour.
    """
    counts = np.concatenate([counts[1:2], counts[1:]])
    ends = range(constants.LEVELS, len(counts) + 1, 8)
    return min(ends, key=lambda end: _kl_divergence(counts, end)) * width


def _kl_divergence(counts: F64, end: int) -> float:
    """KL(P, Q) when bins from `end` on are clipped."""
    inside = counts[:end]
    reference = inside.copy()
    reference[-1] += counts[end:].sum()
    level = np.arange(end) * constants.LEVELS // end
    total = np.bincount(level, inside, constants.LEVELS)
    filled = np.bincount(level, inside > 0, constants.LEVELS)
    candidate = np.where(inside > 0, (total / np.maximum(filled, 1))[level], 0.0)
    p, q = reference / reference.sum(), candidate / max(candidate.sum(), 1e-300)
    hit = p > 0
    return float(np.sum(p[hit] * np.log(p[hit] / np.maximum(q[hit], 1e-12))))


# Name -> function of a pooled histogram: counts `(B,)` over [0, largest value], bin width -> amax.
METHODS: dict[str, Callable[[F64, float], float]] = {
    "minmax": _minmax_amax,
    "percentile": _percentile_amax,
    "entropy": _entropy_amax,
    "mse": _mse_amax,
}
