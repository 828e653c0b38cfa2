"""Where the engine loses more than elsewhere: dark, blurred, weakly embedded faces.

A mean hides the few who are locked out. Thresholds are those of everybody, as on a device.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import F32
from ..errors import FacesError
from ..faces.quality import STRATA
from .rates import RateChange, format_rate
from .verification import cosines, normalise

MIN_STRATUM_FACES = 50
"""Genuine pairs that a stratum needs for a TAR of its own."""


@dataclass(frozen=True)
class Stratum:
    """Faces of one kind: cosines with the reference, and TAR of the genuine pairs with at least
    one of them. `reference` and `engine` are None with fewer than 50 such pairs."""

    name: str
    faces: int
    mean: float
    p5: float
    min: float
    pairs: int
    reference: float | None
    engine: float | None

    @property
    def drop(self) -> float | None:
        if self.reference is None or self.engine is None:
            return None
        return self.reference - self.engine

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "faces": self.faces,
            "cosine": {
                "mean": format_rate(self.mean),
                "p5": format_rate(self.p5),
                "min": format_rate(self.min),
            },
            "pairs": self.pairs,
            "tar": {
                "reference": format_rate(self.reference),
                "engine": format_rate(self.engine),
                "delta": format_rate(None if self.drop is None else -self.drop),
            },
        }


def compare_strata(
    reference: F32,
    engine: F32,
    labels: npt.NDArray[np.int64],
    quality: F32,
    rate: RateChange | None,
    groups: Mapping[str, npt.NDArray[np.bool_]] | None = None,
) -> list[Stratum]:
    """Quarters by `quality (N, 3)` and by the reference's embedding norm, then `groups` (masks).

    `rate` gives both thresholds; without it there are cosines only. The largest drop comes first.
    """
    cosine = cosines(reference, engine).astype(np.float64)
    pairs = _genuine(reference, engine, labels, rate)
    found = []
    for name, inside in (*_quarters(reference, quality), *(groups or {}).items()):
        if not inside.any():
            continue
        touched = inside[pairs.first] | inside[pairs.second]
        count = int(touched.sum())
        solid = rate is not None and count >= MIN_STRATUM_FACES
        found.append(
            Stratum(
                name,
                int(inside.sum()),
                float(cosine[inside].mean()),
                float(np.percentile(cosine[inside], 5)),
                float(cosine[inside].min()),
                count,
                float(pairs.old[touched].mean()) if solid else None,
                float(pairs.new[touched].mean()) if solid else None,
            )
        )
    return sorted(found, key=lambda s: (-(s.drop or 0.0), s.p5))


def compare_worsened(
    name: str,
    clean: tuple[F32, F32],
    worse: tuple[F32, F32],
    picks: Sequence[int],
    labels: npt.NDArray[np.int64],
    rate: RateChange | None,
) -> Stratum:
    """Worsened copies of the faces `picks` as probes, their people's other faces as the gallery.

    `clean (N, D)` and `worse (len(picks), D)` are embeddings by reference and engine.
    """
    cosine = cosines(*worse).astype(np.float64)
    probe, other = np.nonzero(labels[list(picks)][:, None] == labels[None, :])
    real = np.asarray(picks)[probe] != other
    probe, other = probe[real], other[real]
    tar: list[float | None] = [None, None]
    if rate is not None and len(probe) >= MIN_STRATUM_FACES:
        for side, threshold in enumerate((rate.reference_threshold, rate.engine_threshold)):
            scores = cosines(worse[side][probe], clean[side][other])
            tar[side] = None if threshold is None else float((scores >= threshold).mean())
    return Stratum(
        name,
        len(picks),
        float(cosine.mean()),
        float(np.percentile(cosine, 5)),
        float(cosine.min()),
        len(probe),
        *tar,
    )


@dataclass(frozen=True)
class _Genuine:
    """Genuine pairs by face index, and whether each network accepts them, `(G,)` each."""

    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]
    old: npt.NDArray[np.bool_]
    new: npt.NDArray[np.bool_]


def _genuine(
    reference: F32, engine: F32, labels: npt.NDArray[np.int64], rate: RateChange | None
) -> _Genuine:
    order = np.argsort(labels, kind="stable")
    person = np.asarray(labels)[order]
    place = np.arange(len(order))
    later = np.searchsorted(person, person, side="right") - place - 1
    first = np.repeat(place, later)
    second = np.arange(len(first)) - np.repeat(np.cumsum(later) - later, later) + first + 1
    first, second = order[first], order[second]
    old, new = normalise(reference), normalise(engine)
    low = rate.reference_threshold if rate else None
    high = rate.engine_threshold if rate else None
    return _Genuine(
        first,
        second,
        _accepted(old, first, second, low),
        _accepted(new, first, second, high),
    )


def _accepted(
    unit: F32,
    first: npt.NDArray[np.int64],
    second: npt.NDArray[np.int64],
    threshold: float | None,
) -> npt.NDArray[np.bool_]:
    """In parts: people with thousands of faces have millions of pairs."""
    out = np.zeros(len(first), bool)
    if threshold is not None:
        for start in range(0, len(first), 1 << 16):
            part = slice(start, start + (1 << 16))
            out[part] = np.einsum("nd,nd->n", unit[first[part]], unit[second[part]]) >= threshold
    return out


def _quarters(reference: F32, quality: F32) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    norms = np.linalg.norm(reference, axis=1)
    measures = [*((names, quality[:, i]) for i, names in enumerate(STRATA.values()))]
    if np.ptp(norms) > 1e-3 * norms.mean():  # a normalised network says nothing by its norm
        measures.append((("low norm", "high norm"), norms))
    for (lowest, highest), values in measures:
        low, high = np.percentile(values, (25, 75))
        if low < high:
            yield lowest, values <= low
            yield highest, values >= high


# Groups that a CSV gives faces: `path,group`, as many lines per face as it has groups.


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
