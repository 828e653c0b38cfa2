"""Which faces calibrate and which judge: never the same person, and no face that says nothing.

Knows nothing of networks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..arrays import I64
from ..errors import FacesError
from ..faces.sources import Faces, frame_note, spread_picks
from ..progress import Track, silent

MIN_FACES = 4
"""Different faces below which a range is an accident."""

ENOUGH_FACES = 128
"""Faces below which the tails are still a matter of luck: the user is told."""

HELD_EVERY = 5
"""One identity in so many is held apart for judging,"""

HELD_FOR_PAIRS = 2
"""and where many pairs are wanted, if enough others remain to calibrate on."""

_EACH = 8
"""Images of one person that judge: more would make the rates that person's."""

_BLANK = 2.0
"""Standard deviation of grey levels, 0..255, below which an image shows nothing."""

_FAR_OFF = 40.0
"""Mean brightness, 0..255, below or (from 255) above which a whole source looks wrong."""


@dataclass(frozen=True)
class CalibrationSubset:
    """Indices into the faces; `calibrate` and `judge` share no identity."""

    calibrate: tuple[int, ...]
    judge: tuple[int, ...]
    warnings: tuple[str, ...] = ()


def select_subset(
    faces: Faces, limit: int, judged: int, *, pairs: bool = False
) -> CalibrationSubset:
    """At most `limit` faces to calibrate on and `judged` of other people to judge by.

    Every fifth identity is held apart, with `pairs` every second where that leaves `limit` faces: the
    same faces always split the same way. With fewer than five people, or where the source does not
    know who is who, nobody is.
    """
    people = np.unique(faces.labels)
    if len(people) < HELD_EVERY or not faces.labelled:
        why = (
            f"{len(people)} people are too few to hold any apart"
            if faces.labelled
            else "the source does not say who is who"
        )
        return CalibrationSubset(
            tuple(spread_picks(faces, limit)), (), (f"the INT8 model was not judged: {why}",)
        )
    held = _held(faces, people, HELD_EVERY)
    if pairs and (~(more := _held(faces, people, HELD_FOR_PAIRS))).sum() >= limit:
        held = more
    return CalibrationSubset(_among(faces, ~held, limit), _with_pairs(faces, held, judged))


def inspect_subset(
    faces: Faces, chosen: CalibrationSubset, track: Track = silent
) -> CalibrationSubset:
    """`chosen` without the blank images, and what a user should know of the others.

    Raises FacesError for an image that cannot be read, and when fewer than four different faces
    remain to calibrate on.
    """
    steps = len(chosen.calibrate)
    seen = [_look(faces, i) for i in track(chosen.calibrate, "looking at the faces", steps)]
    kept = [i for i, s in zip(chosen.calibrate, seen, strict=True) if s.spread >= _BLANK]
    different = {s.digest for s in seen if s.spread >= _BLANK}
    if len(different) < MIN_FACES:
        raise FacesError(
            f"{faces.where} gives {len(different)} different faces that show something, of"
            f" {len(seen)}; calibration needs at least {MIN_FACES}",
            "give a few hundred faces of many people",
        )
    judge = tuple(i for i in chosen.judge if _look(faces, i).spread >= _BLANK)
    notes = [*chosen.warnings, *_remarks(faces, kept, len(seen), len(different))]
    tint = np.mean([s.colour for s in seen if s.spread >= _BLANK], axis=0)
    if not faces.drawn and tint[2] > tint[0] + 5.0:
        notes.append(
            "the faces are bluer than they are red: were they written with their channels swapped?"
        )
    grey = float(tint.mean())
    if not _FAR_OFF <= grey <= 255.0 - _FAR_OFF:
        notes.append(
            f"the faces are very {'dark' if grey < 128 else 'bright'}, mean {grey:.0f}/255"
        )
    return replace(chosen, calibrate=tuple(kept), judge=judge, warnings=tuple(notes))


@dataclass(frozen=True)
class _Seen:
    """`colour` `(3,)` mean red, green, blue of the middle; `spread` of its grey levels."""

    colour: npt.NDArray[np.float64]
    spread: float
    digest: int


def _look(faces: Faces, index: int) -> _Seen:
    face = faces.read(index)
    middle = face[28:84, 28:84].astype(np.float64)
    return _Seen(middle.mean(axis=(0, 1)), float(face.mean(axis=2).std()), hash(face.tobytes()))


def _remarks(faces: Faces, kept: Sequence[int], looked: int, different: int) -> list[str]:
    notes = []
    if blank := looked - len(kept):
        notes.append(f"{blank} of {looked} images show nothing and were left out")
    if different < len(kept):
        notes.append(f"{len(kept) - different} of {len(kept)} faces are copies of others")
    if different < ENOUGH_FACES:
        notes.append(
            f"{different} different faces are few: ranges settle from about {ENOUGH_FACES}"
        )
    if (people := len(np.unique(faces.labels[list(kept)]))) < 16:
        notes.append(f"all faces are of {people} people: others may reach further")
    if odd := frame_note(faces):
        notes.append(odd)
    return notes


def _held(faces: Faces, people: I64, every: int) -> npt.NDArray[np.bool_]:
    return np.isin(faces.labels, people[every - 1 :: every])


def _among(faces: Faces, chosen: npt.NDArray[np.bool_], limit: int) -> tuple[int, ...]:
    """`spread`, over some of the faces."""
    index = np.flatnonzero(chosen)
    some = replace(
        faces, keys=[faces.keys[int(i)] for i in index], labels=faces.labels[index], encoded=None
    )
    return tuple(int(index[i]) for i in spread_picks(some, limit))


def _with_pairs(faces: Faces, chosen: npt.NDArray[np.bool_], limit: int) -> tuple[int, ...]:
    """Faces of some people, those with several first: one face alone makes no genuine pair."""
    by_person: dict[int, list[int]] = {}
    for index in np.flatnonzero(chosen):
        by_person.setdefault(int(faces.labels[index]), []).append(int(index))
    people = sorted(by_person.values(), key=lambda images: len(images) == 1)
    return tuple([index for images in people for index in images[:_EACH]][:limit])
