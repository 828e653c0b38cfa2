"""Which faces calibrate and which judge: never the same person, and no blank images."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..arrays import F64, U8
from ..errors import FacesError
from ..faces.quality import size_warning
from ..faces.sources import Faces, spread_picks
from . import constants


@dataclass(frozen=True)
class CalibrationSubset:
    """Indices into the faces; the two parts share no identity.

    Attributes:
        calibration: Faces that calibrate.
        held_out: Faces that the INT8 model is judged on; empty if `reason` says why.
        reason: Why no people could be held out, or "".
    """

    calibration: tuple[int, ...]
    held_out: tuple[int, ...]
    reason: str = ""


@dataclass
class FaceStatistics:
    """What `usable_faces` accumulates about the faces it reads.

    Attributes:
        used: Indices of the faces that are not blank.
        blank: Number of blank images.
        digests: Hashes of the different faces.
        color: `(3,) float64`, the sum over the faces of their mean red, green and blue, 0..255.
    """

    used: list[int] = field(default_factory=list)
    blank: int = 0
    digests: set[int] = field(default_factory=set)
    color: F64 = field(default_factory=lambda: np.zeros(3))


def select_subset(
    faces: Faces, limit: int, held_out: int, *, pairs: bool = False
) -> CalibrationSubset:
    """Split faces by identity into those that calibrate and those that judge.

    Every fifth identity is held out, with `pairs` every second where that leaves `limit` faces: the
    same faces are always split the same way. With fewer than five people, or where the source does
    not label identities, no people are held out.

    Args:
        faces: A source of faces.
        limit: Most faces that calibrate, spread over the identities.
        held_out: Most faces that judge; people with several images come first.
        pairs: Many pairs are wanted, for true accept rates.
    """
    people = np.unique(faces.labels)
    if len(people) < constants.HOLD_OUT_EVERY or not faces.labelled:
        reason = (
            f"{len(people)} people are too few to hold any out"
            if faces.labelled
            else "the source does not label identities"
        )
        return CalibrationSubset(tuple(spread_picks(faces, limit)), (), reason)
    out = np.isin(faces.labels, people[constants.HOLD_OUT_EVERY - 1 :: constants.HOLD_OUT_EVERY])
    more = np.isin(
        faces.labels, people[constants.HOLD_OUT_FOR_PAIRS - 1 :: constants.HOLD_OUT_FOR_PAIRS]
    )
    if pairs and (~more).sum() >= limit:
        out = more
    rest = np.flatnonzero(~out)
    picks = spread_picks(faces.subset(rest), limit)
    return CalibrationSubset(
        tuple(int(rest[i]) for i in picks), _several_images_first(faces, out, held_out)
    )


def usable_faces(faces: Faces, picks: Iterable[int], stats: FaceStatistics) -> Iterator[U8]:
    """Read faces once, leaving out blank images.

    Args:
        faces: A source of faces.
        picks: Indices of the faces to read.
        stats: Changed as the faces are read.

    Yields:
        `(112, 112, 3) uint8` RGB each.

    Raises:
        FacesError: An image cannot be read, or, after the last one, fewer than four different faces
            were not blank.
    """
    for index in picks:
        face = faces.read(index)
        if is_blank(face):
            stats.blank += 1
            continue
        stats.used.append(index)
        stats.digests.add(hash(face.tobytes()))
        stats.color += face[28:84, 28:84].mean(axis=(0, 1), dtype=np.float64)
        yield face
    if len(stats.digests) < constants.MIN_FACES:
        total = len(stats.used) + stats.blank
        raise FacesError(
            f"{faces.where} gives {len(stats.digests)} different faces that are not blank, of"
            f" {total}; calibration needs at least {constants.MIN_FACES}",
            "give a few hundred faces of many people",
        )


def is_blank(face: U8) -> bool:
    """Whether an image shows nothing.

    Args:
        face: `(112, 112, 3) uint8` RGB.
    """
    return float(face.mean(axis=2).std()) < constants.BLANK_STD


def subset_warnings(faces: Faces, stats: FaceStatistics) -> list[str]:
    """What the user should know about the faces that calibrated, a sentence each.

    Args:
        faces: A source of faces.
        stats: Of the faces that were used, at least one.
    """
    used, different = len(stats.used), len(stats.digests)
    warnings = []
    if stats.blank:
        warnings.append(f"{stats.blank} of {used + stats.blank} images are blank and were left out")
    if different < used:
        warnings.append(f"{used - different} of {used} faces are copies of others")
    if different < constants.ENOUGH_FACES:
        warnings.append(
            f"{different} different faces are few: ranges settle from about {constants.ENOUGH_FACES}"
        )
    if (people := len(np.unique(faces.labels[stats.used]))) < constants.MIN_PEOPLE:
        warnings.append(f"all faces are of {people} people: others may have larger activations")
    if note := size_warning(faces):
        warnings.append(note)
    red, _, blue = color = stats.color / used
    if not faces.synthetic and blue > red + constants.BLUE_EXCESS:
        warnings.append("the faces are bluer than they are red: are their channels swapped?")
    grey = float(color.mean())
    if not constants.EXTREME_GREY <= grey <= 255.0 - constants.EXTREME_GREY:
        warnings.append(
            f"the faces are very {'dark' if grey < 128 else 'bright'}, mean {grey:.0f}/255"
        )
    return warnings


def _several_images_first(
    faces: Faces, chosen: npt.NDArray[np.bool_], limit: int
) -> tuple[int, ...]:
    """Faces of the chosen people, those with several first: one image makes no genuine pair."""
    by_person: dict[int, list[int]] = {}
    for index in np.flatnonzero(chosen):
        by_person.setdefault(int(faces.labels[index]), []).append(int(index))
    people = sorted(by_person.values(), key=lambda images: len(images) == 1)
    return tuple([index for images in people for index in images[: constants.MAX_IMAGES]][:limit])
