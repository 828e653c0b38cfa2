"""Which pairs of faces an accuracy is computed on: seeded pairs in folds that share no identity.

All pairs of a set give TAR at FAR; accuracy needs as many genuine as impostor pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..arrays import I64
from ..errors import FacesError

FOLDS = 10  # of the protocol of LFW (Huang et al., 2007)

PER_FOLD = 300  # genuine pairs in a fold of LFW's protocol, and as many impostor pairs

_SEED = 7


class ListedPairs(Protocol):
    """P pairs of faces in folds, by index: a `PairList`, or `faces.pairs.Pairs`."""

    @property
    def fold(self) -> I64:
        """`(P,) int64`."""

    @property
    def first(self) -> I64:
        """`(P,) int64`."""

    @property
    def second(self) -> I64:
        """`(P,) int64`."""

    @property
    def same(self) -> npt.NDArray[np.bool_]:
        """`(P,) bool`."""


@dataclass(frozen=True, eq=False)
class PairList:
    """P pairs of faces in folds.

    Attributes:
        fold: Fold of each pair, `(P,) int64`.
        first: Index of the first face, `(P,) int64`.
        second: Index of the second face, `(P,) int64`.
        same: Whether both are one person, `(P,) bool`.
    """

    fold: I64
    first: I64
    second: I64
    same: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.same)


def draw_pairs(
    labels: Sequence[int] | I64, folds: int = FOLDS, per_fold: int = PER_FOLD, seed: int = _SEED
) -> PairList:
    """Sample as many genuine as impostor pairs in folds that share no identity.

    Genuine pairs are spread over the people of a fold. The same labels give the same pairs.

    Args:
        labels: Identity of each face, `(N,)`.
        folds: Number of folds; fewer identities give fewer.
        per_fold: Most genuine pairs in a fold.
        seed: Of the random generator.

    Raises:
        FacesError: No fold can be made: a fold needs two people, one of them with two faces.
    """
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(int(label), []).append(index)
    random = np.random.default_rng(seed)
    several = [label for label, images in members.items() if len(images) > 1]
    folds = min(folds, len(several), len(members) // 2)
    if folds < 1:
        raise FacesError(
            f"{len(members)} identities, {len(several)} of them with two faces or more; "
            "verification needs two people, one of them with two faces",
            "give a folder per person with several faces each",
        )
    # Identities with several faces are dealt first, so that every fold gets some.
    single = [label for label, images in members.items() if len(images) == 1]
    order = [*random.permutation(several), *random.permutation(single)]
    rows: list[tuple[int, int, int, bool]] = []
    for fold in range(folds):
        groups = [members[label] for label in order[fold::folds]]
        genuine = _genuine([group for group in groups if len(group) > 1], per_fold, random)
        rows += [(fold, a, b, True) for a, b in genuine]
        rows += [(fold, a, b, False) for a, b in _impostor(groups, len(genuine), random)]
    return PairList(
        np.array([row[0] for row in rows], np.int64),
        np.array([row[1] for row in rows], np.int64),
        np.array([row[2] for row in rows], np.int64),
        np.array([row[3] for row in rows], np.bool_),
    )


def _genuine(
    groups: list[list[int]], limit: int, random: np.random.Generator
) -> list[tuple[int, int]]:
    """At most a fair share of pairs from each person."""
    pairs: list[tuple[int, int]] = []
    share = max(1, limit // len(groups))
    for group in groups:
        own = list(combinations(group, 2)) if len(group) <= 64 else _some(group, share, random)
        picks = random.permutation(len(own))[:share]
        pairs += [own[pick] for pick in picks]
    return pairs[:limit]


def _some(group: list[int], count: int, random: np.random.Generator) -> list[tuple[int, int]]:
    drawn = (random.choice(len(group), 2, replace=False) for _ in range(count))
    return sorted({(group[min(a, b)], group[max(a, b)]) for a, b in drawn})


def _impostor(
    groups: list[list[int]], count: int, random: np.random.Generator
) -> list[tuple[int, int]]:
    pairs = []
    for _ in range(count):
        a, b = random.choice(len(groups), 2, replace=False)
        pairs.append((int(random.choice(groups[a])), int(random.choice(groups[b]))))
    return pairs
