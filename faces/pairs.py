"""Lists that name faces: pairs to compare, and groups that faces belong to.

A pair list is a text file of any kind that `pair_lists` reads, or an insightface `.bin` set. Groups
are a CSV file `path,group`.
"""

import csv
import io
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..arrays import I64
from ..errors import FacesError, UsageError
from ..files import sha256
from ..reading import read_file
from .bin_sets import connected_labels, read_bin
from .pair_lists import NO_FOLD, ListedPair, read_pair_list
from .sources import Faces, bin_faces, folder_faces, open_faces

logger = logging.getLogger(__name__)

_BIN_FOLDS = 10  # the sets are stored fold by fold

_FOLDS = 10  # that pairs without any are put into, as LFW's protocol has


@dataclass(frozen=True)
class Pairs:
    """P pairs of faces in folds.

    Attributes:
        faces: The faces that are compared.
        fold: Fold of each pair, `(P,) int64`.
        first: Index of the first face, `(P,) int64`.
        second: Index of the second face, `(P,) int64`.
        same: Whether both are one person, `(P,) bool`.
        sha256: Of the list's file, "" for sampled pairs.
    """

    faces: Faces
    fold: I64
    first: I64
    second: I64
    same: npt.NDArray[np.bool_]
    sha256: str = ""

    def __len__(self) -> int:
        return len(self.same)


def read_pairs(
    file: str | Path, source: str | Path | None = None, columns: Sequence[str] | None = None
) -> Pairs:
    """Read a pair list and index the faces that it names.

    Where the folders contradict the list on who is who, the list is right, and the faces are not
    `labelled`.

    Args:
        file: A CSV file, lines of `path path same`, LFW's `pairs.txt` (without a suffix for its
            images: the one that the first image has, else .jpg), or a `.bin` set. Pairs without
            folds get them by people.
        source: What paths are relative to, or another source of faces; the list's folder by
            default. A `.bin` set holds its own images.
        columns: As `read_pair_list` takes it.

    Raises:
        FacesError: The list cannot be read, names images that do not exist, or pairs
            of one kind only.
        UsageError: A source or columns were given for a `.bin` set, or the list has no such columns.
    """
    file = Path(file)
    if file.suffix == ".bin":
        if source is not None:
            raise UsageError(f"{file} holds its own images", "leave the faces out")
        if columns is not None:
            raise UsageError(f"{file} has no columns", "leave --columns out")
        return _bin_pairs(file)
    source = file.parent if source is None else source
    rows = _with_crops(read_pair_list(file, Path(source), columns), Path(source))
    faces = _named_faces(file, rows, source)
    number = {key: index for index, key in enumerate(faces.keys)}
    first = np.array([number[row.first] for row in rows], np.int64)
    second = np.array([number[row.second] for row in rows], np.int64)
    same = np.array([row.same for row in rows], np.bool_)
    if not np.array_equal(faces.labels[first] == faces.labels[second], same):
        labels = connected_labels(len(faces), first[same], second[same])
        faces = replace(faces, labels=labels, labelled=False)
    fold = np.array([row.fold for row in rows], np.int64)
    if (fold == NO_FOLD).all():
        fold = _folds_by_people(faces.labels[first])
        logger.info("%s has no folds: %d by the first face's person", file.name, len(set(fold)))
    return Pairs(faces, fold, first, second, same, sha256(file))


def read_groups(file: Path, keys: Sequence[str]) -> dict[str, npt.NDArray[np.bool_]]:
    """Read which groups faces belong to: a CSV file `path,group`, a line per face and group.

    Args:
        file: The CSV file.
        keys: Names of the N faces, as the paths are.

    Returns:
        Group -> which faces belong to it, `(N,) bool`; names of other faces are ignored.

    Raises:
        FacesError: The file is not such a list, or names none of these faces.
    """
    where = {key: index for index, key in enumerate(keys)}
    groups: dict[str, npt.NDArray[np.bool_]] = {}
    try:
        text = read_file(file, "LIST_MB", FacesError).decode("utf-8-sig")
        rows = csv.DictReader(io.StringIO(text, newline=""))
        if list(rows.fieldnames or ()) != ["path", "group"]:
            raise FacesError(f"{file} begins with {rows.fieldnames}, expected path,group")
        for row in rows:
            index = where.get(row["path"] or "")
            if index is not None and row["group"]:
                mask = groups.setdefault(row["group"], np.zeros(len(keys), np.bool_))
                mask[index] = True
    except FileNotFoundError as error:
        raise FacesError(f"the list of groups {file} does not exist") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FacesError(f"{file} cannot be read as a list of groups: {error}") from error
    if not groups:
        raise FacesError(
            f"{file} names none of the {len(keys)} faces",
            f"paths are as the faces' own, such as {keys[0]}",
        )
    return dict(sorted(groups.items()))


def _folds_by_people(people: I64) -> I64:
    """Ten folds for the people `(P,)`, or one for each where there are fewer."""
    rank = np.unique(people, return_inverse=True)[1].astype(np.int64)
    return rank % _FOLDS


def _bin_pairs(file: Path) -> Pairs:
    """Ten folds of consecutive pairs, as near to equal as can be."""
    stored = read_bin(file)
    if len(stored.same) < _BIN_FOLDS or stored.same.all() or not stored.same.any():
        raise FacesError(
            f"{file} has {len(stored.same)} pairs, {stored.same.sum()} of them genuine; "
            f"expected {_BIN_FOLDS} or more, of both kinds"
        )
    parts = np.array_split(stored.same, _BIN_FOLDS)
    fold = np.concatenate([np.full(len(part), k) for k, part in enumerate(parts)])
    columns = (fold, stored.first, stored.second, stored.same)
    return Pairs(bin_faces(file, stored), *columns, sha256(file))


def _with_crops(rows: list[ListedPair], root: Path) -> list[ListedPair]:
    """The pairs, naming the crops that `align` made where the list still names photographs.

    Of `a/b.jpg`, which is not there, the crop is `a/b.png`; `align` refuses folders in which two
    photographs have the same one.
    """
    if not os.path.isdir(root):
        return rows
    names = {path for row in rows for path in (row.first, row.second)}
    crops = {
        name: crop
        for name in names
        if not os.path.isfile(root / name)
        and os.path.isfile(root / (crop := f"{os.path.splitext(name)[0]}.png"))
    }
    if not crops:
        return rows
    return [
        replace(
            row, first=crops.get(row.first, row.first), second=crops.get(row.second, row.second)
        )
        for row in rows
    ]


def _named_faces(file: Path, rows: list[ListedPair], source: str | Path) -> Faces:
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
    faces = everything.subset([where[path] for path in named])
    labels = np.unique(faces.labels, return_inverse=True)[1].astype(np.int64)
    return replace(faces, labels=labels)


def _missing(file: Path, missing: list[str], named: int, where: str) -> FacesError:
    return FacesError(
        f"{file} names {named} images, {len(missing)} of them are not in {where}: "
        f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}",
        "paths are relative to the list's folder, or to the faces given",
    )
