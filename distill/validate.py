"""Verification accuracy during training: on people kept apart, or on a pair list.

Knows embeddings and labels, nothing of networks.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..faces.pairs import Pairs
from ..faces.sources import Faces

F32 = npt.NDArray[np.float32]
_FOLDS = 10
_PAIRS = 6000


def make_pairs(faces: Faces, picks: Sequence[int]) -> Pairs | None:
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
