"""95 % intervals of the TAR of templates, whose people a protocol does not name.

IJB lists pairs of templates. Genuine pairs link the templates of one person, and so show whose they
are; the rest is as for faces (`intervals`).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..arrays import F32, F64, I64
from .intervals import MIN_ACCEPTED, tar_interval
from .person_variance import MIN_PEOPLE, REFUSED, Ends, PeoplePairs, far_error, share_design
from .score_intervals import share_logit
from .verification import ScoreList, allowed_impostors, threshold_at_far


def template_intervals(
    scores: F32 | F64,
    same: npt.NDArray[np.bool_],
    first: I64,
    second: I64,
    fars: Sequence[float],
) -> dict[float, Ends]:
    """95 % intervals of the TAR of listed pairs of templates, with other people.

    Templates that genuine pairs link are of one person; one without any counts as a person.

    Args:
        scores: Cosines of P pairs, `(P,)`.
        same: Whether each pair is of one person, `(P,) bool`.
        first: First template of each pair, `(P,) int64`, 0 to T - 1.
        second: Second template of each pair, `(P,) int64`.
        fars: False accept rates, 0 to 1.

    Returns:
        `(low, high)`, fractions, of each rate that `MIN_ACCEPTED` impostor pairs hold. Empty with
        fewer than `MIN_PEOPLE` people who have a genuine pair.
    """
    listed = ScoreList(scores[same], scores[~same])
    resolved = [
        far for far in fars if allowed_impostors(far, listed.impostor_pairs) >= MIN_ACCEPTED
    ]
    count = 1 + int(max(first.max(initial=0), second.max(initial=0)))
    person = _linked(first[same], second[same], count)
    faces = np.bincount(person).astype(np.float64)
    genuine = PeoplePairs(first[same], second[same], person, faces)
    if (genuine.pairs > 0).sum() < MIN_PEOPLE:
        return {}
    often_refused = listed.genuine > np.quantile(listed.genuine, REFUSED)
    intervals = {}
    for far in resolved:
        threshold = _threshold(listed, far)
        accepted = (listed.genuine >= threshold).astype(np.float64)
        design = share_design(accepted, often_refused.astype(np.float64), genuine)
        above = np.flatnonzero(~same)[listed.impostor >= threshold]
        error = far_error(person[first[above]], person[second[above]], faces)
        tar, slope = float(accepted.mean()), _slope(listed, far)
        intervals[far] = tar_interval(tar, design, slope, error, genuine)
    return intervals


def _linked(first: I64, second: I64, count: int) -> I64:
    """The person of each of `count` templates, `(T,)`, 0 to P - 1: the same for linked ones."""
    group = np.arange(count)
    while True:
        lowest = np.minimum(group[first], group[second])
        linked = group.copy()
        for end in (first, second):
            np.minimum.at(linked, end, lowest)
            np.minimum.at(linked, group[end], lowest)
        linked = linked[linked]
        if np.array_equal(linked, group):
            return np.unique(group, return_inverse=True)[1].astype(np.int64)
        group = linked


def _threshold(scores: ScoreList, far: float) -> float:
    threshold = threshold_at_far(scores, min(1.0, far))
    return float("inf") if threshold is None else threshold


def _slope(scores: ScoreList, far: float) -> float:
    """Of logit TAR over log FAR."""
    logits = []
    for times in (0.5, 2.0):
        share = float((scores.genuine >= _threshold(scores, far * times)).mean())
        logits.append(share_logit(share, scores.genuine_pairs))
    return max(0.0, (logits[1] - logits[0]) / float(np.log(4)))
