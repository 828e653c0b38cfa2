"""Two models side by side on the same faces: TAR, FAR and thresholds, and cosines face by face.

`compare_rates` takes scores, `compare_embeddings` all of it from the embeddings of few faces (what
calibration judges INT8 by), `measure_drift` the distribution of cosines and the faces that moved
most.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..arrays import F32, F64, I64
from .dimensions import min_dimension_correlation, min_length_ratio
from .intervals import TarInterval
from .person_variance import Ends, PeoplePairs
from .smoothed_drop import PairPeople, SmoothedDrop, smoothed_tar_drop
from .verification import (
    FARS,
    ScoreList,
    Scores,
    cosines,
    equal_error_rate,
    far_name,
    normalise,
    rates_at,
    roc,
    threshold_at_far,
)

SOLID_IMPOSTORS = 10  # above the threshold; with fewer, TAR depends on single pairs

_COARSE_BINS = 128  # of scores that a report plots

_DRIFT_BINS = 40  # of cosines between two models that a report plots

_WORST_FACES = 12  # shown in a report

_SEPARATED_TAR = 0.5  # trained networks accept 90 % of genuine pairs and more at FAR 1e-2

_SEPARATED_PAIRS = 20  # genuine pairs that such a judgement needs


@dataclass(frozen=True)
class ThresholdChange:
    """Cosine thresholds of both models at one FAR; None where the pairs do not resolve it."""

    reference: float | None = None
    engine: float | None = None


@dataclass(frozen=True)
class ThresholdKept:
    """Rates of the engine at the reference's threshold, as fractions; None without one."""

    tar: float | None = None
    far: float | None = None


@dataclass(frozen=True)
class RateChange:
    """True accept rates of two models at one false accept rate.

    Attributes:
        far: The false accept rate.
        reference: TAR of the reference, a fraction; None where the pairs do not resolve the FAR.
        engine: TAR of the engine (or of any second model) at its own threshold.
        delta: Engine minus reference: negative is a loss.
        interval_95: 95 % intervals over people, where they were computed.
        threshold: The thresholds of both.
        threshold_kept: What the engine accepts at the reference's threshold.
        smoothed_drop: The loss expected on other people (`smoothed_tar_drop`), from listed scores.
        smoothed_drop_error: Its standard error, over people.
        smoothed_drop_interval_95: Its 95 % interval; None with too few people or impostor pairs.
        reason: Why there are no rates; empty where there are.
        low_confidence: Why the rates depend on a handful of pairs; empty where they do not.
    """

    far: float
    reference: float | None = None
    engine: float | None = None
    delta: float | None = None
    interval_95: TarInterval | None = None
    threshold: ThresholdChange = ThresholdChange()
    threshold_kept: ThresholdKept = ThresholdKept()
    smoothed_drop: float | None = None
    smoothed_drop_error: float | None = None
    smoothed_drop_interval_95: Ends | None = None
    reason: str = ""
    low_confidence: str = ""

    @property
    def drop(self) -> float:
        """Reference minus engine, a fraction; NaN where there are no rates."""
        return np.nan if self.delta is None else -self.delta


@dataclass(frozen=True)
class ScoreCurves:
    """What a report plots of one model's scores.

    Attributes:
        roc: `far` and `tar` of the points of the ROC curve.
        eer: Equal error rate, a fraction.
        genuine: Share of the genuine pairs in each of 128 bins over cosine -1..1.
        impostor: The same of the impostor pairs.
    """

    roc: dict[str, list[float]]
    eer: float
    genuine: tuple[float, ...]
    impostor: tuple[float, ...]


@dataclass(frozen=True)
class CosineSummary:
    """Cosines between two models' embeddings of the same faces: mean, first percentile, minimum."""

    mean: float
    p1: float
    min: float


@dataclass(frozen=True)
class EmbeddingLoss:
    """How far a second model's embeddings are from the first's.

    Attributes:
        faces: Faces compared.
        people: Identities among them.
        genuine_pairs: Pairs of one person; a rate moves by at least one of them.
        cosine: Cosines between the two models' embeddings of each face.
        rates: The false accept rates that the impostor pairs resolve, the largest first.
    """

    faces: int
    people: int
    genuine_pairs: int
    cosine: CosineSummary
    rates: tuple[RateChange, ...]

    def at(self, far: float) -> RateChange | None:
        """The rates at a FAR; None where the pairs do not resolve it."""
        return next((rate for rate in self.rates if rate.far == far), None)


