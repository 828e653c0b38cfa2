"""Accuracy over the folds of a pair list, and figures by the conventions of published evaluators.

`pair_accuracy` is this package's: folds as the list has them, every threshold tried. insightface
and facenet try 400 fixed thresholds on squared distances and cut folds from the pairs' order
(`insightface_accuracy`); the IJB scripts take TAR at the nearest FAR of the curve, above the wanted
one or below it (`nearest_tar`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..arrays import F32, F64, I64
from .intervals import MIN_ACCEPTED, TarInterval
from .person_variance import MIN_PEOPLE, REFUSED, PeoplePairs, share_design, sum_by_person
from .protocols import FOLDS, PER_FOLD, ListedPairs
from .score_intervals import influence_freedom, score_interval, student_t
from .verification import ScoreList, allowed_impostors, cosines, normalise, tar_at_far

MIN_FOLDS = 3  # fewer give no interval of the accuracy

_FREEDOM_TIMES = (
    2  # people's errors alone tell half: the design effect is drawn to what is expected
)

_THRESHOLDS = np.arange(0, 4, 0.01)  # squared distances that insightface and facenet try


@dataclass(frozen=True)
class Accuracy:
    """Accuracy over folds.

    Attributes:
        mean: Mean over the folds, a fraction.
        std: Population standard deviation over the folds.
        folds: Number of folds. One fold alone is judged at its own best threshold, which is
            optimistic.
    """

    mean: float
    std: float
    folds: int


def fold_accuracy(scores: F32 | F64, same: npt.NDArray[np.bool_], fold: I64) -> list[float]:
    """Accuracy of each fold at the best threshold of the other folds (LFW; Huang et al., 2007).

    Args:
        scores: Cosines of P pairs, `(P,)`.
        same: Whether each pair is of one person, `(P,) bool`.
        fold: Fold of each pair, `(P,) int64`.

    Returns:
        A fraction per fold. One fold alone is judged at its own best threshold.
    """
    numbers = np.unique(fold)
    results = []
    for k in numbers:
        test = fold == k
        others = ~test if len(numbers) > 1 else test
        accepted = scores[test] >= best_threshold(scores[others], same[others])
        results.append(float(np.mean(accepted == same[test])))
    return results


def pair_accuracy(embeddings: F32, pairs: ListedPairs) -> Accuracy:
    """Accuracy over the folds of a pair list, as `fold_accuracy`.

    Args:
        embeddings: `(N, D) float32` of any length, of the faces that the list indexes.
        pairs: The list.
    """
    scores = cosines(embeddings[pairs.first], embeddings[pairs.second])
    return _summary(fold_accuracy(scores, pairs.same, pairs.fold))


def accuracy_interval(
    embeddings: F32, pairs: ListedPairs, labels: I64
) -> tuple[float, float] | None:
    """95 % interval of `pair_accuracy`, with other people.

    A score interval. Genuine pairs have the design effect of their people, impostor pairs their
    variance over dyads of people, both at the threshold that is best for all pairs: where it is
    best, accuracy hardly depends on it. Thresholds found on few people do scatter: the variance is at
    least that of folds that share no person. Student's t has the degrees of freedom of people's
    influences (Welch, 1947; Satterthwaite, 1946).

    Args:
        embeddings: `(N, D) float32` of any length, of the faces that the list indexes.
        pairs: The list.
        labels: Identity of each face, `(N,) int64`.

    Returns:
        `(low, high)`, fractions; None with fewer than `MIN_PEOPLE` people who have a genuine pair.
    """
    person = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    faces = np.bincount(person).astype(np.float64)
    first, second, same = pairs.first, pairs.second, pairs.same
    genuine = PeoplePairs(first[same], second[same], person, faces)
    if (genuine.pairs > 0).sum() < MIN_PEOPLE or same.all():
        return None
    scores = cosines(embeddings[first], embeddings[second])
    folds = fold_accuracy(scores, same, pairs.fold)
    mean = float(np.mean(folds))
    threshold, share = best_threshold(scores, same), float(same.mean())
    accepted = (scores[same] >= threshold).astype(np.float64)
    often_refused = (scores[same] > np.quantile(scores[same], REFUSED)).astype(np.float64)
    design = share_design(accepted, often_refused, genuine)
    wrong = (scores[~same] >= threshold).astype(np.float64)
    refused, false = 1 - float(accepted.mean()), float(wrong.mean())
    errors = share * refused + (1 - share) * false
    if not errors or not mean or mean == 1:
        return score_interval(mean, share * design)
    a, b = person[first[~same]], person[second[~same]]
    of_genuine = share**2 * refused * (1 - refused) * design
    of_impostor = (1 - share) ** 2 * _dyadic_variance(wrong - false, a, b, len(faces))
    variance = of_genuine + of_impostor
    influence = np.bincount(a, wrong - false, len(faces)).astype(np.float64)
    influence += np.bincount(b, wrong - false, len(faces))
    rest = of_genuine**2 / influence_freedom(sum_by_person(accepted - 1 + refused, genuine))
    rest += of_impostor**2 / influence_freedom(influence)
    if not rest:  # the best threshold refuses all pairs, or accepts all
        return score_interval(mean, share * design)
    if len(folds) >= MIN_FOLDS:
        variance = max(variance, float(np.var(folds)) / (len(folds) - 1))
    quantile = student_t(max(1, int(_FREEDOM_TIMES * variance**2 / rest)))
    return score_interval(mean, variance / (errors * (1 - errors)), quantile=quantile)


def single_fold(folds: int) -> str:
    """Why an accuracy proves nothing.

    Args:
        folds: Of the pair list.

    Returns:
        A sentence; empty with two folds or more.
    """
    if folds > 1:
        return ""
    return "a single fold is judged at its own best threshold, so its accuracy is too high"


def fold_interval(accuracy: Accuracy) -> tuple[float, float] | None:
    """95 % interval of the mean accuracy over folds that share no person, whoever the people are.

    A t interval on the folds' accuracies, which need not be alike (Ibragimov and Mueller, 2010), as
    a score interval. Needs folds of many people each; an error counts as at least half a pair of
    `PER_FOLD` in each fold.

    Args:
        accuracy: Over the folds.

    Returns:
        `(low, high)`, fractions; None with fewer than `MIN_FOLDS` folds.
    """
    count, mean = accuracy.folds, accuracy.mean
    if count < MIN_FOLDS:
        return None
    design = 1 / (2 * PER_FOLD * count)
    if 0 < mean < 1:
        design = max(design, accuracy.std**2 / (count - 1) / (mean * (1 - mean)))
    return score_interval(mean, design, quantile=student_t(count - 1))


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


def best_threshold(scores: F32 | F64, same: npt.NDArray[np.bool_]) -> float:
    """The threshold with the highest accuracy; the middle one of several equally good.

    Args:
        scores: Cosines of P pairs, `(P,)`.
        same: Whether each pair is of one person, `(P,) bool`.
    """
    order = np.argsort(scores, kind="stable")
    values, genuine = scores[order], same[order]
    # right[i]: correct answers when the i lowest are rejected and the others accepted
    right = np.concatenate([[0], np.cumsum(~genuine)]) + np.concatenate(
        [np.cumsum(genuine[::-1])[::-1], [0]]
    )
    best = np.flatnonzero(right == right.max())
    cut = int(best[len(best) // 2])
    if cut == 0:
        return float(values[0])
    if cut == len(values):
        return float(values[-1]) + 1e-6
    return float((values[cut - 1] + values[cut]) / 2)


def insightface_accuracy(first: F32, second: F32, same: npt.NDArray[np.bool_]) -> Accuracy:
    """10-fold accuracy of the LFW family as insightface and facenet compute it.

    The distance is the squared one of unit vectors, a pair is accepted strictly below the
    threshold, and each fold is judged at the first of 400 thresholds that is best on the others.

    Args:
        first: Embeddings `(P, D) float32` of the pairs' first faces, in the protocol's order.
        second: Embeddings `(P, D) float32` of the pairs' second faces.
        same: Whether each pair is of one person, `(P,) bool`.
    """
    difference = normalise(first) - normalise(second)
    distance = np.sum(np.square(difference), axis=1)
    right = np.empty((len(_THRESHOLDS), len(same)), bool)
    for row, threshold in enumerate(_THRESHOLDS):
        right[row] = (distance < threshold) == same
    results = []
    for test in _consecutive_folds(len(same)):
        others = np.ones(len(same), bool)
        others[test] = False
        best = int(np.argmax(right[:, others].mean(axis=1)))
        results.append(float(right[best, test].mean()))
    return _summary(results)


def nearest_tar(
    scores: npt.NDArray[np.floating], same: npt.NDArray[np.bool_], fars: Sequence[float]
) -> list[float]:
    """TAR at FARs as the IJB scripts read it off a ROC curve: at the point with the nearest FAR.

    The curve has a point per distinct score without those on a straight line between their
    neighbours (scikit-learn's `roc_curve`); of two points equally near, the more lenient counts.

    Args:
        scores: Similarities of P pairs, `(P,)`.
        same: Whether each pair is of one person, `(P,) bool`.
        fars: False accept rates, 0 to 1.

    Returns:
        A fraction per rate.
    """
    # Counts fit 32 bits, and arrays are freed early: IJB-C has 15.7 million pairs.
    order = np.argsort(scores, kind="stable")[::-1]
    ordered, genuine_at = scores[order], np.cumsum(same[order], dtype=np.int32)
    del order
    ends = np.append(ordered[1:] != ordered[:-1], True)
    del ordered
    genuine = genuine_at[ends]
    impostor = np.flatnonzero(ends).astype(np.int32) + np.int32(1) - genuine
    del genuine_at, ends
    if len(genuine) > 2:
        bend = np.ones(len(genuine), bool)
        bend[1:-1] = np.diff(genuine, 2) != 0
        bend[1:-1] |= np.diff(impostor, 2) != 0
        genuine, impostor = genuine[bend], impostor[bend]
    tar = np.concatenate([[0], genuine])[::-1] / max(1, genuine[-1])
    far = np.concatenate([[0], impostor])[::-1] / max(1, impostor[-1])
    return [float(tar[int(np.argmin(np.abs(far - wanted)))]) for wanted in fars]


def _summary(folds: list[float]) -> Accuracy:
    return Accuracy(float(np.mean(folds)), float(np.std(folds)), len(folds))


def _consecutive_folds(count: int) -> Iterator[slice]:
    """Ten runs of neighbours; the first ones are longer by one where ten does not divide."""
    folds = min(FOLDS, count)
    size, rest = divmod(count, folds)
    start = 0
    for fold in range(folds):
        stop = start + size + (fold < rest)
        yield slice(start, stop)
        start = stop


def _dyadic_variance(values: F64, person_a: I64, person_b: I64, people: int) -> float:
    """Of the mean of values of pairs of people, at least as if the pairs were independent."""
    key = np.unique(
        np.minimum(person_a, person_b) * people + np.maximum(person_a, person_b),
        return_inverse=True,
    )[1]
    person = np.bincount(person_a, values, people) + np.bincount(person_b, values, people)
    dyads = float((np.bincount(key, values) ** 2).sum())
    total = max(float((person**2).sum()) - dyads, float((values**2).sum()))
    return total / len(values) ** 2


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
