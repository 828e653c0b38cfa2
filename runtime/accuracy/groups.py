"""Groups that a CSV gives faces: `path,group`, as many lines per face as it has groups."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...errors import FacesError


def read_groups(file: Path, keys: Sequence[str]) -> dict[str, npt.NDArray[np.bool_]]:
    """Group -> which of the faces `keys` are in it, `(N,) bool`.

    Raises FacesError when the file is no such list or names no face of these.
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
