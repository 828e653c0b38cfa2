"""The two texts of a pair list: a CSV file with a header, and LFW's `pairs.txt`.

Gives rows of names; knows nothing of images.
"""

import csv
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from ..arrays import I64
from ..errors import FacesError, UsageError
from .bin_sets import linked, read_bin
from .images import SUFFIXES
from .sources import Faces, bin_faces, folder_faces, open_faces

HEADER = ("fold", "path1", "path2", "same")

_LFW_HEADER = re.compile(r"\s*(\d{1,6})\s+(\d{1,6})\s*")

_NUMBER = re.compile(r"\d{1,9}")


@dataclass(frozen=True)
class PairRow:
    fold: int
    first: str
    second: str
    same: bool


def read_list(file: Path, root: Path) -> list[PairRow]:
    """Rows of a pair list, recognised by its first line; raises FacesError as `read_pairs` says.

    LFW's list names no suffix: it is the one that its first image has in `root`, else .jpg.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise FacesError(f"there is no pair list at {file}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise FacesError(f"{file} cannot be read as a pair list: {error}") from error
    lines = text.splitlines()
    head = _LFW_HEADER.fullmatch(lines[0]) if lines else None
    rows = _lfw_rows(file, lines, head, root) if head else _csv_rows(file, lines)
    genuine = sum(row.same for row in rows)
    if genuine in (0, len(rows)):
        raise FacesError(
            f"{file} has {genuine} genuine pairs among {len(rows)}, expected both kinds"
        )
    return rows


def _csv_rows(file: Path, lines: list[str]) -> list[PairRow]:
    if not lines or tuple(name.strip() for name in lines[0].split(",")) != HEADER:
        found = lines[0][:80] if lines else ""
        raise FacesError(
            f"{file} begins with {found!r}, expected {','.join(HEADER)!r}",
            "or LFW's pairs.txt, or a .bin set",
        )
    rows = []
    try:
        for number, cells in enumerate(csv.reader(lines[1:], strict=True), 2):
            if not cells:
                continue
            good = len(cells) == 4 and _NUMBER.fullmatch(cells[0]) and cells[3] in ("0", "1")
            if not good or not cells[1] or not cells[2]:
                found = ",".join(cells)[:80]
                raise FacesError(
                    f"{file}, line {number}: {found!r}, expected fold,path1,path2,0 or 1"
                )
            first, second = (PurePosixPath(cell).as_posix() for cell in cells[1:3])
            rows.append(PairRow(int(cells[0]), first, second, cells[3] == "1"))
    except csv.Error as error:
        raise FacesError(f"{file} is not a CSV file: {error}") from error
    _check_once(file, rows)
    return rows


def _lfw_rows(file: Path, lines: list[str], head: re.Match[str], root: Path) -> list[PairRow]:
    """`FOLDS N`, then per fold N lines `name i j` of one person and N `name i name j` of two."""
    folds, each = int(head[1]), int(head[2])
    body = [line.split() for line in lines[1:] if line.strip()]
    if len(body) != 2 * folds * each:
        raise FacesError(
            f"{file} says {folds} folds of {each} genuine and {each} impostor pairs, which is "
            f"{2 * folds * each} lines, and has {len(body)}"
        )
    rows = []
    suffix = ""
    for index, words in enumerate(body):
        same = index // each % 2 == 0
        wanted = "name i j" if same else "name1 i name2 j"
        numbers = words[1::2] if not same else words[1:]
        if len(words) != len(wanted.split()) or not all(map(_NUMBER.fullmatch, numbers)):
            raise FacesError(f"{file}: {' '.join(words)[:80]!r}, expected {wanted!r}")
        names = (words[0], words[0] if same else words[2])
        stems = [
            f"{name}/{name}_{int(number):04d}" for name, number in zip(names, numbers, strict=True)
        ]
        suffix = suffix or next(
            (s for s in SUFFIXES if os.path.isfile(root / (stems[0] + s))), ".jpg"
        )
        first, second = (stem + suffix for stem in stems)
        rows.append(PairRow(index // (2 * each), first, second, same))
    return rows


def _check_once(file: Path, rows: list[PairRow]) -> None:
    seen: set[tuple[str, str]] = set()
    for row in rows:
        pair = (min(row.first, row.second), max(row.first, row.second))
        if row.first == row.second:
            raise FacesError(f"{file} compares {row.first} with itself")
        if pair in seen:
            raise FacesError(f"{file} has the pair {row.first}, {row.second} twice")
        seen.add(pair)


# Pair lists: which faces to compare, and whether they are one person.
#
# `fold,path1,path2,same` with a header, LFW's own `pairs.txt`, or an insightface `.bin` set.

_FOLDS = 10


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


def _named_faces(file: Path, rows: list[PairRow], source: str | Path) -> Faces:
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
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream)
            if list(rows.fieldnames or ()) != ["path", "group"]:
                raise FacesError(f"{file} begins with {rows.fieldnames}, expected path,group")
            for row in rows:
                index = where.get(row["path"] or "")
                if index is not None and row["group"]:
                    mask = groups.setdefault(row["group"], np.zeros(len(keys), np.bool_))
                    mask[index] = True
    except FileNotFoundError as error:
        raise FacesError(f"there is no list of groups at {file}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FacesError(f"{file} cannot be read as a list of groups: {error}") from error
    if not groups:
        raise FacesError(
            f"{file} names none of the {len(keys)} faces",
            f"paths are as the faces' own, such as {keys[0]}",
        )
    return dict(sorted(groups.items()))


def _missing(file: Path, missing: list[str], named: int, where: str) -> FacesError:
    return FacesError(
        f"{file} names {named} images, {len(missing)} of them are not in {where}: "
        f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}",
        "paths are relative to the list's folder, or to the faces given",
    )
