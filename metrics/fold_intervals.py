"""95 % intervals of TAR where a pair list does not say who is who: over its folds.

The folds of a protocol such as LFW's share no person, so they are independent samples of people.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..arrays import F32, F64, I64
from .accuracy import MIN_FOLDS
from .intervals import MIN_ACCEPTED, TarInterval
from .person_variance import score_interval, student_t
from .verification import ScoreList, allowed_impostors, tar_at_far


def fold_intervals(
    reference: F32 | F64,
    engine: F32 | F64,
    same: npt.NDArray[np.bool_],
    fold: I64,
    fars: Sequence[float],
) -> dict[float, TarInterval]:
    """95 % intervals of two networks' TAR and of its change over the folds of a pair list.

    The grouped jackknife (Miller, 1974): TAR at the FAR is found again without each fold, so that
    the errors of both thresholds are part of it. A change counts as at least one genuine pair.

    Args:
        reference: Cosines of P pairs by the reference, `(P,)`.
        engine: Cosines of the same pairs by the engine, `(P,)`.
        same: Whether each pair is of one person, `(P,) bool`.
        fold: Fold of each pair, `(P,) int64`.
        fars: False accept rates, 0 to 1.

    Returns:
        The intervals of each rate that `MIN_ACCEPTED` impostor pairs hold. Empty with fewer than
        `MIN_FOLDS` folds.
    """
    numbers = np.unique(fold)
    count, genuine, impostor = len(numbers), int(same.sum()), int((~same).sum())
    if count < MIN_FOLDS or not genuine:
        return {}
    quantile = student_t(count - 1)
    intervals = {}
    for far in fars:
        if allowed_impostors(far, impostor) < MIN_ACCEPTED:
            continue
        whole = _tars(reference, engine, same, far)
        without = [_tars(*_rows(fold != k, reference, engine, same), far) for k in numbers]
        if whole is None or any(tars is None for tars in without):
            continue
        tars = np.array([*without])
        columns = np.column_stack([tars, tars[:, 1] - tars[:, 0]])
        spread = columns - columns.mean(axis=0)
        variance = (count - 1) / count * (spread**2).sum(axis=0)
        ends = []
        for tar, square in zip(whole, variance, strict=False):
            design = max(1 / genuine, square / (tar * (1 - tar)) if 0 < tar < 1 else 0.0)
            ends.append(score_interval(tar, float(design), quantile=quantile))
        change = whole[1] - whole[0]
        half = quantile * max(float(np.sqrt(variance[2])), 1 / genuine)
        delta = (max(-1.0, change - half), min(1.0, change + half))
        intervals[far] = TarInterval(ends[0], ends[1], delta)
    return intervals


def _rows(
    rows: npt.NDArray[np.bool_],
    reference: F32 | F64,
    engine: F32 | F64,
    same: npt.NDArray[np.bool_],
) -> tuple[F32 | F64, F32 | F64, npt.NDArray[np.bool_]]:
    return reference[rows], engine[rows], same[rows]


def _tars(
    reference: F32 | F64, engine: F32 | F64, same: npt.NDArray[np.bool_], far: float
) -> tuple[float, float] | None:
    """TAR of both networks at a FAR; None where the pairs cannot show it."""
    both = [tar_at_far(ScoreList(s[same], s[~same]), far) for s in (reference, engine)]
    return None if both[0] is None or both[1] is None else (both[0], both[1])
