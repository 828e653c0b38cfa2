"""Text files that list pairs of faces, in the shapes that people have them.

- CSV with a header, `fold,path1,path2,same` or names alike, or names that the user tells; without
  folds too; separated by commas, semicolons or tabs;
- `path path same` in each line, separated by tabs, spaces or commas, without a header;
- two lines for a pair, `path same` each, as CPLFW has them;
- LFW's `pairs.txt`: folds and counts first, names and numbers of images then.
"""

import csv
import io
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from ..arrays import I64
from ..errors import FacesError, UsageError
from ..reading import read_file
from .images import SUFFIXES

logger = logging.getLogger(__name__)

HEADER = ("fold", "path1", "path2", "same")  # of a CSV pair list

NO_FOLD = -1

_OTHER_NAMES = {  # of columns -> ours
    **dict.fromkeys(("fold", "split", "set"), "fold"),
    **dict.fromkeys(
        ("path1", "file1", "img1", "image1", "a", "left", "first", "filename1"), "path1"
    ),
    **dict.fromkeys(
        ("path2", "file2", "img2", "image2", "b", "right", "second", "filename2"), "path2"
    ),
    **dict.fromkeys(("same", "label", "issame", "is_same", "match", "genuine", "target"), "same"),
}

_TRUTH = {"1": True, "0": False, "true": True, "false": False}

_LFW_HEADER = re.compile(r"\s*(\d{1,6})\s+(\d{1,6})\s*")  # folds, genuine pairs in each

_NUMBER = re.compile(r"\d{1,9}")


@dataclass(frozen=True)
class ListedPair:
    """One pair of a list: paths of two images.

    Attributes:
        fold: Its fold, NO_FOLD where the list has none.
        first: Path of an image, relative to the faces' folder.
        second: Path of the other.
        same: Whether both are one person.
    """

    fold: int
    first: str
    second: str
    same: bool


def encode_pairs(
    keys: Sequence[str], fold: I64, first: I64, second: I64, same: npt.NDArray[np.bool_]
) -> bytes:
    """A pair list as CSV with a header, which `read_pair_list` takes.

    Args:
        keys: Name of each face.
        fold: Of each pair, `(P,)`.
        first: Index of its first face, `(P,)`.
        second: Index of its second face, `(P,)`.
        same: Whether both are one person, `(P,)`.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for number, a, b, genuine in zip(fold, first, second, same, strict=True):
        writer.writerow((int(number), keys[a], keys[b], int(genuine)))
    return text.getvalue().encode("utf-8", "surrogateescape")


def read_pair_list(
    file: Path, root: Path, columns: Sequence[str] | None = None
) -> list[ListedPair]:
    """Read a pair list; its first line tells which kind it is.

    Args:
        file: The list.
        root: Folder of the faces, where LFW's images are looked up for their suffix.
        columns: Names of the columns of a CSV list that hold the first path, the second one, whether
            both are one person, and optionally the fold.

    Returns:
        The pairs in the list's order; one that is listed again counts once, which is logged.

    Raises:
        UsageError: The list has no such columns.
        FacesError: The list cannot be read, or has no pairs of both kinds; the message shows the
            line.
    """
    try:
        text = read_file(file, "LIST_MB", FacesError).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise FacesError(f"the pair list {file} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise FacesError(f"{file} cannot be read as a pair list: {error}") from error
    lines = text.splitlines()
    first = lines[0] if lines else ""
    if columns:
        rows = _csv_rows(file, lines, _named_columns(file, first, columns))
    elif head := _LFW_HEADER.fullmatch(first):
        rows = _lfw_rows(file, lines, head, root)
    elif known := _columns(first):
        rows = _csv_rows(file, lines, known)
    elif len(words := _words(first)) in (2, 3) and words[-1] in _TRUTH:
        rows = _plain_rows(file, lines, len(words))
    else:
        raise FacesError(
            f"{file} begins with {first[:80]!r}, expected {','.join(HEADER)!r}",
            "or columns path1,path2,same (--columns A,B,C tells other names); lines of path, path, 0 or"
            " 1; LFW's pairs.txt; a .bin set",
        )
    rows = _once(file, rows)
    genuine = sum(row.same for row in rows)
    if genuine in (0, len(rows)):
        raise FacesError(
            f"{file} has {genuine} genuine pairs among {len(rows)}, expected both kinds",
            "list pairs of one person (same is 1) and pairs of two people (same is 0)",
        )
    return rows


def _columns(line: str) -> list[str]:
    """Our names of a CSV header's columns; empty for another line. Unknown columns are ""."""
    names = [_OTHER_NAMES.get(name.lower(), "") for name in _cells(line)]
    known = [name for name in names if name]
    return (
        names if {"path1", "path2", "same"} <= set(known) and len(known) == len(set(known)) else []
    )