@dataclass(frozen=True)
class CosineHistogram:
    """A histogram of cosines: `edges`, one more than `counts`."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class FaceCosine:
    """One face and the cosine between two models' embeddings of it."""

    face: str
    cosine: float


@dataclass(frozen=True)
class CosineDrift:
    """The distribution of cosines between reference and engine.

    Attributes:
        faces: Faces compared.
        min: Minimum.
        p1: First percentile.
        p5: Fifth percentile.
        median: Median.
        mean: Mean.
        histogram: The distribution.
        worst: The faces that moved most, the worst first.
        min_dimension_correlation: Of the dimensions of the embedding, the lowest correlation over
            the faces (`min_dimension_correlation`); None with few faces and in reports of earlier
            versions.
        min_length_ratio: Of the faces' embeddings, the lowest ratio of the shorter to the longer one
            of both models; None in reports of earlier versions.
    """

    faces: int
    min: float
    p1: float
    p5: float
    median: float
    mean: float
    histogram: CosineHistogram
    worst: tuple[FaceCosine, ...]
    min_dimension_correlation: float | None = None
    min_length_ratio: float | None = None


def compare_rates(
    reference: Scores | ScoreList,
    engine: Scores | ScoreList,
    fars: Sequence[float],
    intervals: Mapping[float, TarInterval] | None = None,
    people: PairPeople | None = None,
) -> list[RateChange]:
    """Rates of two models at false accept rates.

    Args:
        reference: Pairs scored by the reference.
        engine: The same pairs scored by the engine.
        fars: False accept rates, 0 to 1.
        intervals: 95 % intervals by FAR.
        people: The people of listed scores' pairs, for the smoothed drop.

    Returns:
        One per rate, the largest first.
    """
    intervals = intervals or {}
    return [
        _rate_change(reference, engine, far, intervals.get(far), people)
        for far in sorted(set(fars), reverse=True)
    ]


def few_impostors(pairs: int, far: float) -> str:
    """Why rates at a FAR depend on a handful of pairs.

    Args:
        pairs: Number of impostor pairs.
        far: False accept rate, 0 to 1.

    Returns:
        A sentence; empty where the pairs suffice.
    """
    if pairs * far >= SOLID_IMPOSTORS:
        return ""
    return (
        f"FAR {far_name(far)} needs {round(SOLID_IMPOSTORS / far):,} impostor pairs to be solid, "
        f"these faces give {pairs:,}"
    )


def score_curves(scores: Scores) -> ScoreCurves:
    """ROC, EER and distributions of one model's scores.

    Args:
        scores: Counted pairs.
    """
    genuine, impostor = (
        tuple(float(share) for share in counts.reshape(_COARSE_BINS, -1).sum(1) / max(1, total))
        for counts, total in (
            (scores.genuine, scores.genuine_pairs),
            (scores.impostor, scores.impostor_pairs),
        )
    )
    return ScoreCurves(roc(scores), equal_error_rate(scores), genuine, impostor)


def compare_embeddings(
    reference: F32, engine: F32, labels: I64, extra_far: float | None = None
) -> EmbeddingLoss:
    """Compare two models on few faces: every pair is listed.

    Args:
        reference: Embeddings `(N, D) float32` by the reference.
        engine: Embeddings `(N, D) float32` of the same faces by the second model.
        labels: Identity of each face, `(N,) int64`.
        extra_far: A false accept rate beside `FARS`.

    Returns:
        Cosines, and the rates that as many impostor pairs as their inverse and one genuine pair
        resolve.
    """
    cosine = cosines(reference, engine)
    first, second = np.triu_indices(len(labels), 1)
    same = labels[first] == labels[second]
    rates: list[RateChange] = []
    if same.any() and not same.all():
        both = []
        for embeddings in (reference, engine):
            unit = normalise(embeddings)
            scores = np.asarray((unit @ unit.T)[first, second])
            both.append(ScoreList(scores[same], scores[~same]))
        fars = (*FARS, *([extra_far] if extra_far else []))
        rates = compare_rates(both[0], both[1], fars, people=_pair_people(first, second, labels))
        rates = [rate for rate in rates if not rate.reason]
    return EmbeddingLoss(
        len(labels),
        len(np.unique(labels)),
        int(same.sum()),
        CosineSummary(float(cosine.mean()), float(np.percentile(cosine, 1)), float(cosine.min())),
        tuple(rates),
    )


