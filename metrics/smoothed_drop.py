"""The loss of true accepts to expect on other people, from all pairs near the threshold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..arrays import F64, I64
from .intervals import MIN_ACCEPTED
from .person_variance import (
    FEW_PEOPLE,
    REFUSED,
    Ends,
    FarError,
    PairCorrelation,
    PeoplePairs,
    between_people,
    design_effect,
    far_error,
    far_variance,
    pair_correlation,
    pair_moments,
    share_design,
    sum_by_person,
)
from .score_intervals import influence_freedom, student_t
from .verification import ScoreList, allowed_impostors, threshold_at_far

_TAIL = (1, 2, 4, 8)  # times the rate: where the move of the threshold is measured

_TAIL_PAIRS = 20  # impostor pairs above a threshold so that its move is not a few people's

_NARROWER = 3.0  # times: the step that shows how many pairs are near; 2 has more bias, 4 more noise

_MOVES = 33  # sizes of moves for which it is counted how many pairs they carry over the threshold

_SMALL_MOVE = 1e-3  # of the step's width: smaller moves see the density at the threshold alone

_PRIOR = PairCorrelation(face=0.2, person=0.06)  # of lost true accepts


@dataclass(frozen=True, eq=False)
class PairPeople:
    """The people of listed pairs, in the order of a `ScoreList`.

    Attributes:
        genuine: The genuine pairs.
        impostor_a: First person of each impostor pair, `(I,) int64`.
        impostor_b: Second person of each impostor pair, `(I,) int64`.
    """

    genuine: PeoplePairs
    impostor_a: I64
    impostor_b: I64


@dataclass(frozen=True)
class SmoothedDrop:
    """The loss of TAR expected on other people.

    Attributes:
        drop: Reference minus engine, a fraction.
        error: Its standard error, over people.
        interval_95: `(low, high)`; None with fewer than `FEW_PEOPLE` people who have two faces or
            `MIN_ACCEPTED` impostor pairs above the threshold.
    """

    drop: float
    error: float
    interval_95: Ends | None


def smoothed_tar_drop(
    far: float, reference: ScoreList, engine: ScoreList, people: PairPeople
) -> SmoothedDrop:
    """The loss of true accepts expected on other people, from all pairs near the threshold.

    The count of pairs that crossed the threshold moves by one pair at a time. Here each pair counts
    by a smooth step, `tanh`, as wide as genuine scores scatter, scaled by how many pairs a move of its
    size carries over the threshold in a narrower step. The threshold moves as
    it does in the mean of several rates that enough impostors hold. A fraction of the variance for
    some bias (docs/results/int8.md), whose size the interval estimates and includes. Student's t has
    the degrees of freedom of people's influences (Welch, 1947; Satterthwaite, 1946).

    Args:
        far: False accept rate, 0 to 1; the impostor pairs must resolve it.
        reference: Pairs scored by the reference.
        engine: The same pairs, in the same order, scored by the engine.
        people: Their people.
    """
    first = max(far, _TAIL_PAIRS / reference.impostor_pairs)
    rates = [first * times for times in _TAIL if first * times < 1.0] or [far]
    moves = [_threshold(engine, rate) - _threshold(reference, rate) for rate in rates]
    old, new = reference.genuine.astype(np.float64), engine.genuine.astype(np.float64)
    width = float(old.std()) or 1.0
    margin, moved = old - _threshold(reference, far), new - old - float(np.mean(moves))
    lost, slope = _lost(margin, moved, width)
    values = _with_density(lost, margin, width)
    genuine = _genuine_variance(values, people.genuine)
    terms = _move_terms(reference, engine, people, rates, slope)
    threshold = far_variance(terms, people.genuine.faces)

    # How much a narrower step and the move at the first rate alone would change the result.
    narrow, _ = _lost(margin, moved, width / 2)
    bias = float(lost.mean() - narrow.mean()) ** 2
    bias += (slope * (moves[0] - float(np.mean(moves)))) ** 2
    drop, error = float(lost.mean()), float(np.sqrt(genuine + threshold))
    genuine *= _unseen(margin, people.genuine)
    by_threshold = np.zeros(len(people.genuine.faces))
    for weight, term in terms:
        by_threshold += weight * term.person
    by_people = sum_by_person(values - values.mean(), people.genuine)
    rest = genuine**2 / influence_freedom(by_people)
    rest += threshold**2 / influence_freedom(by_threshold)
    variance = genuine + threshold + bias
    quantile = student_t(max(1, int(variance**2 / rest))) if rest else 0.0
    half = quantile * float(np.sqrt(variance))
    several = int((people.genuine.faces > 1).sum())
    enough = several >= FEW_PEOPLE and (
        allowed_impostors(far, reference.impostor_pairs) >= MIN_ACCEPTED
    )
    return SmoothedDrop(drop, error, (drop - half, drop + half) if enough else None)


def _lost(margin: F64, moved: F64, width: float) -> tuple[F64, float]:
    """What each genuine pair loses, `(G,)`, and the loss of TAR when the threshold rises by 1."""
    before, after = margin / width, (margin + moved) / width
    lost = (np.tanh(before) - np.tanh(after)) / 2 * _crossing_ratio(margin, moved, width)
    scale = _density(margin, width / _NARROWER) / _density(margin, width)
    return lost, float((1 - np.tanh(after) ** 2).mean()) / (2 * width) * scale


def _crossing_ratio(margin: F64, moved: F64, width: float) -> F64:
    """Pairs that a move of the same size carries over the threshold by a narrower step, over those by the
    step itself, for the move of each pair `(G,)`.

    For a small move it is the ratio of the densities at the threshold. A large one carries pairs over
    that lie far above, where there are more of them than at the threshold.
    """
    narrow = _density(margin, width / _NARROWER) / _density(margin, width)
    moves = np.linspace(moved.min(), moved.max(), _MOVES)

    def carried(step: float) -> F64:
        before = np.tanh(margin / step).mean()
        after = np.tanh((margin + moves[:, None]) / step).mean(axis=1)
        return np.asarray(before - after, np.float64)

    by_step = carried(width)
    large = (np.abs(moves) > _SMALL_MOVE * width) & (by_step != 0)  # 0: none is carried over
    ratios = np.full(_MOVES, narrow)
    ratios[large] = carried(width / _NARROWER)[large] / by_step[large]
    return np.asarray(np.interp(moved, moves, ratios), np.float64)


def _with_density(lost: F64, margin: F64, width: float) -> F64:
    """The losses with the influence of each pair on the density that scales them."""
    narrow, wide = (1 - np.tanh(margin / w) ** 2 for w in (width / _NARROWER, width))
    ratio = narrow / max(float(narrow.mean()), 1e-12) - wide / max(float(wide.mean()), 1e-12)
    values: F64 = lost + lost.mean() * ratio
    return values


def _density(margin: F64, width: float) -> float:
    """Density of the margins at 0, through a step of that width."""
    return float((1 - np.tanh(margin / width) ** 2).mean()) / width or 1e-12


def _genuine_variance(values: F64, pairs: PeoplePairs) -> float:
    """Of the mean of pair values: by correlations within people, or by how people differ."""
    moments = pair_moments(values, pairs)
    design = design_effect(pairs, pair_correlation(moments, _PRIOR, 1.0, 1.0))
    return max(moments.pair * design, between_people(values - values.mean(), pairs))


def _unseen(margin: F64, pairs: PeoplePairs) -> float:
    """How much larger the variance is with people who are refused more often than those seen: the
    ratio of TAR (1 - TAR) with half an effective pair more, half accepted, to that without.
    """
    accepted = (margin >= 0).astype(np.float64)
    often_refused = (margin > np.quantile(margin, REFUSED)).astype(np.float64)
    design = share_design(accepted, often_refused, pairs)
    tar = min(max(float(accepted.mean()), 0.5 / len(margin)), 1 - 0.5 / len(margin))
    drawn = (tar + design / 4) / (1 + design / 2)
    return max(1.0, drawn * (1 - drawn) / (tar * (1 - tar)))


def _move_terms(
    reference: ScoreList,
    engine: ScoreList,
    people: PairPeople,
    rates: Sequence[float],
    slope: float,
) -> list[tuple[float, FarError]]:
    """Weights and errors of the FARs that the mean move of the threshold at `rates` hangs on."""
    terms = []
    for rate in rates:
        for scores, sign in ((engine, 1.0), (reference, -1.0)):
            threshold = _threshold(scores, rate)
            above = scores.impostor >= threshold
            error = far_error(
                people.impostor_a[above], people.impostor_b[above], people.genuine.faces
            )
            half, twice = (_threshold(scores, min(1.0, rate * times)) for times in (0.5, 2.0))
            per_log_far = (half - twice) / np.log(4)
            terms.append((sign * slope * per_log_far / len(rates), error))
    return terms


def _threshold(scores: ScoreList, far: float) -> float:
    threshold = threshold_at_far(scores, max(far, 1 / scores.impostor_pairs))
    return 1.0 if threshold is None else threshold
