"""Where the engine loses more than elsewhere: dark, blurred, weakly embedded faces.

A mean over all faces hides a small group that is affected. Thresholds are those of all faces, as on
a device.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..arrays import F32, F64, I64
from .changed_decisions import Decisions, change_interval, change_variance
from .person_variance import MIN_PEOPLE, REFUSED, PeoplePairs, share_design
from .rates import RateChange, ThresholdChange
from .verification import cosines, normalise

MIN_STRATUM_PAIRS = 50  # genuine pairs that a stratum needs for a TAR of its own

_PART = 1 << 16  # pairs scored at once

_FREEDOM_TIMES = 4  # per effective person, where thresholds do not vary

_NEIGHBOURS = (-0.6, -0.4, -0.2, 0.2, 0.4, 0.6)  # deviations from the threshold: other decisions


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
    person = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    pairs = _genuine(reference, engine, person)
    strata = []
    for name, inside in (*_quarters(reference, measures), *(groups or {}).items()):
        if not inside.any():
            continue
        touched = inside[pairs.first] | inside[pairs.second]
        count = int(touched.sum())
        tar = StratumTar()
        if rate is not None and count >= MIN_STRATUM_PAIRS:
            tar = _tar(pairs.of(touched), rate.threshold, person)
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
        # A copy is a face of its own: two pairs of one copy share it, and two of one other face.
        person = np.unique(labels, return_inverse=True)[1].astype(np.int64)
        copies = np.concatenate([person, person[list(picks)]])
        old, new = (cosines(d[probe], c[other]) for d, c in zip(degraded, clean, strict=True))
        tar = _tar(_Scored(other, len(person) + probe, old, new), rate.threshold, copies)
    return Stratum(name, len(picks), _summary(cosines(*degraded)), len(probe), tar)


@dataclass(frozen=True, eq=False)
class _Scored:
    """Genuine pairs by face index, and their cosines by each network, `(G,)` each."""

    first: I64
    second: I64
    old: F32 | F64
    new: F32 | F64

    def of(self, rows: npt.NDArray[np.bool_]) -> "_Scored":
        """Some of them."""
        return _Scored(self.first[rows], self.second[rows], self.old[rows], self.new[rows])


def _genuine(reference: F32, engine: F32, person: I64) -> _Scored:
    order = np.argsort(person, kind="stable")
    ordered = person[order]
    place = np.arange(len(order))
    later = np.searchsorted(ordered, ordered, side="right") - place - 1
    first = np.repeat(place, later)
    second = np.arange(len(first)) - np.repeat(np.cumsum(later) - later, later) + first + 1
    first, second = order[first], order[second]
    return _Scored(first, second, _scores(reference, first, second), _scores(engine, first, second))


def _scores(embeddings: F32, first: I64, second: I64) -> F32:
    """In parts: people with thousands of faces have millions of pairs."""
    unit = normalise(embeddings)
    out = np.zeros(len(first), np.float32)
    for start in range(0, len(first), _PART):
        part = slice(start, start + _PART)
        out[part] = np.einsum("nd,nd->n", unit[first[part]], unit[second[part]])
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


def _tar(pairs: _Scored, thresholds: ThresholdChange, person: I64) -> StratumTar:
    """Rates of genuine pairs; `person` is of each face."""
    before, after = thresholds.reference, thresholds.engine
    rates = [
        None if threshold is None else float((scores >= threshold).mean())
        for scores, threshold in zip((pairs.old, pairs.new), (before, after), strict=True)
    ]
    if before is None or after is None or rates[0] is None or rates[1] is None:
        return StratumTar(rates[0], rates[1])
    delta = rates[1] - rates[0]
    people = PeoplePairs(pairs.first, pairs.second, person, np.bincount(person).astype(np.float64))
    if (people.pairs > 0).sum() < MIN_PEOPLE:
        return StratumTar(rates[0], rates[1], delta)
    scores = pairs.old.astype(np.float64), pairs.new.astype(np.float64)
    scatter = float(scores[0].std())
    decisions = _decide(scores, before, after)
    spread = change_variance(
        decisions,
        [_decide(scores, before + step * scatter, after + step * scatter) for step in _NEIGHBOURS],
        scores,
        (
            share_design(decisions.before, _often_refused(scores[0]), people),
            share_design(decisions.after, _often_refused(scores[1]), people),
        ),
        people,
        _FREEDOM_TIMES,
    )
    return StratumTar(rates[0], rates[1], delta, change_interval(delta, spread))


def _decide(scores: tuple[F64, F64], before: float, after: float) -> Decisions:
    return Decisions(
        (scores[0] >= before).astype(np.float64), (scores[1] >= after).astype(np.float64)
    )


def _often_refused(scores: F64) -> F64:
    accepted: F64 = (scores > np.quantile(scores, REFUSED)).astype(np.float64)
    return accepted
