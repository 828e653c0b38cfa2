"""Where a false accept rate puts the threshold, and what true accepts other people should lose there.

Knows scores only: cosines of genuine and of impostor pairs, by two models.
"""

import numpy as np

from .histogram import F32, F64

_TAIL, _HELD_BY = (1, 2, 4, 8), 20
"""Times the rate; impostor pairs above a threshold for it to be more than these few people's."""


def likely_drop(
    far: float, old: F32, old_impostors: F32, new: F32, new_impostors: F32
) -> tuple[float, float]:
    """The loss of true accepts at `far` and its standard error, from all pairs near the threshold.

    Counting pairs that crossed it moves by one of them at a time. Here each counts by a smooth step,
    `tanh`, as wide as genuine scores scatter, and the sum is scaled by how many pairs lie at the
    threshold itself (the density of a step half as wide). The threshold moves as it does in the mean
    of `_TAIL` rates that enough impostors hold. A fraction of the variance for little bias
    (docs/results/int8.md). Pairs are taken for independent: the error is a lower bound.
    """
    first = max(far, _HELD_BY / len(old_impostors))
    moved = [
        threshold(new_impostors, rate) - threshold(old_impostors, rate)
        for rate in (first * times for times in _TAIL)
        if rate < 1.0
    ]
    width = float(old.std()) or 1.0
    before = (old.astype(np.float64) - threshold(old_impostors, far)) / width
    after = before + (new.astype(np.float64) - old - (np.mean(moved) if moved else 0.0)) / width
    lost = (np.tanh(before) - np.tanh(after)) / 2 * _density(before, 0.5) / _density(before, 1.0)
    error = float(lost.std(ddof=1)) / np.sqrt(len(lost)) if len(lost) > 1 else 1.0
    return float(lost.mean()), error


def _density(margins: F64, width: float) -> float:
    """Of margins at 0, seen through a step of that width."""
    return float((1 - np.tanh(margins / width) ** 2).mean()) / width or 1e-12


def threshold(impostors: F32, far: float) -> float:
    """The lowest threshold that accepts at most `far` of the impostors."""
    allowed = int(far * len(impostors) * (1 + 1e-9))
    if allowed >= len(impostors):
        return -1.0
    highest_refused = np.partition(impostors, len(impostors) - allowed - 1)[-allowed - 1]
    return float(np.nextafter(highest_refused, np.float32(2.0)))
