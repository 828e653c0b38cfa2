"""Percentiles of latencies, with how sure they are. Knows numbers only."""

from statistics import NormalDist

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
SEGMENTS = 10
_T9 = 2.262
"""Student's t for 95 % and nine degrees of freedom: ten segments."""
_Z = NormalDist().inv_cdf(0.975)


def percentile(latencies: F64, q: float) -> float | None:
    """The q-th percentile; None where fewer than one run is expected above it."""
    if len(latencies) * (100 - q) < 100 - 1e-9:
        return None
    return float(np.percentile(latencies, q))


def percentile_interval(latencies: F64, q: float) -> tuple[float, float] | None:
    """A 95 % interval of the q-th percentile, as wide as the wider of two.

    Order statistics (the binomial's normal approximation) hold for independent runs; the spread of
    the percentile over ten stretches of the run sees noise that lasts, as a busy neighbour's does.
    """
    middle = percentile(latencies, q)
    if middle is None:
        return None
    count, share = len(latencies), q / 100
    reach = _Z * float(np.sqrt(count * share * (1 - share)))
    ordered = np.sort(latencies)
    low = float(ordered[max(0, int(np.floor(count * share - reach)) - 1)])
    high = float(ordered[min(count - 1, int(np.ceil(count * share + reach)))])
    if count >= SEGMENTS:
        parts = [np.percentile(part, q) for part in np.array_split(latencies, SEGMENTS)]
        half = _T9 * float(np.std(parts, ddof=1)) / np.sqrt(SEGMENTS)
        low, high = min(low, middle - half), max(high, middle + half)
    return max(0.0, low), high


def name(q: float) -> str:
    """`50.0` -> `p50`, `99.9` -> `p99.9`."""
    return f"p{q:g}"
