"""Where the engine loses more than elsewhere: dark, blurred, weakly embedded faces.

A mean over all faces hides a small group that is affected. Thresholds are those of all faces, as on
a device.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..arrays import F32, F64, I64
from .intervals import MIN_PEOPLE
from .person_variance import student_t
from .rates import RateChange
from .verification import cosines, normalise

MIN_STRATUM_PAIRS = 50  # genuine pairs that a stratum needs for a TAR of its own

_PART = 1 << 16  # pairs scored at once


@dataclass(frozen=True)
class StratumCosine:
    """Cosines with the reference in a stratum: mean, fifth percentile, minimum."""

    mean: float
    p5: float
    min: float


@dataclass(frozen=True)
class StratumTar:
    """TAR in a stratum at the thresholds of all faces, as fractions, and engine minus reference.

    All None with fewer than 50 genuine pairs; the 95 % interval of the change with fewer than
    `MIN_PEOPLE` people too.
    """

    reference: float | None = None
    engine: float | None = None
    delta: float | None = None
    interval_95: tuple[float, float] | None = None


@dataclass(frozen=True)
class Stratum:
    """Faces of one kind.

    Attributes:
        name: The kind.
        faces: Number of faces.
        cosine: Cosines between reference and engine.
        pairs: Genuine pairs with at least one of the faces.
        tar: Rates of those pairs.
    """

    name: str
    faces: int
    cosine: StratumCosine
    pairs: int
    tar: StratumTar

    @property
    def drop(self) -> float | None:
        """Loss of TAR, a fraction; None with too few pairs."""
        return None if self.tar.delta is None else 0.0 - self.tar.delta

    @property
    def drop_interval_95(self) -> tuple[float, float] | None:
        """95 % interval of the loss; None with too few pairs or people."""
        ends = self.tar.interval_95
        return None if ends is None else (0.0 - ends[1], 0.0 - ends[0])


def compare_strata(
    reference: F32,
    engine: F32,
    labels: I64,
    measures: Mapping[tuple[str, str], F32],
    rate: RateChange | None,
    groups: Mapping[str, npt.NDArray[np.bool_]] | None = None,
) -> list[Stratum]:
    """Rates of the lowest and highest quarter of the faces by several measures, and of groups.

    Args:
        reference: Embeddings `(N, D) float32` by the reference; their length is a measure too.
        engine: Embeddings `(N, D) float32` of the same faces by the engine.
        labels: Identity of each face, `(N,) int64`.
        measures: Names of the lowest and the highest quarter -> a value per face, `(N,)`.
        rate: Its thresholds are applied; None gives cosines only.
        groups: Name -> which faces belong to it, `(N,) bool`.

    Returns:
        The strata, the largest drop first.
    """
    cosine = cosines(reference, engine)
    pairs = _genuine(reference, engine, labels, rate)
    strata = []
    for name, inside in (*_quarters(reference, measures), *(groups or {}).items()):
        if not inside.any():
            continue
        touched = inside[pairs.first] | inside[pairs.second]
        count = int(touched.sum())
        tar = StratumTar()
        if rate is not None and count >= MIN_STRATUM_PAIRS:
            tar = _tar(pairs.old[touched], pairs.new[touched], labels[pairs.first[touched]])
        strata.append(Stratum(name, int(inside.sum()), _summary(cosine[inside]), count, tar))
    return sorted(strata, key=lambda s: (-(s.drop or 0.0), s.cosine.p5))


def compare_degraded(
    name: str,
    clean: tuple[F32, F32],
    degraded: tuple[F32, F32],
    picks: Sequence[int],
    labels: I64,
    rate: RateChange | None,
) -> Stratum:
    """Degraded copies of faces as probes, the other faces of their people as the gallery.

    Args:
        name: The kind of degradation.
        clean: Embeddings `(N, D) float32` of all faces by reference and engine.
        degraded: Embeddings `(P, D) float32` of the copies by reference and engine.
        picks: Of which faces the P copies are.
        labels: Identity of each face, `(N,) int64`.
        rate: Its thresholds are applied; None gives cosines only.
    """
    probe, other = np.nonzero(labels[list(picks)][:, None] == labels[None, :])
    different = np.asarray(picks)[probe] != other
    probe, other = probe[different], other[different]
    tar = StratumTar()
    if rate is not None and len(probe) >= MIN_STRATUM_PAIRS:
        thresholds = (rate.threshold.reference, rate.threshold.engine)
        accepted = [
            None if t is None else cosines(d[probe], c[other]) >= t
            for t, d, c in zip(thresholds, degraded, clean, strict=True)
        ]
        tar = _tar(accepted[0], accepted[1], labels[other])
    return Stratum(name, len(picks), _summary(cosines(*degraded)), len(probe), tar)


@dataclass(frozen=True, eq=False)
class _Genuine:
    """Genuine pairs by face index, and whether each network accepts them, `(G,)` each."""

    first: I64
    second: I64
    old: npt.NDArray[np.bool_]
    new: npt.NDArray[np.bool_]


def _genuine(reference: F32, engine: F32, labels: I64, rate: RateChange | None) -> _Genuine:
    order = np.argsort(labels, kind="stable")
    person = np.asarray(labels)[order]
    place = np.arange(len(order))
    later = np.searchsorted(person, person, side="right") - place - 1
    first = np.repeat(place, later)
    second = np.arange(len(first)) - np.repeat(np.cumsum(later) - later, later) + first + 1
    first, second = order[first], order[second]
    return _Genuine(
        first,
        second,
        _accepted(reference, first, second, rate.threshold.reference if rate else None),
        _accepted(engine, first, second, rate.threshold.engine if rate else None),
    )


def _accepted(
    embeddings: F32, first: I64, second: I64, threshold: float | None
) -> npt.NDArray[np.bool_]:
    """In parts: people with thousands of faces have millions of pairs."""
    unit = normalise(embeddings)
    out = np.zeros(len(first), bool)
    if threshold is not None:
        for start in range(0, len(first), _PART):
            part = slice(start, start + _PART)
            out[part] = np.einsum("nd,nd->n", unit[first[part]], unit[second[part]]) >= threshold
    return out


def _quarters(
    reference: F32, measures: Mapping[tuple[str, str], F32]
) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    norms = np.linalg.norm(reference, axis=1)
    measures = dict(measures)
    if np.ptp(norms) > 1e-3 * norms.mean():  # not of a network that normalises its output
        measures["low norm", "high norm"] = norms
    for (lowest, highest), values in measures.items():
        low, high = np.percentile(values, (25, 75))
        if low < high:
            yield lowest, values <= low
            yield highest, values >= high


def _summary(cosine: npt.NDArray[np.float64]) -> StratumCosine:
    return StratumCosine(float(cosine.mean()), float(np.percentile(cosine, 5)), float(cosine.min()))


def _tar(
    old: npt.NDArray[np.bool_] | None, new: npt.NDArray[np.bool_] | None, person: I64
) -> StratumTar:
    """Rates of pairs by whether each network accepts them, `(G,) bool`; `person` is of each pair."""
    if old is None or new is None:
        rates = [None if accepted is None else float(accepted.mean()) for accepted in (old, new)]
        return StratumTar(rates[0], rates[1])
    before, after = float(old.mean()), float(new.mean())
    change = new.astype(np.float64) - old
    delta = float(change.mean())
    return StratumTar(before, after, delta, _change_interval(change, delta, person))


def _change_interval(change: F64, delta: float, person: I64) -> tuple[float, float] | None:
    """95 % interval of a mean over pairs from its differences between people (the jackknife; Efron,
    1982), at least as if one pair had changed."""
    number = np.unique(person, return_inverse=True)[1]
    pairs = np.bincount(number)
    if len(pairs) < MIN_PEOPLE:
        return None
    influence = np.bincount(number, change - delta) / len(change)
    share = pairs / len(change)
    variance = float(((influence / np.maximum(1 - share, 1e-3)) ** 2).sum())
    half = student_t(len(pairs) - 1) * max(float(np.sqrt(variance)), 1 / len(change))
    return max(-1.0, delta - half), min(1.0, delta + half)
