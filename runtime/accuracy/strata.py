"""Where the engine loses more than elsewhere: dark, blurred, weakly embedded faces.

A mean hides the few who are locked out. Thresholds are those of everybody, as on a device.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .metrics import cosines, normalise
from .quality import STRATA
from .rates import Rate, short

F32 = npt.NDArray[np.float32]

ENOUGH = 50
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
            "cosine": {"mean": short(self.mean), "p5": short(self.p5), "min": short(self.min)},
            "pairs": self.pairs,
            "tar": {
                "reference": short(self.reference),
                "engine": short(self.engine),
                "delta": short(None if self.drop is None else -self.drop),
            },
        }


def compare_strata(
    reference: F32,
    engine: F32,
    labels: npt.NDArray[np.int64],
    quality: F32,
    rate: Rate | None,
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
        solid = rate is not None and count >= ENOUGH
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
    rate: Rate | None,
) -> Stratum:
    """Worsened copies of the faces `picks` as probes, their people's other faces as the gallery.

    `clean (N, D)` and `worse (len(picks), D)` are embeddings by reference and engine.
    """
    cosine = cosines(*worse).astype(np.float64)
    probe, other = np.nonzero(labels[list(picks)][:, None] == labels[None, :])
    real = np.asarray(picks)[probe] != other
    probe, other = probe[real], other[real]
    tar: list[float | None] = [None, None]
    if rate is not None and len(probe) >= ENOUGH:
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
    reference: F32, engine: F32, labels: npt.NDArray[np.int64], rate: Rate | None
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
