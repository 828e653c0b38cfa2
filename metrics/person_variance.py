"""Sampling variance of rates over pairs of faces, when people are drawn at random.

Pairs of one person share faces, and impostor pairs share people, so pairs are not independent.
Genuine pairs: two correlations, of pairs that share a face and of pairs of one person that share
none, give the variance of a rate for any numbers of photographs (a design effect; Kish, 1965).
Impostor pairs: every pair belongs to two people (dyadic clusters; Fafchamps and Gubert, 2007).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..arrays import F64, I64
from .score_intervals import influence_freedom, student_t

MIN_PEOPLE = 10  # with two faces: fewer give no interval

FEW_PEOPLE = 20  # with fewer people who have two faces, an interval over people is wide

REFUSED = 0.15  # of genuine pairs, at the threshold where correlations are first estimated

_EVEN_OUT = 8.0  # photographs from which one more hardly adds to what a person's rate tells


Ends = tuple[float, float]  # of an interval


@dataclass(frozen=True, eq=False)
class PeoplePairs:
    """Genuine pairs of faces, all or some of them, and the people they are of.

    Attributes:
        face_a: First face of each pair, `(G,) int64`.
        face_b: Second face of each pair, `(G,) int64`.
        person: Person of each face, `(N,) int64`, 0 to P - 1.
        faces: Photographs of each person, `(P,) float64`.
    """

    face_a: I64
    face_b: I64
    person: I64
    faces: F64

    @cached_property
    def pairs(self) -> F64:
        """Pairs of each person, `(P,) float64`."""
        return np.bincount(self.person[self.face_a], minlength=len(self.faces)).astype(np.float64)

    @cached_property
    def sharing(self) -> F64:
        """Ordered couples of each person's pairs that share a face, `(P,) float64`."""
        degree = np.bincount(self.face_a, minlength=len(self.person))
        degree += np.bincount(self.face_b, minlength=len(self.person))
        couples = np.bincount(self.person, degree * (degree - 1.0), len(self.faces))
        return couples.astype(np.float64)

    @property
    def apart(self) -> F64:
        """Ordered couples of each person's pairs that share no face, `(P,) float64`."""
        return self.pairs**2 - self.pairs - self.sharing

    @property
    def weights(self) -> F64:
        """Share of each person in the pairs, `(P,)`."""
        share: F64 = self.pairs / self.pairs.sum()
        return share


@dataclass(frozen=True)
class PairMoments:
    """Mean products of centred pair values, every person counting about as much as another.

    Attributes:
        face: Of two pairs of one person that share a face.
        person: Of two pairs of one person that share no face.
        pair: Of a pair with itself: the variance of a pair's value.
        face_people: Number of people that `face` is of, those with three photographs.
        person_people: Number of people that `person` is of, those with four photographs.
    """

    face: float
    person: float
    pair: float
    face_people: float
    person_people: float

    def __add__(self, other: "PairMoments") -> "PairMoments":
        """The moments of both sets of values of the same pairs together."""
        return PairMoments(
            self.face + other.face,
            self.person + other.person,
            self.pair + other.pair,
            self.face_people,
            self.person_people,
        )


@dataclass(frozen=True)
class PairCorrelation:
    """Correlation of the values of two pairs of one person.

    Attributes:
        face: Of pairs that share a face, 0 to 1.
        person: Of pairs that share no face, 0 to 1.
    """

    face: float
    person: float


_ACCEPT_PRIOR = PairCorrelation(face=0.35, person=0.25)  # of being accepted

_ACCEPT_PRIOR_PEOPLE = 1.0  # that the prior counts as


@dataclass(frozen=True, eq=False)
class FarError:
    """The relative error of a false accept rate at one threshold, by person.

    Attributes:
        key: `a * P + b` of every two people with an accepted pair, ascending, `(K,) int64`.
        share: Their share of the accepted pairs, `(K,)`.
        person: Sum over each person's impostor pairs of the relative error, `(P,)`.
        accepted: Accepted impostor pairs.
        pairs: All impostor pairs.
    """

    key: I64
    share: F64
    person: F64
    accepted: int
    pairs: float


def sum_by_person(values: F64, pairs: PeoplePairs) -> F64:
    """Sum of pair values over each person's pairs.

    Args:
        values: A value per genuine pair, `(G,)`.
        pairs: The pairs.

    Returns:
        `(P,) float64`.
    """
    sums = np.bincount(pairs.person[pairs.face_a], values, len(pairs.faces))
    return sums.astype(np.float64)


