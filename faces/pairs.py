"""Pair lists: which faces to compare, and whether they are one person.

`fold,path1,path2,same` with a header, LFW's own `pairs.txt`, or an insightface `.bin` set.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import FacesError, UsageError
from .bin_sets import linked, read_bin
from .pair_lists import Row, read_list
from .sources import Faces, bin_faces, folder_faces, open_faces

_FOLDS = 10

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """P pairs over `faces`: `first`, `second` `(P,) int64` index it, `same` `(P,) bool`,
    `fold` `(P,) int64`."""

    faces: Faces
    fold: I64
    first: I64
    second: I64
    same: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.same)


def read_pairs(file: str | Path, source: str | Path | None = None) -> Pairs:
    """Read a pair list; paths are relative to `source`, or else to the file's folder.

    The faces kept are those that the list names. Where the folders contradict the list on who is
    who, the list alone says it, and the faces are not `labelled`. A `.bin` set holds its images:
    UsageError for a `source` beside it. Raises FacesError for a list that cannot be read, names
    images that are not there, a pair twice, or pairs of one kind only.
    """
    file = Path(file)
    if file.suffix == ".bin":
        if source is not None:
            raise UsageError(f"{file} holds its own images", "leave the faces out")
        return _bin_pairs(file)
    source = file.parent if source is None else source
    rows = read_list(file, Path(source))
    faces = _named_faces(file, rows, source)
    number = {key: index for index, key in enumerate(faces.keys)}
    first = np.array([number[row.first] for row in rows], np.int64)
    second = np.array([number[row.second] for row in rows], np.int64)
    same = np.array([row.same for row in rows], np.bool_)
    if not np.array_equal(faces.labels[first] == faces.labels[second], same):
        labels = linked(len(faces), first[same], second[same])
        faces = replace(faces, labels=labels, labelled=False)
    return Pairs(faces, np.array([row.fold for row in rows], np.int64), first, second, same)


def _bin_pairs(file: Path) -> Pairs:
    """Ten folds of consecutive pairs, as near to equal as can be: the sets are stored fold by fold."""
    held = read_bin(file)
    if len(held.same) < _FOLDS or held.same.all() or not held.same.any():
        raise FacesError(
            f"{file} has {len(held.same)} pairs, {held.same.sum()} of them genuine; "
            f"expected {_FOLDS} or more, of both kinds"
        )
    fold = np.concatenate(
        [np.full(len(part), k) for k, part in enumerate(np.array_split(held.same, _FOLDS))]
    )
    return Pairs(bin_faces(file, held), fold, held.first, held.second, held.same)


def _named_faces(file: Path, rows: list[Row], source: str | Path) -> Faces:
    """The faces that the list names, and no others. A folder is asked for these, never walked."""
    named = sorted({path for row in rows for path in (row.first, row.second)})
    root = Path(source)
    if os.path.isdir(root):
        missing = [path for path in named if not os.path.isfile(root / path)]
        if not missing:
            return folder_faces(root, named)
        if not (root / "train.rec").is_file() and not any(root.glob("*.tar")):
            raise _missing(file, missing, len(named), str(root))
    everything = open_faces(source)
    where = {key: index for index, key in enumerate(everything.keys)}
    missing = [path for path in named if path not in where]
    if missing:
        raise _missing(file, missing, len(named), everything.where)
    kept = np.array([where[path] for path in named], np.int64)
    encoded = everything.encoded
    return replace(
        everything,
        keys=tuple(named),
        labels=np.unique(everything.labels[kept], return_inverse=True)[1].astype(np.int64),
        read=lambda index: everything.read(int(kept[index])),
        encoded=None if encoded is None else lambda index: encoded(int(kept[index])),
    )


def _missing(file: Path, missing: list[str], named: int, where: str) -> FacesError:
    return FacesError(
        f"{file} names {named} images, {len(missing)} of them are not in {where}: "
        f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}",
        "paths are relative to the list's folder, or to the faces given",
    )
