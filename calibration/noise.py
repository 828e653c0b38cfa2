"""What INT8 costs a tensor, channel by channel, from its histograms alone.

Knows numbers only, nothing of networks.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .histogram import BINS, Histogram

F64 = npt.NDArray[np.float64]

CLIPPED = 16.0
"""How much an error by clipping counts, as against rounding: it is the same all over a face and
lies on one side, while roundings differ from place to place and thin out in the sums to come. The
mean cosine hardly moves between 1 and 16; the worst faces gain up to 16, beyond it all lose."""

_SHARES = np.geomspace(0.15, 1.0, 40)


@dataclass(frozen=True)
class Noise:
    """Cumulated moments of a histogram: `m0`, `m1`, `m2` `(C, BINS + 1)` of count, |x|, |x| ** 2."""

    width: F64
    peak: F64
    m0: F64
    m1: F64
    m2: F64

    @property
    def power(self) -> F64:
        """`(C,)`, the mean of x ** 2."""
        power: F64 = self.m2[:, -1] / np.maximum(self.m0[:, -1], 1.0)
        return power


def noise_of(seen: Histogram) -> Noise:
    counts = seen.counts.astype(np.float64)
    x = (np.arange(BINS) + 0.5) * seen.width[:, None]

    def cumulated(values: F64) -> F64:
        return np.pad(values.cumsum(axis=1), ((0, 0), (1, 0)))

    return Noise(
        seen.width, seen.peak, cumulated(counts), cumulated(counts * x), cumulated(counts * x * x)
    )


def error(noise: Noise, amax: F64) -> F64:
    """`(C,)` mean squared error when channel c is clipped at `amax[c]` and rounded to 127 steps.

    Rounding costs step ** 2 / 12, but never more than the values' own square; what clipping costs
    counts `CLIPPED` times.
    """
    at = np.clip((amax / noise.width).astype(np.int64), 0, BINS)
    row = np.arange(len(at))
    m0, m1, m2 = noise.m0[row, at], noise.m1[row, at], noise.m2[row, at]
    rounding = np.minimum((amax / 127.0) ** 2 / 12.0 * m0, m2)
    clipping = (
        (noise.m2[:, -1] - m2)
        - 2.0 * amax * (noise.m1[:, -1] - m1)
        + amax**2 * (noise.m0[:, -1] - m0)
    )
    total: F64 = (rounding + CLIPPED * np.maximum(clipping, 0.0)) / np.maximum(noise.m0[:, -1], 1.0)
    return total


def best_share(noise: Noise, scale: F64, gain: F64) -> tuple[float, float]:
    """The share of the largest scaled magnitude at which to clip, and the error of what is read.

    Channel c is divided by `scale[c]`; `gain[c]` is the sum of the squared weights that read it.
    """
    top = float((noise.peak / scale).max())
    errors = [float(gain @ error(noise, scale * top * share)) for share in _SHARES]
    at = int(np.argmin(errors))
    return float(_SHARES[at]), errors[at]