def pair_moments(values: F64, pairs: PeoplePairs) -> PairMoments:
    """Moments of pair values within people.

    Products of pairs that share a face and of those that share none are separated by sums: over a
    person's pairs, and over the pairs of each of its faces.

    Args:
        values: A value per genuine pair, `(G,)`; need not be centred.
        pairs: The pairs, at least one.
    """
    m, count, people = pairs.faces, pairs.pairs, len(pairs.faces)
    several = count > 0
    weight = np.where(several, m / (1 + m / _EVEN_OUT), 0.0)
    weight /= weight.sum()
    sums = sum_by_person(values, pairs)
    z = values - (weight[several] * sums[several] / count[several]).sum()
    sums = sum_by_person(z, pairs)
    squares = sum_by_person(z * z, pairs)
    faces = np.bincount(pairs.face_a, z, len(pairs.person))
    faces += np.bincount(pairs.face_b, z, len(pairs.person))
    face_products = np.bincount(pairs.person, faces * faces, people) - 2 * squares
    person_products = sums * sums - squares - face_products
    leverage = 1 - (weight * weight).sum()  # of each person on the mean

    def mean(products: F64, number: F64) -> tuple[float, float]:
        known = number > 0
        total = weight[known].sum()
        if not total or not leverage:
            return 0.0, 0.0
        value = (weight[known] * products[known] / number[known]).sum() / total / leverage
        return float(value), float(total * several.sum())

    face, face_people = mean(face_products, pairs.sharing)
    person, person_people = mean(person_products, pairs.apart)
    pair = float((weight[several] * squares[several] / count[several]).sum())
    return PairMoments(face, person, pair, face_people, person_people)


def pair_correlation(
    moments: PairMoments, prior: PairCorrelation, weight: float, evidence: float | None = None
) -> PairCorrelation:
    """Correlations within people, drawn towards expected ones where few people show them.

    Args:
        moments: Of the pair values.
        prior: The correlations to expect.
        weight: Number of people that the prior counts as.
        evidence: What a person tells, 0 to 1. By default 1 for decisions that go either way equally
            often, less for rare ones.
    """
    if moments.pair <= 0:
        return prior
    each = 4 * min(moments.pair, 0.25) if evidence is None else evidence

    def drawn(moment: float, people: float, expected: float) -> float:
        n = people * each
        return min(1.0, max(0.0, (moment / moments.pair * n + weight * expected) / (n + weight)))

    return PairCorrelation(
        drawn(moments.face, moments.face_people, prior.face),
        drawn(moments.person, moments.person_people, prior.person),
    )


def design_effect(pairs: PeoplePairs, correlation: PairCorrelation) -> float:
    """Variance of a mean over all genuine pairs, for pair values of variance 1.

    Args:
        pairs: The pairs, at least one.
        correlation: Of the pairs of one person.

    Returns:
        The inverse of the effective number of pairs.
    """
    correlated = correlation.face * pairs.sharing + correlation.person * pairs.apart
    return float((pairs.pairs + correlated).sum() / pairs.pairs.sum() ** 2)


def between_people(values: F64, pairs: PeoplePairs) -> float:
    """Variance of the mean of pair values, from how people differ alone.

    Args:
        values: A value per genuine pair, `(G,)`, of mean 0.
        pairs: The pairs.

    Returns:
        The sum of squared influences, each divided by one minus the person's share (the jackknife;
        Efron, 1982).
    """
    share = pairs.weights
    influence = sum_by_person(values, pairs) / len(values)
    return float(((influence / np.maximum(1 - share, 1e-3)) ** 2).sum())


def share_design(accepted: F64, often_refused: F64, pairs: PeoplePairs) -> float:
    """Variance of the share of accepted pairs, over share (1 - share), at a fixed threshold.

    The correlations are those seen, drawn towards those at a threshold that refuses more pairs;
    where the people themselves differ more than that, by how they differ.

    Args:
        accepted: 1 for each accepted genuine pair, else 0, `(G,)`.
        often_refused: The same at a threshold that refuses about `REFUSED` of the pairs.
        pairs: The pairs.
    """
    prior = pair_correlation(
        pair_moments(often_refused, pairs), _ACCEPT_PRIOR, _ACCEPT_PRIOR_PEOPLE
    )
    moments = pair_moments(accepted, pairs)
    design = design_effect(pairs, pair_correlation(moments, prior, _ACCEPT_PRIOR_PEOPLE))
    share = float(accepted.mean())
    if 0 < share < 1:
        worst = float((pairs.weights**2).sum())  # each person accepted or refused as a whole
        between = between_people(accepted - share, pairs) / (share * (1 - share))
        design = max(design, min(between, worst))
    return design


