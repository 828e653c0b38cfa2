"""Verification accuracy of people kept out of training. Knows arrays only.

Pairs are made from labels: the protocol of LFW, ten identity-disjoint folds, half genuine.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
_FOLDS = 10
_PAIRS = 6000


def make_pairs(
    labels: Sequence[int], seed: int = 0
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """At most 6,000 pairs of images `(first, second, same, fold)`, each `(P,)`.

    As many genuine as impostor ones in every fold; both images of a pair belong to people of its
    fold. Empty when no person has two images, or there are fewer than four people.
    """
    identity = np.unique(np.asarray(labels), return_inverse=True)[1]
    people = int(identity.max()) + 1 if len(identity) else 0
    folds = min(_FOLDS, people // 2)
    rng = np.random.default_rng([seed, 77])
    found = []
    for fold in range(folds if people >= 4 else 0):
        members = np.flatnonzero(identity % folds == fold)
        first, second = np.triu_indices(len(members), 1)
        same = identity[members[first]] == identity[members[second]]
        genuine, impostor = np.flatnonzero(same), np.flatnonzero(~same)
        count = min(len(genuine), len(impostor), _PAIRS // (2 * folds))
        for group in (genuine, impostor):
            chosen = np.sort(rng.choice(group, count, replace=False))
            found.append((members[first[chosen]], members[second[chosen]], same[chosen], fold))
    if not found:
        empty = np.zeros(0, np.int64)
        return empty, empty, np.zeros(0, np.bool_), empty
    first, second, same = (np.concatenate([part[k] for part in found]) for k in range(3))
    return first, second, same, np.repeat([p[3] for p in found], [len(p[0]) for p in found])


def pair_accuracy(embeddings: F32, labels: Sequence[int], seed: int = 0) -> float | None:
    """Share of right answers over pairs of `(N, D)` embeddings, every fold judged at the best
    threshold of the others; None where the labels make no pairs."""
    first, second, same, fold = make_pairs(labels, seed)
    if len(np.unique(fold)) < 2:
        return None
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    cosine = (unit[first] * unit[second]).sum(1)
    right = 0
    for k in np.unique(fold):
        here = fold == k
        accepted = cosine[here] >= _threshold(cosine[~here], same[~here])
        right += int((accepted == same[here]).sum())
    return right / len(same)


def _threshold(cosine: F32, same: npt.NDArray[np.bool_]) -> float:
    """The middle one of the cuts with the most right answers."""
    order = np.argsort(cosine, kind="stable")
    values, genuine = cosine[order], same[order]
    rejected = np.concatenate([[0], np.cumsum(~genuine)])
    accepted = genuine.sum() - np.concatenate([[0], np.cumsum(genuine)])
    best = np.flatnonzero(rejected + accepted == (rejected + accepted).max())
    cut = int(best[len(best) // 2])
    edges = np.concatenate([[-2.0], values, [2.0]])
    return float((edges[cut] + edges[cut + 1]) / 2)
