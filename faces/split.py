"""People for calibration and other people for judging."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ..errors import FacesError, UsageError
from .sources import Faces

PARTS = ("calibration", "judging")


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
    if not faces.labelled:
        raise FacesError(
            f"{faces.where} does not tell who is who", "give faces in a folder per person"
        )
    labels = np.asarray(faces.labels)
    people, counts = np.unique(labels, return_counts=True)
    first = people[_choose(counts, share, seed, faces.where)]
    chosen = np.isin(labels, first)
    return _part(faces, chosen), _part(faces, ~chosen)


def split_folders(keys: Sequence[str], share: float, seed: int = 0) -> dict[str, str]:
    """Divide photographs in a folder per person as `split_people` divides faces.

    Args:
        keys: Paths of the photographs.
        share: Of the people, for calibration; above 0 and below 1.
        seed: Decides who.

    Returns:
        Path -> "calibration" or "judging".

    Raises:
        UsageError: The share is not between 0 and 1.
        FacesError: Fewer than 3 folders hold two photographs.
    """
    folders = [PurePosixPath(key).parent.as_posix() for key in keys]
    counts = Counter(folders)
    names = sorted(counts)
    numbers = np.array([counts[name] for name in names], np.int64)
    first = {names[i] for i in _choose(numbers, share, seed, "the folder")}
    return {key: PARTS[folder not in first] for key, folder in zip(keys, folders, strict=True)}


def _choose(counts: NDArray[np.int64], share: float, seed: int, where: str) -> NDArray[np.int64]:
    """Indices of the people that calibrate, of all with their numbers of faces."""
    if not 0 < share < 1:
        raise UsageError(f"the share of people that calibrate is between 0 and 1, found {share}")
    several = int((counts > 1).sum())
    if several < 3:
        raise FacesError(
            f"{where} has {len(counts)} people, {several} of them with two faces or more; expected"
            " three such people at least: one calibrates, two are judged",
            "give more people, one folder for each",
        )
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.argsort(counts[order] > 1, kind="stable")]
    return order[: min(max(1, round(share * len(counts))), len(counts) - 2)]


def _part(faces: Faces, chosen: NDArray[np.bool_]) -> Faces:
    part = faces.subset(np.flatnonzero(chosen))
    labels = np.unique(part.labels, return_inverse=True)[1].astype(np.int64)
    return replace(part, labels=labels)