def _named_columns(file: Path, line: str, columns: Sequence[str]) -> list[str]:
    """Our names of a header's columns, of which the user has told the meaning."""
    if not 3 <= len(columns) <= 4 or not all(columns) or len(set(columns)) < len(columns):
        raise UsageError(
            f"--columns takes the names of three or four columns, found {','.join(columns)!r}",
            "--columns PATH1,PATH2,SAME or PATH1,PATH2,SAME,FOLD, as the list's first line has them",
        )
    header, ours = _cells(line), ("path1", "path2", "same", "fold")
    if missing := [name for name in columns if header.count(name) != 1]:
        raise UsageError(
            f"{file} begins with {line[:80]!r}, which has no column {missing[0]!r} of its own"
        )
    meaning = dict(zip(columns, ours, strict=False))
    return [meaning.get(name, "") for name in header]


def _separator(line: str) -> str:
    return next((mark for mark in ("\t", ";") if mark in line), ",")


def _cells(line: str) -> list[str]:
    """The names in a header."""
    cells = next(csv.reader([line], delimiter=_separator(line)), [])
    return [cell.strip() for cell in cells]


def _csv_rows(file: Path, lines: list[str], columns: Sequence[str]) -> list[ListedPair]:
    rows = []
    try:
        reader = csv.reader(lines[1:], delimiter=_separator(lines[0]), strict=True)
        for number, cells in enumerate(reader, 2):
            if not cells:
                continue
            row = dict(zip(columns, cells, strict=False))
            fold, same = row.get("fold", str(NO_FOLD)), row.get("same", "").strip().lower()
            good = len(cells) == len(columns) and row["path1"] and row["path2"] and same in _TRUTH
            if not good or ("fold" in columns and not _NUMBER.fullmatch(fold)):
                line = ",".join(cells)[:80]
                wanted = ",".join(columns) if "" not in columns else lines[0][:80]
                raise FacesError(
                    f"{file}, line {number}: {line!r}, expected {wanted} with same 0 or 1"
                )
            rows.append(_pair(int(fold), row["path1"], row["path2"], _TRUTH[same]))
    except csv.Error as error:
        raise FacesError(f"{file} is not a CSV file: {error}") from error
    return rows


def _plain_rows(file: Path, lines: list[str], words: int) -> list[ListedPair]:
    """Lines of `path path same`, or two lines `path same` for each pair."""
    cells = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parts = _words(line)
        if len(parts) != words or parts[-1] not in _TRUTH or not all(parts):
            wanted = "path path 0 or 1" if words == 3 else "path 0 or 1"
            raise FacesError(f"{file}, line {number}: {line[:80]!r}, expected {wanted}")
        cells.append(parts)
    if words == 3:
        return [_pair(NO_FOLD, first, second, _TRUTH[same]) for first, second, same in cells]
    if len(cells) % 2 or any(a[1] != b[1] for a, b in zip(cells[::2], cells[1::2], strict=False)):
        raise FacesError(
            f"{file} has a path in each line, expected two lines with one verdict a pair"
        )
    pairs = zip(cells[::2], cells[1::2], strict=True)
    return [_pair(NO_FOLD, a[0], b[0], _TRUTH[a[1]]) for a, b in pairs]


def _lfw_rows(file: Path, lines: list[str], head: re.Match[str], root: Path) -> list[ListedPair]:
    """`FOLDS N`, then per fold N lines `name i j` of one person and N `name i name j` of two."""
    folds, each = int(head[1]), int(head[2])
    body = [_lfw_words(line) for line in lines[1:] if line.strip()]
    if len(body) != 2 * folds * each:
        raise FacesError(
            f"{file} announces {folds} folds of {each} genuine and {each} impostor pairs, which is "
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
        rows.append(ListedPair(index // (2 * each), first, second, same))
    return rows


def _lfw_words(line: str) -> list[str]:
    """By tabs where there are any: a name may hold spaces."""
    return [word.strip() for word in line.strip().split("\t")] if "\t" in line else line.split()


def _words(line: str) -> list[str]:
    """The parts of a line without a header: by tabs, else commas, semicolons, spaces."""
    separator = next((s for s in ("\t", ",", ";") if s in line), None)
    return [word.strip() for word in line.strip().split(separator)]


def _pair(fold: int, first: str, second: str, same: bool) -> ListedPair:
    return ListedPair(fold, PurePosixPath(first).as_posix(), PurePosixPath(second).as_posix(), same)


def _once(file: Path, rows: list[ListedPair]) -> list[ListedPair]:
    """Each pair once; one with itself, or with two verdicts, is an error."""
    listed: dict[tuple[str, str], ListedPair] = {}
    for row in rows:
        pair = (min(row.first, row.second), max(row.first, row.second))
        if row.first == row.second:
            raise FacesError(f"{file} compares {row.first} with itself")
        if listed.setdefault(pair, row).same != row.same:
            raise FacesError(
                f"{file} has the pair {row.first}, {row.second} twice, as one person and as two"
            )
    if again := len(rows) - len(listed):
        logger.warning("%s: %d pairs are listed again and count once", file.name, again)
    return list(listed.values())
