"""People for calibration and other people for judging."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..errors import FacesError, UsageError
from .sources import Faces


def split_people(faces: Faces, share: float = 0.3, seed: int = 0) -> tuple[Faces, Faces]:
    """Divide a source by people: each person's faces are in one part alone.

    People with one face calibrate first: they form no genuine pair to judge on.

    Args:
        faces: Faces of known people.
        share: Of the people, for the first part; above 0 and below 1.
        seed: Decides who.

    Returns:
        Faces to calibrate on, and faces to judge on; labels 0..n-1 in each.

    Raises:
        UsageError: The share is not between 0 and 1.
        FacesError: The source does not tell people apart, or fewer than 3 people have two faces.
    """
    if not 0 < share < 1:
        raise UsageError(f"the share of people that calibrate is between 0 and 1, found {share}")
    labels = np.asarray(faces.labels)
    if not faces.labelled:
        raise FacesError(
            f"{faces.where} does not tell who is who", "give faces in a folder per person"
        )
    people, counts = np.unique(labels, return_counts=True)
    if int((counts > 1).sum()) < 3:
        raise FacesError(
            f"{faces.where} has {len(people)} people, {int((counts > 1).sum())} of them with two"
            " faces or more; expected three such people at least: one calibrates, two are judged",
            "give more people, one folder for each",
        )
    order = np.random.default_rng(seed).permutation(len(people))
    order = order[np.argsort(counts[order] > 1, kind="stable")]
    several = int((counts > 1).sum())
    first = min(max(1, round(share * len(people))), len(people) - min(2, several))
    chosen = np.isin(labels, people[order[:first]])
    return _part(faces, chosen), _part(faces, ~chosen)


def _part(faces: Faces, chosen: NDArray[np.bool_]) -> Faces:
    part = faces.subset(np.flatnonzero(chosen))
    labels = np.unique(part.labels, return_inverse=True)[1].astype(np.int64)
    return replace(part, labels=labels)
