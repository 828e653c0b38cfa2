"""Histogram of |x| -> amax, the largest magnitude INT8 will represent (scale = amax / 127).

Knows numbers only, nothing of networks.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from .histogram import Histogram

PERCENTILE = 99.99
"""What share of the values stays inside; NVIDIA's and onnxruntime's calibrators suggest the same."""

_CANDIDATES = np.linspace(0.2, 1.0, 81)


def minmax(seen: Histogram) -> float:
    """The largest magnitude seen: nothing is clipped."""
    return seen.peak


def percentile(seen: Histogram) -> float:
    """The magnitude below which 99.99 % of the values lie."""
    share = np.cumsum(seen.counts) / max(1, seen.counts.sum())
    edge = int(np.searchsorted(share, PERCENTILE / 100.0)) + 1
    return min(seen.peak, edge * seen.width)


def mse(seen: Histogram) -> float:
    """The clipping magnitude with the least squared error after rounding to 127 steps."""
    x, weight = seen.centres, seen.counts.astype(np.float64)

    def error(amax: float) -> float:
        step = amax / 127.0
        return float(weight @ np.square(np.clip(np.rint(x / step), 0, 127) * step - x))

    return min((seen.peak * share for share in _CANDIDATES), key=error)


def entropy(seen: Histogram) -> float:
    """The clipping magnitude with the least KL divergence between values and their 128 levels.

    S. Migacz, 8-bit inference with TensorRT, GTC 2017: reference P holds the clipped tail in its
    last bin; Q spreads each level evenly over the bins of P that are not empty.
    """
    used = int(np.flatnonzero(seen.counts)[-1]) + 1 if seen.counts.any() else 0
    if used <= 128:
        return seen.peak
    counts = seen.counts.astype(np.float64)
    # A step of 1/128 of the used range is one level: finer candidates change nothing.
    ends = range(max(128, used // 5), used + 1, max(1, used // 128))
    best = min(ends, key=lambda end: _divergence(counts, end))
    return min(seen.peak, best * seen.width)


def _divergence(counts: npt.NDArray[np.float64], end: int) -> float:
    inside = counts[:end]
    reference = inside.copy()
    reference[-1] += counts[end:].sum()
    level = np.arange(end) * 128 // end
    total = np.bincount(level, inside, 128)
    filled = np.bincount(level, inside > 0, 128)
    candidate = np.where(inside > 0, (total / np.maximum(filled, 1))[level], 0.0)
    p, q = reference / reference.sum(), candidate / max(candidate.sum(), 1.0)
    hit = p > 0
    return float(np.sum(p[hit] * np.log(p[hit] / np.maximum(q[hit], 1e-12))))


METHODS: dict[str, Callable[[Histogram], float]] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}


def amax(seen: Histogram, method: str) -> float:
    """The range of one tensor; raises UsageError for an unknown method.

    A tensor that is always zero gets 1.0, which represents it exactly.
    """
    if method not in METHODS:
        raise UsageError(
            f"no calibration method {method!r}", f"methods: auto, {', '.join(METHODS)}"
        )
    if seen.counts.sum() == seen.counts[0] and seen.peak == 0.0:
        return 1.0
    return METHODS[method](seen)
