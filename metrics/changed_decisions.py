"""How often two networks decide differently about a pair of faces, and how the difference would move.

Few decisions change at one threshold, so their number alone tells little of other people: none seen
is no proof that none will be. Their rate and correlations are those at thresholds around as well;
the rate has a gamma prior, and an interval's outer end the width that a larger change would have.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..arrays import F64
from .person_variance import (
    Ends,
    PairCorrelation,
    PairMoments,
    PeoplePairs,
    between_people,
    design_effect,
    pair_correlation,
    pair_moments,
)
from .score_intervals import student_t

_PRIOR = PairCorrelation(face=0.05, person=0.02)  # of a decision's change

_PRIOR_PEOPLE = 0.3  # that the prior counts as

FREEDOM_TIMES = 2  # per effective person: changes are drawn to what is expected


@dataclass(frozen=True, eq=False)
class Decisions:
    """What two networks decide about the same genuine pairs at one threshold each.

    Attributes:
        before: 1 for each pair that the first network accepts, else 0, `(G,) float64`.
        after: The same of the second network.
    """

    before: F64
    after: F64

    @property
    def changes(self) -> F64:
        """-1 for each pair that is lost, 1 for each that is won, else 0, `(G,)`."""
        return self.after - self.before


@dataclass(frozen=True)
class ChangeVariance:
    """Variance of the change of a rate at fixed thresholds.

    Attributes:
        unit: The share of the pairs that one more changed decision would be, drawn independently.
        variance: Of the mean change.
        freedom: Degrees of freedom of the variance.
    """

    unit: float
    variance: float
    freedom: int


def change_variance(
    decisions: Decisions,
    around: Iterable[Decisions],
    scores: tuple[F64, F64],
    designs: tuple[float, float],
    pairs: PeoplePairs,
    freedom_times: int = FREEDOM_TIMES,
) -> ChangeVariance:
    """Variance of the change of TAR at fixed thresholds, with other people.

    Args:
        decisions: At the thresholds in question.
        around: At thresholds around them, of the same pairs: the rate of changes is scaled by
            TAR (1 - TAR). Where few change at any, it is drawn towards how far scores moved as a
            share of how far they scatter.
        scores: Cosines of the pairs by both networks, `(G,)` each, in any unit.
        designs: Variance of both networks' TAR over TAR (1 - TAR) (`share_design`).
        pairs: The pairs and their people.
        freedom_times: Degrees of freedom of the variance for each effective person.
    """
    changes = decisions.changes
    moments = pair_moments(changes, pairs)
    changed, spread = 0.0, 0.0
    for near in around:
        moments += pair_moments(near.changes, pairs)
        changed += float((near.changes**2).mean())
        spread += _spread(float(near.before.mean()), float(near.after.mean()))
    design = _design(moments, pairs)
    moved = scores[1] - scores[0]
    scatter = float(scores[0].std()) or 1.0
    ratio = max(
        changed / spread if spread else 0.0,
        float(np.abs(moved - np.median(moved)).mean()) / scatter,
    )
    # A rate drawn towards 1/2 as if one more effective pair had been seen: never 0 or 1.
    tars = [
        (float(accepted.mean()) + unit / 2) / (1 + unit)
        for accepted, unit in zip((decisions.before, decisions.after), designs, strict=True)
    ]
    expected = ratio * _spread(*tars)
    people = int((pairs.pairs > 0).sum())
    if not expected:
        return ChangeVariance(0.0, 0.0, people)
    # Gamma prior of one change at the expected rate, over effective pairs.
    unit = 1 / (1 / design + 1 / expected)
    # The jackknife, and half a change for those that these people do not show (Jeffreys, 1946).
    variance = between_people(changes - changes.mean(), pairs) + unit * design / 2
    return ChangeVariance(unit, variance, _freedom(pairs, freedom_times))


def change_interval(
    change: float, spread: ChangeVariance, threshold: float = 0.0, threshold_freedom: int = 1
) -> Ends:
    """95 % interval of the change of a rate.

    Args:
        change: Second rate minus first.
        spread: Its variance at fixed thresholds.
        threshold: Its variance from the thresholds.
        threshold_freedom: Degrees of freedom of that variance.

    Returns:
        `(low, high)`; Student's t has the degrees of freedom of both variances (Welch, 1947). A
        larger change would be of more decisions and vary more (the score interval of a Poisson
        rate), so the end away from 0 is farther.
    """
    variance = spread.variance + threshold
    rest = spread.variance**2 / max(1, spread.freedom) + threshold**2 / threshold_freedom
    quantile = student_t(max(1, int(variance**2 / rest))) if rest else 0.0
    half = quantile * float(np.sqrt(variance))
    skew = quantile**2 * spread.unit / 2
    wide = skew + float(np.sqrt(skew**2 + half**2))
    low, high = (wide if change <= 0 else half), (wide if change >= 0 else half)
    return max(-1.0, change - low), min(1.0, change + high)


def _freedom(pairs: PeoplePairs, times: int) -> int:
    """Degrees of freedom of a sum of squares of people weighted by their pairs (Satterthwaite, 1946):
    few where few people have most of the pairs.
    """
    squares = pairs.weights**2
    people = int((pairs.pairs > 0).sum())
    effective = float(squares.sum()) ** 2 / float((squares**2).sum())
    return max(1, min(people - 1, int(times * effective)))


def _design(moments: PairMoments, pairs: PeoplePairs) -> float:
    return design_effect(pairs, pair_correlation(moments, _PRIOR, _PRIOR_PEOPLE))


def _spread(a: float, b: float) -> float:
    return (a * (1 - a) + b * (1 - b)) / 2
