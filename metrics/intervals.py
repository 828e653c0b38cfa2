"""How much of a change of TAR is chance: a paired bootstrap over people, and a smoothed estimate.

Pairs share faces and faces share people, so pairs are not independent. Each bootstrap replicate
draws the people anew, with replacement, and judges both networks on the same draw: a genuine pair
counts as often as its person was drawn, an impostor pair as often as both people together, and both
thresholds are found again.

Drawing both people of an impostor pair counts the chance of that single pair three times (the
pigeonhole bootstrap; Owen 2007). Where single pairs decide, at low FAR, intervals would come out
too wide; `_softness` is the factor that softens the draw for impostors so that the variance is
right.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..arrays import F32, F64, I64
from .verification import (
    BINS,
    ScoreList,
    Scores,
    allowed_impostors,
    normalise,
    score_blocks,
    threshold_at_far,
)

REPLICATES = 1000  # draws of people

LEVEL = 0.95  # of the intervals

FEW_PEOPLE = 20  # with fewer people who have two faces, an interval over people is not reliable

_SEED = 20

_REACH = 3  # times the pairs of the largest FAR that are kept: a draw may need to look further down

_DENSE = 1 << 14  # highest impostor pairs kept one by one

_TAIL = (1, 2, 4, 8)  # times the rate: where the move of the threshold is measured

_TAIL_PAIRS = 20  # impostor pairs above a threshold so that its move is not a few people's


@dataclass(frozen=True)
class TarInterval:
    """95 % intervals `(low, high)` of TAR at one FAR, as fractions.

    Attributes:
        reference: Of the reference's TAR.
        engine: Of the engine's TAR.
        delta: Of engine minus reference.
    """

    reference: tuple[float, float]
    engine: tuple[float, float]
    delta: tuple[float, float]


@dataclass(frozen=True, eq=False)
class _PersonScores:
    """One network's scores by person.

    Attributes:
        key: `4 * person + cosine` of every genuine pair, ascending, `(G,)`.
        start: Where each person's genuine pairs begin in `key`, `(people + 1,)`.
        score: Cosines of the highest impostor pairs, descending, `(I,)`.
        person_a: First person of each impostor pair, `(I,)`.
        person_b: Second person of each impostor pair, `(I,)`.
        stands: For how many pairs each of them counts, `(I,)`.
    """

    key: F64
    start: I64
    score: F32
    person_a: I64
    person_b: I64
    stands: F64


def tar_intervals(
    reference: F32,
    engine: F32,
    labels: I64,
    scores: tuple[Scores, Scores],
    fars: Sequence[float],
    replicates: int = REPLICATES,
    seed: int = _SEED,
) -> dict[float, TarInterval]:
    """95 % intervals of two networks' TAR and of its change (percentile bootstrap; Efron 1979).

    Args:
        reference: Embeddings `(N, D) float32` by the reference.
        engine: Embeddings `(N, D) float32` of the same faces by the engine.
        labels: Identity of each face, `(N,) int64`.
        scores: Counted pairs of the reference and of the engine.
        fars: False accept rates, 0 to 1.
        replicates: Draws of people.
        seed: Of the random generator.

    Returns:
        The intervals of each rate that the pairs resolve. Empty with fewer than two people who
        have two faces.
    """
    draws = _draws((reference, engine), labels, scores, fars, replicates, seed)
    return {
        far: TarInterval(
            _interval(tar[:, 0]), _interval(tar[:, 1]), _interval(tar[:, 1] - tar[:, 0])
        )
        for far, tar in draws.items()
    }


def tar_interval(
    embeddings: F32, labels: I64, scores: Scores, fars: Sequence[float]
) -> dict[float, tuple[float, float]]:
    """95 % intervals of one network's TAR, as `tar_intervals`.

    Args:
        embeddings: `(N, D) float32`.
        labels: Identity of each face, `(N,) int64`.
        scores: Counted pairs of the embeddings.
        fars: False accept rates, 0 to 1.

    Returns:
        `(low, high)`, fractions, of each rate that the pairs resolve.
    """
    draws = _draws((embeddings,), labels, (scores,), fars, REPLICATES, _SEED)
    return {far: _interval(tar[:, 0]) for far, tar in draws.items()}


def smoothed_tar_drop(far: float, reference: ScoreList, engine: ScoreList) -> tuple[float, float]:
    """The loss of true accepts expected on other people, from all pairs near the threshold.

    The count of pairs that crossed the threshold moves by one pair at a time. Here each pair counts
    by a smooth step, `tanh`, as wide as genuine scores scatter, and the sum is scaled by how many
    pairs lie at the threshold itself (the density of a step half as wide). The threshold moves as
    it does in the mean of several rates that enough impostors hold. A fraction of the variance for
    little bias (docs/results/int8.md). Pairs are treated as independent, so the error is a lower
    bound.

    Args:
        far: False accept rate, 0 to 1; the impostor pairs must resolve it.
        reference: Pairs scored by the reference.
        engine: The same pairs, in the same order, scored by the engine.

    Returns:
        The drop of TAR as a fraction, and its standard error.
    """
    first = max(far, _TAIL_PAIRS / reference.impostor_pairs)
    moves = [
        _threshold(engine, rate) - _threshold(reference, rate)
        for rate in (first * times for times in _TAIL)
        if rate < 1.0
    ]
    old, new = reference.genuine.astype(np.float64), engine.genuine.astype(np.float64)
    width = float(old.std()) or 1.0
    before = (old - _threshold(reference, far)) / width
    after = before + (new - old - (np.mean(moves) if moves else 0.0)) / width
    lost = (np.tanh(before) - np.tanh(after)) / 2 * _density(before, 0.5) / _density(before, 1.0)
    error = float(lost.std(ddof=1) / np.sqrt(len(lost))) if len(lost) > 1 else 1.0
    return float(lost.mean()), error


def _threshold(scores: ScoreList, far: float) -> float:
    threshold = threshold_at_far(scores, far)
    if threshold is None:
        raise ValueError(
            f"FAR {far} needs {1 / far:.0f} impostor pairs, got {len(scores.impostor)}"
        )
    return threshold


def _density(margins: F64, width: float) -> float:
    """Density of the margins at 0, through a step of that width."""
    return float((1 - np.tanh(margins / width) ** 2).mean()) / width or 1e-12


def _draws(
    networks: Sequence[F32],
    labels: I64,
    scores: Sequence[Scores],
    fars: Sequence[float],
    replicates: int,
    seed: int,
) -> dict[float, F64]:
    """FAR -> TAR in each draw of people by each network, `(replicates, networks)`."""
    person = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    order = np.argsort(person, kind="stable")
    faces = np.bincount(person)
    resolved = [far for far in fars if all(threshold_at_far(s, far) is not None for s in scores)]
    if (faces > 1).sum() < 2 or not resolved:
        return {}
    sides = [
        _person_scores(normalise(embeddings)[order], person[order], counted, max(resolved))
        for embeddings, counted in zip(networks, scores, strict=True)
    ]
    pairs = scores[0].impostor_pairs
    soft = [_softness(sides[0], round(far * pairs), len(faces)) for far in resolved]
    reach = [
        [int(np.searchsorted(np.cumsum(side.stands), _REACH * far * pairs)) + 1 for far in resolved]
        for side in sides
    ]
    random = np.random.default_rng(seed)
    tars = np.empty((len(resolved), replicates, len(sides)))
    for replicate in range(replicates):
        drawn = np.bincount(random.integers(0, len(faces), len(faces)), minlength=len(faces))
        for number, side in enumerate(sides):
            for row, far in enumerate(resolved):
                tars[row, replicate, number] = _tar(
                    side, drawn, faces, far, soft[row], reach[number][row]
                )
    return dict(zip(resolved, tars, strict=True))


def _person_scores(unit: F32, person: I64, counted: Scores, far: float) -> _PersonScores:
    floor = np.float32(_impostor_floor(counted, min(1.0, _REACH * far)))
    keys, scores, persons_a, persons_b = [], [], [], []
    for block in score_blocks(unit, person):
        if block.genuine is not None:
            rows, columns = np.nonzero(block.genuine)
            keys.append(4.0 * person[block.row + rows] + block.cosine[rows, columns])
        high = block.cosine >= floor
        if block.impostor is not None:
            high &= block.impostor
        rows, columns = np.nonzero(high)
        scores.append(block.cosine[rows, columns])
        persons_a.append(person[block.row + rows])
        persons_b.append(person[block.column + columns])
    key, score = np.sort(np.concatenate(keys)), np.concatenate(scores)
    order = np.argsort(-score, kind="stable")
    ranks, stands = _thin(len(order))
    order = order[ranks]
    people = np.arange(person.max() + 2)
    return _PersonScores(
        key,
        np.searchsorted(key, 4.0 * people - 2.0),
        score[order],
        np.concatenate(persons_a)[order],
        np.concatenate(persons_b)[order],
        stands,
    )


def _impostor_floor(scores: Scores, far: float) -> float:
    """A cosine below those of the impostors that `far` accepts and of the first that it refuses.

    One bin is left for float32: a cosine is counted up to half a unit in the last place of the
    bin's number away from its place, and the highest one can lie in the last bin and be below 1.
    """
    needed = allowed_impostors(far, scores.impostor_pairs) + 1
    bins = int(np.searchsorted(scores.highest_impostors, needed)) + 2
    return 1.0 - 2.0 * bins / BINS if bins < BINS else -2.0


def _thin(count: int) -> tuple[I64, F64]:
    """Ranks to keep, all of the first 16,384 and then every 2nd, 4th, ... per doubling, and how
    many ranks each stands for: millions of impostors become a hundred thousand."""
    ranks, stands = [np.arange(min(count, _DENSE))], [np.ones(min(count, _DENSE))]
    start, step = _DENSE, 2
    while start < count:
        part = np.arange(start, min(count, 2 * start), step)
        ranks.append(part)
        stands.append(np.full(len(part), float(step)))
        start, step = 2 * start, 2 * step
    return np.concatenate(ranks), np.concatenate(stands)


def _softness(side: _PersonScores, accepted: int, people: int) -> float:
    """The factor on a draw's departure from 1 that makes an impostor count's variance right.

    Its variance is `lone` (of single pairs of people) + `shared` (of people who are like many);
    a draw softened by c gives `c^2 (shared + 2 lone) + c^4 lone`. Both come from who is accepted.
    """
    top = int(np.searchsorted(np.cumsum(side.stands), accepted, side="right"))
    a, b, stands = side.person_a[:top], side.person_b[:top], side.stands[:top]
    both = np.minimum(a, b) * people + np.maximum(a, b)
    lone = float((np.bincount(np.unique(both, return_inverse=True)[1], stands) ** 2).sum())
    if not lone:
        return 1.0
    each = np.bincount(a, stands, people) + np.bincount(b, stands, people)
    shared = max(0.0, float(((each - each.mean()) ** 2).sum()) - 2 * lone)
    r = lone / (lone + shared)
    return float(np.sqrt((np.sqrt((1 + r) ** 2 + 4 * r) - 1 - r) / (2 * r)))


def _tar(side: _PersonScores, drawn: I64, faces: I64, far: float, soft: float, reach: int) -> float:
    """TAR at one FAR when person i counts `drawn[i]` times, softened for impostors, of whom the
    first `reach` are looked at."""
    weight = 1 + soft * (drawn - 1.0)
    size = weight * faces
    total = (size.sum() ** 2 - (size**2).sum()) / 2
    top = slice(reach)
    accepted = np.cumsum(side.stands[top] * weight[side.person_a[top]] * weight[side.person_b[top]])
    # The first impostor that must stay out: all genuine pairs above it are accepted.
    out = int(np.searchsorted(accepted, far * total, side="right"))
    threshold = float(side.score[min(out, len(accepted) - 1)])
    genuine = np.diff(side.start)
    people = 4.0 * np.arange(len(genuine)) + threshold
    passed = side.start[1:] - np.searchsorted(side.key, people, side="right")
    return float((drawn * passed).sum()) / max(1.0, float((drawn * genuine).sum()))


def _interval(values: F64) -> tuple[float, float]:
    low, high = np.percentile(values, (50 * (1 - LEVEL), 50 * (1 + LEVEL)))
    return float(low), float(high)
