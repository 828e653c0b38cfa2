"""How well reference and engine separate the same people: all that follows from the embeddings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..arrays import F32, I64
from .accuracy import accuracy_interval, fold_interval, fold_intervals, pair_accuracy
from .intervals import rate_intervals, tar_intervals
from .person_variance import few_people
from .protocols import ListedPairs
from .rates import RateChange, ScoreCurves, compare_rates, score_curves
from .strata import Stratum, compare_strata
from .verification import FARS, Scores, all_pairs, cosines, count_scores, far_name


@dataclass(frozen=True)
class AccuracyChange:
    """Mean accuracy over the folds of a pair list, and the engine's 95 % interval, as fractions."""

    reference: float
    engine: float
    folds: int
    engine_interval_95: tuple[float, float] | None = None


@dataclass(frozen=True)
class CurvesChange:
    """Curves of both models, for plots."""

    reference: ScoreCurves
    engine: ScoreCurves


@dataclass(frozen=True)
class VerificationComparison:
    """Reference and engine on the same people.

    Attributes:
        tar: Rates by the name of the FAR.
        mixed_gallery: The same with the reference's embeddings enrolled and the engine's as probes;
            empty where only listed pairs are known.
        strata_far: Name of the FAR whose thresholds the strata use: the wanted one, or the nearest
            larger one with enough pairs; None if no FAR has enough pairs.
        strata: Kinds of faces, the largest drop first.
        accuracy: Accuracy over the folds of the pair list; None without one.
        curves: For plots.
        notes: What is missing or not reliable, and why.
        degraded: Degraded copies of faces, where they were tried.
        eer_interval_95: Of the engine's equal error rate, where it was asked for.
    """

    tar: dict[str, RateChange]
    mixed_gallery: dict[str, RateChange]
    strata_far: str | None
    strata: tuple[Stratum, ...]
    accuracy: AccuracyChange | None
    curves: CurvesChange
    notes: tuple[str, ...]
    degraded: tuple[Stratum, ...] = ()
    eer_interval_95: tuple[float, float] | None = None

    @property
    def strata_rate(self) -> RateChange | None:
        """The rates whose thresholds the strata use."""
        return self.tar[self.strata_far] if self.strata_far else None

    def at(self, far: float) -> RateChange:
        """The rates at one FAR."""
        return self.tar[far_name(far)]


def compare_verification(
    reference: F32,
    engine: F32,
    labels: I64 | None,
    pairs: ListedPairs | None,
    measures: Mapping[tuple[str, str], F32],
    far: float,
    groups: Mapping[str, npt.NDArray[np.bool_]] | None = None,
    *,
    eer_interval: bool = False,
) -> VerificationComparison | None:
    """Compare two models' embeddings of the same faces.

    All pairs of the faces are counted where their identities are known, else those of the list.

    Args:
        reference: `(N, D) float32` by the reference.
        engine: `(N, D) float32` by the engine.
        labels: Identity of each face, `(N,) int64`; None where they are not known.
        pairs: A pair list over the faces, for the accuracy.
        measures: Names of the lowest and the highest quarter -> a value per face, `(N,)`.
        far: A false accept rate beside `FARS`, whose thresholds the strata use.
        groups: Name -> which faces belong to it, `(N,) bool`.
        eer_interval: Whether to add the interval of the engine's equal error rate.

    Returns:
        None where neither identities of several people nor pairs are known.
    """
    fars = (*FARS, far)
    accuracy, eer_ends = None, None
    if pairs is not None:
        judged_accuracy = pair_accuracy(engine, pairs)
        accuracy = AccuracyChange(
            pair_accuracy(reference, pairs).mean,
            judged_accuracy.mean,
            judged_accuracy.folds,
            fold_interval(judged_accuracy)
            if labels is None
            else accuracy_interval(engine, pairs, labels),
        )
    if labels is not None and len(np.unique(labels)) > 1:
        before, after = all_pairs(reference, labels), all_pairs(engine, labels)
        intervals = tar_intervals(reference, engine, labels, (before, after), fars)
        rates = compare_rates(before, after, fars, intervals)
        both = before, all_pairs(reference, labels, engine)
        ends = tar_intervals(reference, engine, labels, both, fars, mixed=True)
        mixed = compare_rates(*both, fars, ends)
        judged = _strata_rate(rates, far)
        strata = compare_strata(reference, engine, labels, measures, judged, groups)
        notes = (note,) if (note := few_people(labels)) else ()
        if eer_interval:
            eer_ends = rate_intervals(engine, labels, after, ()).eer
    elif pairs is not None:
        before, after = _listed(reference, pairs), _listed(engine, pairs)
        scored = tuple(cosines(e[pairs.first], e[pairs.second]) for e in (reference, engine))
        rates = compare_rates(
            before, after, fars, fold_intervals(scored[0], scored[1], pairs.same, pairs.fold, fars)
        )
        mixed, strata, judged = [], [], None
        notes = ("mixed gallery and strata: the pair list does not say who is who",)
    else:
        return None
    return VerificationComparison(
        rates_by_name(rates),
        rates_by_name(mixed),
        far_name(judged.far) if judged else None,
        tuple(strata),
        accuracy,
        CurvesChange(score_curves(before), score_curves(after)),
        notes,
        eer_interval_95=eer_ends,
    )


def rates_by_name(rates: Sequence[RateChange]) -> dict[str, RateChange]:
    """Rates by the name of their FAR, `1e-4`.

    Args:
        rates: Rates at different FARs.
    """
    return {far_name(rate.far): rate for rate in rates}


def _listed(embeddings: F32, pairs: ListedPairs) -> Scores:
    return count_scores(cosines(embeddings[pairs.first], embeddings[pairs.second]), pairs.same)


def _strata_rate(rates: Sequence[RateChange], far: float) -> RateChange | None:
    """The wanted FAR, or the nearest larger one that has enough pairs."""
    solid = [r for r in rates if r.far >= far and r.delta is not None and not r.low_confidence]
    return solid[-1] if solid else None
