"""Figures by the conventions of the published evaluators, so that papers can be compared with.

Where they differ from `metrics`: 400 fixed thresholds on squared distances, folds cut from the
pairs' order, and TAR at the point of the curve whose FAR is nearest, above it or below.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from .metrics import Accuracy, normalise

F32 = npt.NDArray[np.float32]
FOLDS = 10
_THRESHOLDS = np.arange(0, 4, 0.01)


def legacy_accuracy(first: F32, second: F32, same: npt.NDArray[np.bool_]) -> Accuracy:
    """The 10-fold accuracy of the LFW family as insightface and facenet compute it.

    `first` and `second (P, D)` are embeddings of P pairs in the protocol's order. The distance is
    the squared one of unit vectors, a pair is accepted strictly below the threshold, and each fold
    is judged at the first of 400 thresholds that is best on the others.
    """
    difference = normalise(first) - normalise(second)
    distance = np.sum(np.square(difference), axis=1)
    right = np.empty((len(_THRESHOLDS), len(same)), bool)
    for row, threshold in enumerate(_THRESHOLDS):
        right[row] = (distance < threshold) == same
    found = []
    for test in _folds(len(same)):
        others = np.ones(len(same), bool)
        others[test] = False
        best = int(np.argmax(right[:, others].mean(axis=1)))
        found.append(float(right[best, test].mean()))
    return Accuracy(float(np.mean(found)), float(np.std(found)), len(found))


def nearest_tar(
    scores: npt.NDArray[np.floating], same: npt.NDArray[np.bool_], fars: Sequence[float]
) -> list[float]:
    """TAR at the FARs as the IJB scripts read it off a ROC curve: the point with the nearest FAR.

    `scores (P,)` are similarities. The curve has a point per distinct score without those on a
    straight line between their neighbours; of two points as near, the more lenient counts.
    """
    order = np.argsort(scores, kind="stable")[::-1]
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    genuine = np.cumsum(same[order], dtype=np.int64)[last]
    impostor = last + 1 - genuine
    if len(last) > 2:
        bend = np.diff(genuine, 2).astype(bool) | np.diff(impostor, 2).astype(bool)
        kept = np.concatenate([[True], bend, [True]])
        genuine, impostor = genuine[kept], impostor[kept]
    tar = np.concatenate([[0], genuine])[::-1] / max(1, genuine[-1])
    far = np.concatenate([[0], impostor])[::-1] / max(1, impostor[-1])
    return [float(tar[int(np.argmin(np.abs(far - wanted)))]) for wanted in fars]


def _folds(count: int) -> Iterator[slice]:
    """Ten runs of neighbours, the first ones longer by one where it does not divide."""
    folds = min(FOLDS, count)
    size, rest = divmod(count, folds)
    start = 0
    for fold in range(folds):
        stop = start + size + (fold < rest)
        yield slice(start, stop)
        start = stop
