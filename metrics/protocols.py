"""What an identity folder is judged on: a seeded pair list in folds that share no identity.

All pairs give TAR at FAR; accuracy needs as many genuine as impostor pairs, and these are them.
"""

from itertools import combinations

import numpy as np

from ..errors import FacesError
from ..faces.pairs import Pairs
from ..faces.sources import Faces

FOLDS = 10

_PER_FOLD = 300

_SEED = 7


def draw_pairs(faces: Faces) -> Pairs:
    """Up to 300 genuine and as many impostor pairs in each of 10 identity-disjoint folds.

    Fewer identities give fewer folds. Raises FacesError when no fold can be made: a fold needs two
    people, one of them twice.
    """
    members: dict[int, list[int]] = {}
    for index, label in enumerate(faces.labels):
        members.setdefault(int(label), []).append(index)
    random = np.random.default_rng(_SEED)
    several = [label for label, images in members.items() if len(images) > 1]
    folds = min(FOLDS, len(several), len(members) // 2)
    if not folds:
        raise FacesError(
            f"{faces.where} has {len(members)} identities, {len(several)} of them with two faces "
            "or more; verification needs two people, one of them twice",
            "give a folder per person with several faces each",
        )
    # Those with several faces are dealt first, so that every fold gets some.
    single = [label for label in members if label not in set(several)]
    order = [*random.permutation(several), *random.permutation(single)]
    rows: list[tuple[int, int, int, bool]] = []
    for fold in range(folds):
        groups = [members[label] for label in order[fold::folds]]
        genuine = _genuine([group for group in groups if len(group) > 1], random)
        rows += [(fold, a, b, True) for a, b in genuine]
        rows += [(fold, a, b, False) for a, b in _impostor(groups, len(genuine), random)]
    return Pairs(
        faces,
        np.array([row[0] for row in rows], np.int64),
        np.array([row[1] for row in rows], np.int64),
        np.array([row[2] for row in rows], np.int64),
        np.array([row[3] for row in rows], np.bool_),
    )


def _genuine(groups: list[list[int]], random: np.random.Generator) -> list[tuple[int, int]]:
    """Spread over the people: no one gives more than a fair share, the rest is drawn."""
    pairs: list[tuple[int, int]] = []
    share = max(1, _PER_FOLD // len(groups))
    for group in groups:
        own = list(combinations(group, 2)) if len(group) <= 64 else _some(group, share, random)
        picks = random.permutation(len(own))[:share]
        pairs += [own[pick] for pick in picks]
    return pairs[:_PER_FOLD]


def _some(group: list[int], count: int, random: np.random.Generator) -> list[tuple[int, int]]:
    drawn = (random.choice(len(group), 2, replace=False) for _ in range(count))
    return sorted({(group[min(a, b)], group[max(a, b)]) for a, b in drawn})


def _impostor(
    groups: list[list[int]], count: int, random: np.random.Generator
) -> list[tuple[int, int]]:
    pairs = []
    for _ in range(count):
        one, other = random.choice(len(groups), 2, replace=False)
        pairs.append((int(random.choice(groups[one])), int(random.choice(groups[other]))))
    return pairs
