"""Histograms of |x - centre|, which is what symmetric INT8 has to represent, and its errors.

Knows numbers only, nothing of networks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..arrays import F64
from .histogram import HALF, Histogram

CLIPPING_WEIGHT = 8.0
"""How much an error by clipping counts, as against rounding: it is the same all over a face and
lies on one side, while roundings differ from place to place and thin out in the sums to come.
Half and double move the mean cosine's distance from 1 by 5 % at most (docs/results/int8.md)."""

_SHARES = np.geomspace(0.15, 1.0, 40)


@dataclass(frozen=True)
class AbsHistogram:
    """`counts` `(C, B) float64`: bin i of channel c covers |x - centre| in [i, i + 1) * `width[c]`;
    `peak` `(C,)` the largest; `variance` `(C,)` of x."""

    counts: F64
    width: F64
    peak: F64
    variance: F64


@dataclass(frozen=True)
class CumulativeMoments:
    """Cumulated over the bins, `(C, B + 1)` each: count, sum of |x|, sum of |x| ** 2."""

    m0: F64
    m1: F64
    m2: F64


def abs_histogram(seen: Histogram, centre: F64) -> AbsHistogram:
    """`centre` `(C,)` is a whole number of bin widths, so that nothing is counted by halves."""
    bins = 2 * HALF
    shift = np.rint(centre / seen.width).astype(np.int64)
    place = np.arange(bins) - HALF - shift[:, None]
    place = np.where(place < 0, -1 - place, place)
    index = place + np.arange(len(shift))[:, None] * bins
    folded = np.bincount(index.ravel(), seen.counts.ravel(), len(shift) * bins)
    folded = folded.reshape(-1, bins)
    used = np.flatnonzero(folded.any(axis=0))[-1:].sum() + 1  # beyond, all are empty
    counts = folded[:, :used].astype(np.float64)
    x = (np.arange(bins) - HALF + 0.5) * seen.width[:, None]
    total = np.maximum(counts.sum(axis=1), 1.0)
    variance = (seen.counts * x**2).sum(axis=1) / total - seen.mean**2
    peak = np.maximum(seen.high - centre, centre - seen.low)
    return AbsHistogram(counts, seen.width, peak, np.maximum(variance, 0.0))


def cumulative_moments(of: AbsHistogram) -> CumulativeMoments:
    x = (np.arange(of.counts.shape[1]) + 0.5) * of.width[:, None]

    def cumulated(values: F64) -> F64:
        return np.pad(values.cumsum(axis=1), ((0, 0), (1, 0)))

    return CumulativeMoments(
        cumulated(of.counts), cumulated(of.counts * x), cumulated(of.counts * x * x)
    )


def error(of: AbsHistogram, cumulated: CumulativeMoments, amax: F64) -> F64:
    """`(..., C)` mean squared error when channel c is clipped at `amax[..., c]` and rounded to 127
    steps.

    Rounding costs step ** 2 / 12, but never more than the values' own square; what clipping costs
    counts `CLIPPED` times.
    """
    m0, m1, m2 = cumulated.m0, cumulated.m1, cumulated.m2
    row = np.arange(len(of.width))
    at = np.clip((amax / of.width).astype(np.int64), 0, of.counts.shape[1])
    rounding = np.minimum((amax / 127.0) ** 2 / 12.0 * m0[row, at], m2[row, at])
    clipping = (
        (m2[:, -1] - m2[row, at])
        - 2.0 * amax * (m1[:, -1] - m1[row, at])
        + amax**2 * (m0[:, -1] - m0[row, at])
    )
    total: F64 = rounding + CLIPPING_WEIGHT * np.maximum(clipping, 0.0)
    return total / np.maximum(m0[:, -1], 1.0)


def best_amax(
    of: AbsHistogram, cumulated: CumulativeMoments, scale: F64, gain: F64
) -> tuple[float, float]:
    """Where to clip after channel c was divided by `scale[c]`, and the error of what is read.

    `gain[c]` is the sum of the squared weights that read channel c.
    """
    top = float((of.peak / scale).max())
    errors = error(of, cumulated, scale * top * _SHARES[:, None]) @ gain
    at = int(np.argmin(errors))
    return top * float(_SHARES[at]), float(errors[at])


