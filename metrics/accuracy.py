"""Figures by the conventions of the published evaluators, so that papers can be compared with.

Where they differ from `metrics`: 400 fixed thresholds on squared distances, folds cut from the
pairs' order, and TAR at the point of the curve whose FAR is nearest, above it or below.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..arrays import F32
from ..faces.pairs import Pairs
from ..faces.sources import Faces
from .verification import BINS, Scores, _bins, cosines, normalise

# Verification metrics from embeddings: cosine scores, TAR@FAR, ROC, EER, 10-fold accuracy.
#
# Knows arrays only, nothing of files or networks. All genuine and impostor pairs of a set are
# counted into fine histograms, so memory does not grow with the number of pairs.


@dataclass(frozen=True)
class Accuracy:
    """Mean and (population) standard deviation over `folds` folds, as fractions.

    One fold alone is judged at its own best threshold, so its accuracy flatters.
    """

    mean: float
    std: float
    folds: int


class PairList(Protocol):
    """P pairs of faces; `faces.pairs.Pairs` is one."""

    @property
    def first(self) -> npt.NDArray[np.int64]: ...
    @property
    def second(self) -> npt.NDArray[np.int64]: ...
    @property
    def same(self) -> npt.NDArray[np.bool_]: ...
    @property
    def fold(self) -> npt.NDArray[np.int64]: ...


def listed_pairs(embeddings: F32, pairs: PairList) -> Scores:
    """Score the pairs of a list on `(N, D)` embeddings of its faces."""
    index = _bins(cosines(embeddings[pairs.first], embeddings[pairs.second]))
    return Scores(
        np.bincount(index[pairs.same], minlength=BINS).astype(np.int64),
        np.bincount(index[~pairs.same], minlength=BINS).astype(np.int64),
    )


def fold_accuracy(
    scores: F32, same: npt.NDArray[np.bool_], fold: npt.NDArray[np.int64]
) -> list[float]:
    """K-fold accuracy of a pair list: each fold is judged at the others' best threshold (LFW).

    `scores`, `same` and `fold` are `(P,)`. One fold alone gives an empty list.
    """
    numbers = np.unique(fold)
    if len(numbers) < 2:
        return []
    return [
        float(
            np.mean(
                (scores >= best_threshold(scores[fold != k], same[fold != k]))[fold == k]
                == same[fold == k]
            )
        )
        for k in numbers
    ]


def listed_pair_accuracy(embeddings: F32, pairs: PairList) -> Accuracy:
    """Accuracy over the folds of a pair list on `(N, D)` embeddings of its faces."""
    scores = cosines(embeddings[pairs.first], embeddings[pairs.second])
    folds = fold_accuracy(scores, pairs.same, pairs.fold)
    if not folds:
        right = (scores >= best_threshold(scores, pairs.same)) == pairs.same
        folds = [float(np.mean(right))]
    return Accuracy(float(np.mean(folds)), float(np.std(folds)), len(folds))


def best_threshold(scores: F32, same: npt.NDArray[np.bool_]) -> float:
    """The cosine threshold with the highest accuracy on these pairs; the middle one of several."""
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


LFW_FOLDS = 10

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
    folds = min(LFW_FOLDS, count)
    size, rest = divmod(count, folds)
    start = 0
    for fold in range(folds):
        stop = start + size + (fold < rest)
        yield slice(start, stop)
        start = stop


# Verification accuracy during training: on people kept apart, or on a pair list.
#
# Knows embeddings and labels, nothing of networks.

_FOLDS = 10

_PAIRS = 6000


def sample_pairs(faces: Faces, picks: Sequence[int]) -> Pairs | None:
    """Pairs among the images `picks`, after LFW: ten folds of people, at most 6,000 pairs, as many
    genuine as impostor ones in every fold; None with fewer than four people or no two images of
    one of them. Always the same pairs for the same labels.
    """
    identity = np.unique(faces.labels[list(picks)], return_inverse=True)[1]
    people = int(identity.max()) + 1 if len(picks) else 0
    folds = min(_FOLDS, people // 2)
    rng = np.random.default_rng(0)
    found = []
    for fold in range(folds if people >= 4 else 0):
        members = np.flatnonzero(identity % folds == fold)
        first, second = np.triu_indices(len(members), 1)
        same = identity[members[first]] == identity[members[second]]
        genuine, impostor = np.flatnonzero(same), np.flatnonzero(~same)
        count = min(len(genuine), len(impostor), _PAIRS // (2 * folds))
        for group in (genuine, impostor):
            kept = np.sort(rng.choice(group, count, replace=False))
            found.append((members[first[kept]], members[second[kept]], same[kept], fold))
    if not any(len(part[0]) for part in found):
        return None
    first, second, same = (np.concatenate([part[k] for part in found]) for k in range(3))
    number = np.repeat([part[3] for part in found], [len(part[0]) for part in found])
    return Pairs(_only(faces, picks), number, first, second, same)


def pair_accuracy(embeddings: F32, pairs: Pairs) -> float:
    """Share of right answers over the pairs, each fold judged at the others' best threshold.

    `embeddings (N, D)` are of `pairs.faces`. One fold alone is judged at its own best.
    """
    # In float64: a training that is about to fail can have embeddings whose squares overflow.
    wide = embeddings.astype(np.float64)
    unit = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    cosine = (unit[pairs.first] * unit[pairs.second]).sum(1)
    numbers, right = np.unique(pairs.fold), 0
    for k in numbers:
        here = pairs.fold == k
        others = ~here if len(numbers) > 1 else here
        accepted = cosine[here] >= _threshold(cosine[others], pairs.same[others])
        right += int((accepted == pairs.same[here]).sum())
    return right / len(pairs)


def _only(faces: Faces, picks: Sequence[int]) -> Faces:
    kept = list(picks)
    return replace(
        faces,
        keys=tuple(faces.keys[i] for i in kept),
        labels=faces.labels[kept],
        read=lambda index: faces.read(kept[index]),
        encoded=None,
    )


def _threshold(cosine: npt.NDArray[np.float64], same: npt.NDArray[np.bool_]) -> float:
    """The middle one of the cuts with the most right answers."""
    order = np.argsort(cosine, kind="stable")
    values, genuine = cosine[order], same[order]
    rejected = np.concatenate([[0], np.cumsum(~genuine)])
    accepted = genuine.sum() - np.concatenate([[0], np.cumsum(genuine)])
    best = np.flatnonzero(rejected + accepted == (rejected + accepted).max())
    cut = int(best[len(best) // 2])
    edges = np.concatenate([[-2.0], values, [2.0]])
    return float((edges[cut] + edges[cut + 1]) / 2)
