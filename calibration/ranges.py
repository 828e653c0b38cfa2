"""Pooled histogram of |x| -> amax, the largest magnitude INT8 will represent (scale = amax / 127).

The methods that look at a tensor alone; `auto`, which looks at what its readers make of it, is in
scales.py. Knows numbers only, nothing of networks.
"""

from collections.abc import Callable

import numpy as np

from .histogram import F64

Method = Callable[[F64, float], float]
"""Counts `(B,)` over [0, largest value] and the width of a bin, above 0 -> amax."""

PERCENTILE = 99.99
"""What share of the values stays inside; NVIDIA's and onnxruntime's calibrators suggest the same."""
LEVELS = 128
"""Magnitudes that INT8 tells apart."""

_CANDIDATES = np.linspace(0.1, 1.0, 91)


def minmax(counts: F64, width: float) -> float:
    """The largest magnitude seen: nothing is clipped."""
    return len(counts) * width


def percentile(counts: F64, width: float, share: float = PERCENTILE) -> float:
    """The magnitude below which `share` % of the values lie."""
    below = np.cumsum(counts) / counts.sum()
    return (int(np.searchsorted(below, share / 100.0)) + 1) * width


def mse(counts: F64, width: float) -> float:
    """The clipping magnitude with the least squared error after rounding to 127 steps."""
    x = (np.arange(len(counts)) + 0.5) * width

    def error(amax: float) -> float:
        step = amax / (LEVELS - 1)
        rounded = np.clip(np.rint(x / step), 0, LEVELS - 1) * step
        return float(counts @ np.square(rounded - x))

    return min((len(counts) * width * float(share) for share in _CANDIDATES), key=error)


def entropy(counts: F64, width: float) -> float:
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
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}
