"""Histograms of |x - centre|, which is what symmetric INT8 has to represent, and its errors.

Knows numbers only, nothing of networks.
"""

from dataclasses import dataclass

import numpy as np

from .histogram import F64, HALF, Histogram

CLIPPED = 8.0
"""How much an error by clipping counts, as against rounding: it is the same all over a face and
lies on one side, while roundings differ from place to place and thin out in the sums to come.
Half and double move the mean cosine's distance from 1 by 5 % at most (docs/results/int8.md)."""

_SHARES = np.geomspace(0.15, 1.0, 40)


@dataclass(frozen=True)
class Magnitudes:
    """`counts` `(C, B) float64`: bin i of channel c covers |x - centre| in [i, i + 1) * `width[c]`;
    `peak` `(C,)` the largest; `variance` `(C,)` of x."""

    counts: F64
    width: F64
    peak: F64
    variance: F64


@dataclass(frozen=True)
class Moments:
    """Cumulated over the bins, `(C, B + 1)` each: count, sum of |x|, sum of |x| ** 2."""

    m0: F64
    m1: F64
    m2: F64


def magnitudes(seen: Histogram, centre: F64) -> Magnitudes:
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
    return Magnitudes(counts, seen.width, peak, np.maximum(variance, 0.0))


def moments(of: Magnitudes) -> Moments:
    x = (np.arange(of.counts.shape[1]) + 0.5) * of.width[:, None]

    def cumulated(values: F64) -> F64:
        return np.pad(values.cumsum(axis=1), ((0, 0), (1, 0)))

    return Moments(cumulated(of.counts), cumulated(of.counts * x), cumulated(of.counts * x * x))


def error(of: Magnitudes, cumulated: Moments, amax: F64) -> F64:
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
    total: F64 = rounding + CLIPPED * np.maximum(clipping, 0.0)
    return total / np.maximum(m0[:, -1], 1.0)


def best_amax(of: Magnitudes, cumulated: Moments, scale: F64, gain: F64) -> tuple[float, float]:
    """Where to clip after channel c was divided by `scale[c]`, and the error of what is read.

    `gain[c]` is the sum of the squared weights that read channel c.
    """
    top = float((of.peak / scale).max())
    errors = error(of, cumulated, scale * top * _SHARES[:, None]) @ gain
    at = int(np.argmin(errors))
    return top * float(_SHARES[at]), float(errors[at])


def pooled(of: Magnitudes, scale: F64, bins: int = 2048) -> tuple[F64, float]:
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