def far_error(person_a: I64, person_b: I64, faces: F64) -> FarError:
    """The relative error of the false accept rate of a threshold.

    Args:
        person_a: First person of each accepted impostor pair, `(A,) int64`.
        person_b: Second person of each accepted impostor pair, `(A,) int64`.
        faces: Photographs of each person, `(P,) float64`.
    """
    people, total, accepted = len(faces), faces.sum(), len(person_a)
    key, count = np.unique(
        np.minimum(person_a, person_b) * people + np.maximum(person_a, person_b),
        return_counts=True,
    )
    pairs = float((total**2 - (faces**2).sum()) / 2)
    each = np.bincount(person_a, minlength=people) + np.bincount(person_b, minlength=people)
    error = each / max(1, accepted) - faces * (total - faces) / pairs
    return FarError(key, count / max(1, accepted), error, accepted, pairs)


def far_variance(terms: Sequence[tuple[float, FarError]], faces: F64) -> float:
    """Variance of a weighted sum of relative errors of false accept rates.

    The squared sums by person count the variance of every two people's own pairs twice, which is
    taken off once. At least as if every two people's pairs were independent of all others.

    Args:
        terms: Weight and error of each rate, over the same faces.
        faces: Photographs of each person, `(P,) float64`.
    """
    total = faces.sum()
    keys = np.unique(np.concatenate([error.key for _, error in terms]))
    own, expected = np.zeros(len(keys)), 0.0
    person = np.zeros(len(faces))
    for weight, error in terms:
        own[np.searchsorted(keys, error.key)] += weight * error.share
        expected += weight / error.pairs
        person += weight * error.person
    pairs = faces[keys // len(faces)] * faces[keys % len(faces)]
    all_squares = ((faces**2).sum() ** 2 - (faces**4).sum()) / 2
    own_variance = ((own - expected * pairs) ** 2).sum()
    own_variance += expected**2 * (all_squares - (pairs**2).sum())
    share = faces * (total - faces) / ((total**2 - (faces**2).sum()) / 2)
    variance = (person**2 / np.maximum(1 - share, 1e-3)).sum() - own_variance
    return max(float(own_variance), float(variance))


def far_interval(error: FarError, faces: F64) -> Ends:
    """95 % interval of a false accept rate at a fixed threshold.

    Its error grows with the rate, and a sample without the few lookalikes who make up most of a FAR
    shows too small an error: the upper end is the rate from which the measured one is as many
    standard deviations away, 1 where no rate is.

    Args:
        error: Of the rate.
        faces: Photographs of each person, `(P,) float64`.
    """
    half = student_t(influence_freedom(error.person)) * far_variance([(1.0, error)], faces) ** 0.5
    rate = error.accepted / error.pairs
    return rate * float(np.exp(-half)), min(1.0, rate / (1 - half)) if half < 1 else 1.0


def single_impostors(a: FarError, b: FarError) -> float:
    """Accepted impostor pairs by which two networks differ, counted by people.

    Args:
        a: Of the first network.
        b: Of the second network, over the same faces.
    """
    keys = np.union1d(a.key, b.key)
    counts = np.zeros(len(keys))
    counts[np.searchsorted(keys, a.key)] += a.share * a.accepted
    counts[np.searchsorted(keys, b.key)] -= b.share * b.accepted
    return float(np.abs(counts).sum())


def effective_couples(faces: F64) -> float:
    """Couples of people with as many impostor pairs each that would be worth as much (Kish, 1965).

    Args:
        faces: Photographs of each person, `(P,)`.

    Returns:
        P (P - 1) / 2 where all have as many photographs, less where few have most of them.
    """
    squares = faces**2
    pairs = float(faces.sum() ** 2 - squares.sum())
    return pairs**2 / max(1.0, 2 * float(squares.sum() ** 2 - (squares**2).sum()))


def few_people(labels: I64) -> str:
    """Why intervals are missing or wide.

    Args:
        labels: Identity of each face, `(N,) int64`.

    Returns:
        A sentence; empty where the people suffice.
    """
    several = int((np.unique(labels, return_counts=True)[1] > 1).sum())
    if several < MIN_PEOPLE:
        return f"intervals: {several} people have two faces, {MIN_PEOPLE} needed"
    if several < FEW_PEOPLE:
        return f"narrow intervals: {several} people have two faces, {FEW_PEOPLE} needed"
    return ""
