"""Makes a balanced pair list out of identity folders, where nobody wrote one."""

import numpy as np

from ..errors import FacesError
from .pairs import Pairs
from .sources import Faces

FOLDS = 10


def balanced_pairs(faces: Faces, count: int = 2000, seed: int = 0) -> Pairs:
    """About `count` pairs, half genuine, in 10 folds that share no identity, as LFW's do.

    The same faces and seed give the same pairs. Raises FacesError with fewer than 20 identities of
    two or more images.
    """
    groups: dict[int, list[int]] = {}
    for index, label in enumerate(faces.labels):
        groups.setdefault(int(label), []).append(index)
    people = [members for members in groups.values() if len(members) > 1]
    if len(people) < 2 * FOLDS:
        raise FacesError(
            f"{faces.where} holds {len(people)} identities of two or more images;"
            f" pairs need {2 * FOLDS}"
        )
    rng = np.random.default_rng(seed)
    rng.shuffle(people)
    rows: list[tuple[int, int, int, bool]] = []
    for fold in range(FOLDS):
        members = people[fold::FOLDS]
        for _ in range(max(1, count // (2 * FOLDS))):
            one, other = rng.choice(len(members), 2, replace=False)
            first, second = rng.choice(members[one], 2, replace=False)
            rows.append((fold, first, second, True))
            rows.append((fold, rng.choice(members[one]), rng.choice(members[other]), False))
    fold_of, firsts, seconds, same = zip(*rows, strict=True)
    return Pairs(
        faces,
        np.array(fold_of, np.int64),
        np.array(firsts, np.int64),
        np.array(seconds, np.int64),
        np.array(same, np.bool_),
    )