def pool_channels(of: AbsHistogram, scale: F64, bins: int = 2048) -> tuple[F64, float]:
    """All channels in one histogram after dividing channel c by `scale[c]`.

    Returns counts `(bins,) float64` over [0, largest value] and the bin width. Within a channel's
    bin, values are taken as spread evenly.
    """
    top = float((of.peak / scale).max(initial=0.0))
    edges = np.linspace(0.0, top, bins + 1)
    below = np.zeros(bins + 1)
    steps = np.arange(of.counts.shape[1] + 1)
    for counts, width in zip(of.counts, of.width / scale, strict=True):
        below += np.interp(edges, steps * width, np.concatenate([[0.0], counts.cumsum()]))
    below[-1] = of.counts.sum()  # the bin of the largest value reaches beyond it
    return np.diff(below), top / bins


# Pooled histogram of |x| -> amax, the largest magnitude INT8 will represent (scale = amax / 127).
#
# The methods that look at a tensor alone; `auto`, which looks at what its readers make of it, is in
# scales.py. Knows numbers only, nothing of networks.

Method = Callable[[F64, float], float]
"""Counts `(B,)` over [0, largest value] and the width of a bin, above 0 -> amax."""

PERCENTILE = 99.99
"""What share of the values stays inside; NVIDIA's and onnxruntime's calibrators suggest the same."""

LEVELS = 128
"""Magnitudes that INT8 tells apart."""

_CANDIDATES = np.linspace(0.1, 1.0, 91)


def minmax_amax(counts: F64, width: float) -> float:
    """The largest magnitude seen: nothing is clipped."""
    return len(counts) * width


def percentile_amax(counts: F64, width: float, share: float = PERCENTILE) -> float:
    """The magnitude below which `share` % of the values lie."""
    below = np.cumsum(counts) / counts.sum()
    return (int(np.searchsorted(below, share / 100.0)) + 1) * width


def mse_amax(counts: F64, width: float) -> float:
    """The clipping magnitude with the least squared error after rounding to 127 steps."""
    x = (np.arange(len(counts)) + 0.5) * width

    def error(amax: float) -> float:
        step = amax / (LEVELS - 1)
        rounded = np.clip(np.rint(x / step), 0, LEVELS - 1) * step
        return float(counts @ np.square(rounded - x))

    return min((len(counts) * width * float(share) for share in _CANDIDATES), key=error)


def entropy_amax(counts: F64, width: float) -> float:
    """The clipping magnitude with the least KL divergence between values and their 128 levels.

    S. Migacz, 8-bit inference with TensorRT, GTC 2017: reference P holds the clipped tail in its
    last bin; Q spreads each level evenly over the bins of P that are not empty. Zeros, of which
    ReLU makes many, need no level: the first bin counts as much as its neighbour.
    """
    counts = np.concatenate([counts[1:2], counts[1:]])
    ends = range(LEVELS, len(counts) + 1, 8)
    return min(ends, key=lambda end: _divergence(counts, end)) * width


def _divergence(counts: F64, end: int) -> float:
    inside = counts[:end]
    reference = inside.copy()
    reference[-1] += counts[end:].sum()
    level = np.arange(end) * LEVELS // end
    total = np.bincount(level, inside, LEVELS)
    filled = np.bincount(level, inside > 0, LEVELS)
    candidate = np.where(inside > 0, (total / np.maximum(filled, 1))[level], 0.0)
    p, q = reference / reference.sum(), candidate / max(candidate.sum(), 1e-300)
    hit = p > 0
    return float(np.sum(p[hit] * np.log(p[hit] / np.maximum(q[hit], 1e-12))))


METHODS: dict[str, Method] = {
    "minmax": minmax_amax,
    "percentile": percentile_amax,
    "entropy": entropy_amax,
    "mse": mse_amax,
}
