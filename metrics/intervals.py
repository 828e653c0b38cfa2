"""95 % intervals of verification rates: how far they would move with other people.

People are the sample, not pairs. The error of a TAR at a FAR is that of the genuine pairs at a
fixed threshold, minus the slope of the ROC curve times the relative error of the FAR there (the
influence of the threshold; Woodruff, 1952). The first part has the variance TAR (1 - TAR) times a
design effect from correlations within people; intervals are score intervals (Wilson, 1927) with
it, so a TAR of 1 has a lower end. The second part is the variance over dyads of people
(`person_variance`). `benchmarks/interval_coverage.py` measures how often intervals hold the truth.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from ..arrays import F32, F64, I32, I64
from .changed_decisions import Decisions, change_interval, change_variance
from .person_variance import (
    MIN_PEOPLE,
    REFUSED,
    Ends,
    FarError,
    PeoplePairs,
    effective_couples,
    far_error,
    far_interval,
    far_variance,
    share_design,
    single_impostors,
)
from .score_intervals import Z_975, influence_freedom, score_interval, share_logit, student_t
from .verification import (
    BINS,
    Scores,
    allowed_impostors,
    cosine_bins,
    equal_error_rate,
    normalise,
    score_blocks,
    threshold_at_far,
)

MIN_ACCEPTED = 5  # impostor pairs above the threshold: fewer give no interval

MIN_COUPLES = 0.5  # of people, that a FAR accepts: fewer give no interval of a kept FAR

_MIN_EFFECTIVE_COUPLES = 0.015  # that a FAR accepts: fewer give no interval, a TAR's held 91 %

_EER_COUPLES = (10.0, 20.0, 50.0)  # of people, that FARs accept which bound smaller EERs

_PRIOR_FREEDOM = 20  # degrees of freedom that the expected correlations within people stand for

_NEIGHBOURS = (1 / 8, 1 / 4, 1 / 2, 2, 4, 8)  # times the FAR: where changed decisions are counted


@dataclass(frozen=True)
class TarInterval:
    """95 % intervals `(low, high)` of TAR at one FAR, as fractions.

    Attributes:
        reference: Of the reference's TAR.
        engine: Of the engine's TAR.
        delta: Of engine minus reference.
        kept_far: Of the engine's FAR at the reference's threshold; None where no pair shows it.
        kept_tar: Of the engine's TAR at the reference's threshold.
    """

    reference: Ends
    engine: Ends
    delta: Ends
    kept_far: Ends | None = None
    kept_tar: Ends | None = None


@dataclass(frozen=True)
class RateIntervals:
    """95 % intervals `(low, high)` of one network's rates, as fractions.

    Attributes:
        tar: Of TAR, by FAR; only of rates that the pairs resolve well enough.
        eer: Of the equal error rate; None with too few people.
    """

    tar: dict[float, Ends]
    eer: Ends | None


@dataclass(frozen=True, eq=False)
class _PairBins:
    """Pairs of faces with the bins of their cosines by each network.

    Attributes:
        people: The genuine pairs.
        genuine: Bin of each genuine pair by each network, `(networks, G) int32`.
        impostors: By network the bin `(I,)` and both people `(2, I)` of the highest impostors.
        scores: Counted pairs by network.
    """

    people: PeoplePairs
    genuine: I32
    impostors: list[tuple[I32, I32]]
    scores: Sequence[Scores]

    def accepted(self, network: int, first: int) -> F64:
        """1 for each genuine pair in bin `first` or above, else 0, `(G,)`."""
        accepted: F64 = (self.genuine[network] >= first).astype(np.float64)
        return accepted

    def far_error(self, network: int, first: int) -> FarError:
        """The relative error of the FAR at a threshold."""
        bins, persons = self.impostors[network]
        above = persons[:, bins >= first].astype(np.int64)
        return far_error(above[0], above[1], self.people.faces)


@dataclass(frozen=True, eq=False)
class _Rate:
    """One network at one FAR: its TAR, the effective inverse number of genuine pairs, the slope of
    logit TAR over log FAR, and the error of the FAR."""

    tar: float
    design: float
    slope: float
    error: FarError

    @property
    def steepness(self) -> float:
        """Slope of TAR over log FAR."""
        return self.slope * self.tar * (1 - self.tar)


def tar_intervals(
    reference: F32,
    engine: F32,
    labels: I64,
    scores: tuple[Scores, Scores],
    fars: Sequence[float],
    *,
    mixed: bool = False,
) -> dict[float, TarInterval]:
    """95 % intervals of two networks' TAR and of its change on the same people.

    Args:
        reference: Embeddings `(N, D) float32` by the reference.
        engine: Embeddings `(N, D) float32` of the same faces by the engine.
        labels: Identity of each face, `(N,) int64`.
        scores: Counted pairs of the reference and of the engine.
        fars: False accept rates, 0 to 1.
        mixed: Whether the engine's pairs are mixed ones: its probes against the reference's gallery,
            as `all_pairs` counts them with probes.

    Returns:
        The intervals of each rate that `MIN_ACCEPTED` impostor pairs hold in both networks, and
        enough people: none where few people with most of the photographs set the threshold. Empty
        with fewer than `MIN_PEOPLE` people who have two faces.
    """
    pairs = _collect((reference, engine), labels, scores, fars, mixed=mixed)
    if pairs is None:
        return {}
    intervals = {}
    for far in _judged_fars(pairs, fars):
        rates = [_rate(pairs, network, far) for network in (0, 1)]
        intervals[far] = TarInterval(
            _tar_interval(rates[0], pairs),
            _tar_interval(rates[1], pairs),
            _change(rates, pairs, far),
            _kept_far(pairs, far),
            _kept_tar(pairs, far),
        )
    return intervals


def _kept_far(pairs: _PairBins, far: float) -> Ends | None:
    """Interval of the second network's FAR at the first one's threshold."""
    first, faces = _first_bin(pairs.scores[0], far), pairs.people.faces
    listed = pairs.impostors[1][0]
    accepted = int(pairs.scores[1].impostor[first:].sum())
    enough = accepted >= MIN_ACCEPTED and far * len(faces) * (len(faces) - 1) / 2 >= MIN_COUPLES
    if not enough or (listed >= first).sum() != accepted:
        return None
    return far_interval(pairs.far_error(1, first), faces)


def _kept_tar(pairs: _PairBins, far: float) -> Ends:
    """Interval of the second network's TAR at the first one's threshold, which stays as it is."""
    return score_interval(*_accepted(pairs, 1, _first_bin(pairs.scores[0], far)))


def rate_intervals(
    embeddings: F32, labels: I64, scores: Scores, fars: Sequence[float]
) -> RateIntervals:
    """95 % intervals of one network's TAR and EER.

    Args:
        embeddings: `(N, D) float32`.
        labels: Identity of each face, `(N,) int64`.
        scores: Counted pairs of the embeddings.
        fars: False accept rates, 0 to 1.

    Returns:
        Intervals as `tar_intervals` gives them. The EER moves less than the TAR at its FAR by the
        slope of the ROC curve there, since its FAR moves with it.
    """
    couples = effective_couples(np.unique(labels, return_counts=True)[1].astype(np.float64))
    lenient = [number / max(number, couples) for number in _EER_COUPLES]
    pairs = _collect((embeddings,), labels, (scores,), (*fars, equal_error_rate(scores), *lenient))
    if pairs is None:
        return RateIntervals({}, None)
    tar = {far: _tar_interval(_rate(pairs, 0, far), pairs) for far in _judged_fars(pairs, fars)}
    return RateIntervals(tar, _eer_interval(pairs, lenient))


def _collect(
    networks: Sequence[F32],
    labels: I64,
    scores: Sequence[Scores],
    fars: Sequence[float],
    *,
    mixed: bool = False,
) -> _PairBins | None:
    """Genuine pairs and the highest impostors by all networks; None with too few people."""
    person = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    order = np.argsort(person, kind="stable")
    person = person[order]
    faces = np.bincount(person).astype(np.float64)
    if (faces > 1).sum() < MIN_PEOPLE:
        return None
    resolved = _resolved(scores, fars)
    # Of both networks: one's threshold may be kept for the other.
    floor = min((_first_bin(counted, far) for counted in scores for far in resolved), default=BINS)
    units = [normalise(embeddings)[order] for embeddings in networks]
    rows_: list[I64] = []
    columns_: list[I64] = []
    genuine: list[list[I32]] = [[] for _ in networks]
    bins: list[list[I32]] = [[] for _ in networks]
    persons: list[list[I32]] = [[] for _ in networks]
    galleries = [units[0] if mixed else unit for unit in units]
    scored = (score_blocks(*sides) for sides in zip(galleries, repeat(person), units, strict=False))
    for blocks in zip(*scored, strict=True):
        block = blocks[0]
        if block.genuine is not None:
            rows, columns = np.nonzero(block.genuine)
            rows_.append(block.row + rows)
            columns_.append(block.column + columns)
        for network, block in enumerate(blocks):
            index = cosine_bins(block.cosine)
            if block.genuine is not None:
                genuine[network].append(index[block.genuine].astype(np.int32))
            high = index >= floor
            if block.impostor is not None:
                high &= block.impostor
            rows, columns = np.nonzero(high)
            bins[network].append(index[high].astype(np.int32))
            both = person[block.row + rows], person[block.column + columns]
            persons[network].append(np.stack(both).astype(np.int32))
    return _PairBins(
        PeoplePairs(np.concatenate(rows_), np.concatenate(columns_), person, faces),
        np.stack([np.concatenate(part) for part in genuine]),
        [
            (np.concatenate(b), np.concatenate(p, axis=1))
            for b, p in zip(bins, persons, strict=True)
        ],
        scores,
    )


def _resolved(scores: Sequence[Scores], fars: Sequence[float]) -> list[float]:
    return [far for far in fars if allowed_impostors(far, scores[0].impostor_pairs) >= MIN_ACCEPTED]


def _judged_fars(pairs: _PairBins, fars: Sequence[float]) -> list[float]:
    """FARs that pairs and people resolve."""
    couples = effective_couples(pairs.people.faces)
    return [far for far in _resolved(pairs.scores, fars) if far * couples >= _MIN_EFFECTIVE_COUPLES]


def _first_bin(scores: Scores, far: float) -> int:
    """The lowest bin that a FAR, at least of one pair, accepts."""
    threshold = threshold_at_far(scores, min(1.0, far))
    return BINS if threshold is None else round((threshold + 1.0) / 2.0 * BINS)


def _rate(pairs: _PairBins, network: int, far: float) -> _Rate:
    first = _first_bin(pairs.scores[network], far)
    near = [_first_bin(pairs.scores[network], far * times) for times in (0.5, 2.0)]
    shares = [float(pairs.accepted(network, there).mean()) for there in near]
    half, twice = (share_logit(share, len(pairs.people.face_a)) for share in shares)
    return _Rate(
        *_accepted(pairs, network, first),
        max(0.0, (twice - half) / np.log(4)),
        pairs.far_error(network, first),
    )


def _refused(pairs: _PairBins, network: int) -> F64:
    """1 for each genuine pair above the threshold that refuses `_REFUSED` of them, else 0."""
    cut = np.quantile(pairs.genuine[network], REFUSED)
    accepted: F64 = (pairs.genuine[network] > cut).astype(np.float64)
    return accepted


def tar_interval(
    tar: float, design: float, slope: float, error: FarError, people: PeoplePairs
) -> Ends:
    """Score interval of a TAR. Few people with most of the pairs show each variance with an error of its
    own: Student's t for the genuine pairs by the effective number of people, for the FAR by influences.

    Args:
        tar: Measured, 0 to 1.
        design: Variance over tar (1 - tar) that the genuine pairs have with other people.
        slope: Of logit TAR over log FAR.
        error: Of the FAR at the threshold.
        people: The genuine pairs.
    """
    variance = max(far_variance([(1.0, error)], people.faces), 1 / max(1, error.accepted))
    variance *= (slope * student_t(influence_freedom(error.person)) / Z_975) ** 2
    return score_interval(tar, design, variance, _quantile(people))


def _quantile(people: PeoplePairs) -> float:
    return student_t(max(int(1 / (people.weights**2).sum()), _PRIOR_FREEDOM))


def _tar_interval(rate: _Rate, pairs: _PairBins, scale: float = 1.0) -> Ends:
    design, slope = rate.design * scale**2, rate.slope * scale
    return tar_interval(rate.tar, design, slope, rate.error, pairs.people)


def _eer_interval(pairs: _PairBins, lenient: Sequence[float]) -> Ends:
    """Of the EER: 1 - EER is the TAR at a FAR that moves with it.

    A small EER has the FAR of a few lookalikes, who tell little of others. As at any threshold, it is
    at least the smaller of the error rates there, and at most the larger of those at lenient FARs.
    """
    eer = equal_error_rate(pairs.scores[0])
    if _resolved(pairs.scores, (eer,)):
        rate = _rate(pairs, 0, eer)
        low, high = _tar_interval(rate, pairs, 1 / (1 + min(1.0, rate.steepness / eer)))
    else:  # few errors: those of genuine pairs decide
        first = _first_bin(pairs.scores[0], MIN_ACCEPTED / pairs.scores[0].impostor_pairs)
        low, high = score_interval(*_accepted(pairs, 0, first))
    faces, quantile = pairs.people.faces, _quantile(pairs.people)
    if eer < min(lenient):
        own = pairs.far_error(0, _first_bin(pairs.scores[0], eer))
        high = max(high, 1 - far_interval(own, faces)[0])
    for far in (far for far in lenient if far > eer):
        first = _first_bin(pairs.scores[0], far)
        genuine = score_interval(*_accepted(pairs, 0, first), quantile=quantile)[0]
        impostor = far_interval(pairs.far_error(0, first), faces)[1]
        low = max(low, min(genuine, 1 - impostor))
    return 1 - high, max(eer, 1 - low)


def _accepted(pairs: _PairBins, network: int, first: int) -> tuple[float, float]:
    """A network's TAR at a fixed threshold, and its variance over tar (1 - tar)."""
    accepted = pairs.accepted(network, first)
    return float(accepted.mean()), share_design(accepted, _refused(pairs, network), pairs.people)


