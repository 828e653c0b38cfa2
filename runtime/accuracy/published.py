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
    # Counts fit 32 bits, and what is done with is dropped: IJB-C has 15.7 million pairs.
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


def _folds(count: int) -> Iterator[slice]:
    """Ten runs of neighbours, the first ones longer by one where it does not divide."""
    folds = min(FOLDS, count)
    size, rest = divmod(count, folds)
    start = 0
    for fold in range(folds):
        stop = start + size + (fold < rest)
        yield slice(start, stop)
        start = stop