def unseparated_warning(loss: EmbeddingLoss) -> str:
    """A warning when the reference itself hardly separates the people: wrong faces for it.

    Args:
        loss: The comparison of the reference with another model.

    Returns:
        A sentence; empty where the reference separates them, or too few pairs show it.
    """
    first = loss.rates[0] if loss.rates else None
    if first is None or first.reference is None or loss.genuine_pairs < _SEPARATED_PAIRS:
        return ""
    if first.reference >= _SEPARATED_TAR:
        return ""
    return (
        f"the float network accepts {first.reference:.0%} of {loss.genuine_pairs} genuine pairs"
        f" where it accepts one impostor pair in {1 / first.far:.0f}: are the faces aligned, the"
        " labels right, the input contract the network's (`fr-edge find-preprocessing`)?"
    )


def measure_drift(reference: F32, engine: F32, keys: Sequence[str]) -> CosineDrift:
    """Compare the embeddings of two models face by face.

    Args:
        reference: `(N, D) float32` by the reference.
        engine: `(N, D) float32` of the same faces by the engine.
        keys: Name of each face.
    """
    cosine: F64 = np.minimum(cosines(reference, engine), 1.0)
    p1, p5, median = (float(v) for v in np.percentile(cosine, (1, 5, 50)))
    floor = np.floor(cosine.min() * 100 - 1e-9) / 100
    counts, edges = np.histogram(cosine, _DRIFT_BINS, (floor, 1.0))
    return CosineDrift(
        len(cosine),
        float(cosine.min()),
        p1,
        p5,
        median,
        float(cosine.mean()),
        CosineHistogram(tuple(float(e) for e in edges), tuple(int(c) for c in counts)),
        tuple(FaceCosine(keys[i], float(cosine[i])) for i in np.argsort(cosine)[:_WORST_FACES]),
        min_dimension_correlation(reference, engine),
        min_length_ratio(reference, engine),
    )


def _pair_people(first: I64, second: I64, labels: I64) -> PairPeople:
    """The people of the pairs of faces `first` and `second`, genuine and impostor ones apart."""
    person = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    faces = np.bincount(person).astype(np.float64)
    same = person[first] == person[second]
    genuine = PeoplePairs(first[same], second[same], person, faces)
    return PairPeople(genuine, person[first[~same]], person[second[~same]])


def _rate_change(
    reference: Scores | ScoreList,
    engine: Scores | ScoreList,
    far: float,
    interval: TarInterval | None,
    people: PairPeople | None,
) -> RateChange:
    old, new = threshold_at_far(reference, far), threshold_at_far(engine, far)
    pairs = reference.impostor_pairs
    if not reference.genuine_pairs:
        return RateChange(far, reason="no two faces are of the same person")
    if old is None or new is None:
        needed = f"{round(SOLID_IMPOSTORS / far):,} needed"  # as `few_impostors` has it
        return RateChange(far, reason=f"{pairs:,} impostor pairs, {needed}")
    smoothed: SmoothedDrop | None = None
    if people and isinstance(reference, ScoreList) and isinstance(engine, ScoreList):
        smoothed = smoothed_tar_drop(far, reference, engine, people)
    before, after = rates_at(reference, old)[0], rates_at(engine, new)[0]
    return RateChange(
        far,
        before,
        after,
        after - before,
        interval,
        ThresholdChange(old, new),
        ThresholdKept(*rates_at(engine, old)),
        smoothed.drop if smoothed else None,
        smoothed.error if smoothed else None,
        smoothed.interval_95 if smoothed else None,
        low_confidence=few_impostors(pairs, far),
    )
