"""Pair lists: `fold,path1,path2,same`, the protocol of LFW and its kin."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import FacesError
from .sources import Faces, open_faces

HEADER = ("fold", "path1", "path2", "same")


@dataclass(frozen=True)
class Pairs:
    """P pairs over `faces`: `first`, `second` `(P,) int64` index it, `same` `(P,) bool`,
    `fold` `(P,) int64`."""

    faces: Faces
    fold: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]
    same: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.same)


def read_pairs(file: str | Path, source: str | Path | None = None) -> Pairs:
    """Read a pair list; paths are relative to `source`, or else to the file's folder.

    The faces kept are those that the list names. Raises FacesError for a list that cannot be read
    or names images that are not there.
    """
    file = Path(file)
    rows = _rows(file)
    everything = open_faces(file.parent if source is None else source)
    where = {key: index for index, key in enumerate(everything.keys)}
    named = sorted({path for row in rows for path in row[1:3]})
    missing = [path for path in named if path not in where]
    if missing:
        raise FacesError(
            f"{file} names {len(missing)} images that {everything.where} does not have, "
            f"the first is {missing[0]}",
            "paths are relative to the list's folder, or to --faces",
        )
    number = {path: index for index, path in enumerate(named)}
    kept = [where[path] for path in named]
    faces = Faces(
        everything.where,
        tuple(named),
        tuple(everything.labels[i] for i in kept),
        lambda index: everything.read(kept[index]),
        everything.drawn,
    )
    return Pairs(
        faces,
        np.array([row[0] for row in rows], np.int64),
        np.array([number[row[1]] for row in rows], np.int64),
        np.array([number[row[2]] for row in rows], np.int64),
        np.array([row[3] for row in rows], np.bool_),
    )


def _rows(file: Path) -> list[tuple[int, str, str, bool]]:
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            if tuple(reader.fieldnames or ()) != HEADER:
                found = ",".join(reader.fieldnames or ())[:80]
                raise FacesError(f"{file} begins with {found!r}, expected {','.join(HEADER)!r}")
            rows = []
            for line, row in enumerate(reader, 2):
                if (
                    not (row["fold"] or "").isdigit()
                    or row["same"] not in ("0", "1")
                    or None in row
                ):
                    raise FacesError(f"{file}, line {line}: expected fold,path1,path2,0 or 1")
                rows.append((int(row["fold"]), row["path1"], row["path2"], row["same"] == "1"))
    except FileNotFoundError as error:
        raise FacesError(f"there is no pair list at {file}") from error
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise FacesError(f"{file} is not a CSV file: {error}") from error
    same = [row[3] for row in rows]
    if not any(same) or all(same):
        raise FacesError(
            f"{file} needs genuine and impostor pairs, found {len(rows)} rows of one kind"
        )
    return rows