def _change(rates: Sequence[_Rate], pairs: _PairBins, far: float) -> Ends:
    """Of the second TAR minus the first."""
    before, after = rates
    decisions = _decisions(pairs, far)
    spread = change_variance(
        decisions,
        [
            _decisions(pairs, far * times)
            for times in _NEIGHBOURS
            if allowed_impostors(far * times, pairs.scores[0].impostor_pairs) >= 1
        ],
        (pairs.genuine[0].astype(np.float64), pairs.genuine[1].astype(np.float64)),
        (before.design, after.design),
        pairs.people,
    )
    terms = [(after.steepness, after.error), (-before.steepness, before.error)]
    threshold = far_variance(terms, pairs.people.faces)
    # Every impostor pair that only one network accepts moves the threshold by itself; where these
    # people show few by chance, as many are expected as scores moved.
    single = max(single_impostors(before.error, after.error), _expected_single(pairs, far))
    single /= max(1, before.error.accepted) ** 2
    threshold = max(threshold, ((before.steepness + after.steepness) / 2) ** 2 * single)
    influence = after.steepness * after.error.person - before.steepness * before.error.person
    freedom = influence_freedom(influence)
    return change_interval(after.tar - before.tar, spread, threshold, freedom)


def _decisions(pairs: _PairBins, far: float) -> Decisions:
    before, after = (
        pairs.accepted(network, _first_bin(pairs.scores[network], far)) for network in (0, 1)
    )
    return Decisions(before, after)


def _expected_single(pairs: _PairBins, far: float) -> float:
    """Impostor pairs that cross the threshold: their density there times how far scores move."""
    twice, half = (_first_bin(pairs.scores[0], far * times) for times in (2.0, 0.5))
    moved = pairs.genuine[1] - pairs.genuine[0]
    share = float(np.abs(moved - np.median(moved)).mean()) * np.log(4) / max(1, half - twice)
    return float(min(1.0, share) * allowed_impostors(far, pairs.scores[0].impostor_pairs))
