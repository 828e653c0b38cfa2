"""The two texts of a pair list: a CSV file with a header, and LFW's `pairs.txt`.

Gives rows of names; knows nothing of images.
"""

import csv
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import FacesError
from .images import SUFFIXES

HEADER = ("fold", "path1", "path2", "same")
_LFW_HEADER = re.compile(r"\s*(\d{1,6})\s+(\d{1,6})\s*")
_NUMBER = re.compile(r"\d{1,9}")


@dataclass(frozen=True)
class Row:
    fold: int
    first: str
    second: str
    same: bool


def read_list(file: Path, root: Path) -> list[Row]:
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


def _csv_rows(file: Path, lines: list[str]) -> list[Row]:
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
            rows.append(Row(int(cells[0]), first, second, cells[3] == "1"))
    except csv.Error as error:
        raise FacesError(f"{file} is not a CSV file: {error}") from error
    _check_once(file, rows)
    return rows


def _lfw_rows(file: Path, lines: list[str], head: re.Match[str], root: Path) -> list[Row]:
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
        rows.append(Row(index // (2 * each), first, second, same))
    return rows


def _check_once(file: Path, rows: list[Row]) -> None:
    seen: set[tuple[str, str]] = set()
    for row in rows:
        pair = (min(row.first, row.second), max(row.first, row.second))
        if row.first == row.second:
            raise FacesError(f"{file} compares {row.first} with itself")
        if pair in seen:
            raise FacesError(f"{file} has the pair {row.first}, {row.second} twice")
        seen.add(pair)
