"""How sure a change of TAR is: paired bootstrap over people, not over pairs.

Pairs share faces and faces share people, so pairs are no independent witnesses. Each replicate
draws the people anew, with replacement, and judges both networks on the same draw: a genuine pair
counts as often as its person was drawn, an impostor pair as often as both together, and both
thresholds are found again.

Drawing both people of an impostor pair counts the chance of that single pair three times (the
pigeonhole bootstrap; Owen 2007). Where single pairs decide, at low FAR, intervals would come out too
wide; `_softness` says by how much the draw is softened for impostors so that the variance is right.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..arrays import F32, F64, I64
from .verification import Scores, normalise, score_blocks, threshold_at_far

REPLICATES = 1000

LEVEL = 0.95

FEW_PEOPLE = 20
"""With fewer people who have two faces, an interval by people says little."""

_SEED = 20

_REACH = 3
"""How many times the pairs of the largest FAR are kept: a draw may need to look further down."""

_DENSE = 1 << 14


@dataclass(frozen=True)
class TarInterval:
    """95 % intervals `(low, high)`, fractions."""

    reference: tuple[float, float]
    engine: tuple[float, float]
    delta: tuple[float, float]

    def to_json(self) -> dict[str, list[float]]:
        return {name: [round(v, 6) for v in ends] for name, ends in vars(self).items()}


@dataclass(frozen=True)
class _Side:
    """One network's scores by person. Genuine: `key` is `4 * person + cosine`, ascending, and
    `start (people + 1,)` where each person's begin. Impostor: the highest, descending, the two
    people `one` and `other` of each and for how many pairs it `stands`."""

    key: F64
    start: I64
    score: F32
    one: I64
    other: I64
    stands: F64


def tar_intervals(
    reference: F32,
    engine: F32,
    labels: npt.NDArray[np.int64],
    scores: tuple[Scores, Scores],
    fars: Sequence[float],
    replicates: int = REPLICATES,
    seed: int = _SEED,
) -> dict[float, TarInterval]:
    """For each FAR that the pairs resolve: how far chance alone moves TAR and its change.

    `reference` and `engine` are `(N, D)` embeddings of the same faces, `scores` their counted pairs.
    Percentile intervals (Efron 1979). Empty with fewer than two people who have two faces.
    """
    drawn = _draws((reference, engine), labels, scores, fars, replicates, seed)
    return {
        far: TarInterval(
            _interval(tar[:, 0]), _interval(tar[:, 1]), _interval(tar[:, 1] - tar[:, 0])
        )
        for far, tar in drawn.items()
    }


def tar_interval(
    embeddings: F32, labels: npt.NDArray[np.int64], scores: Scores, fars: Sequence[float]
) -> dict[float, tuple[float, float]]:
    """The same of one network alone: `(low, high)` for each FAR."""
    drawn = _draws((embeddings,), labels, (scores,), fars, REPLICATES, _SEED)
    return {far: _interval(tar[:, 0]) for far, tar in drawn.items()}


def _draws(
    networks: Sequence[F32],
    labels: npt.NDArray[np.int64],
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
        _side(normalise(embeddings)[order], person[order], counted, max(resolved))
        for embeddings, counted in zip(networks, scores, strict=True)
    ]
    pairs = scores[0].impostor_pairs
    soft = [_softness(sides[0], round(far * pairs), len(faces)) for far in resolved]
    reach = [
        [int(np.searchsorted(np.cumsum(side.stands), _REACH * far * pairs)) + 1 for far in resolved]
        for side in sides
    ]
    random = np.random.default_rng(seed)
    found = np.empty((len(resolved), replicates, len(sides)))
    for replicate in range(replicates):
        drawn = np.bincount(random.integers(0, len(faces), len(faces)), minlength=len(faces))
        for number, side in enumerate(sides):
            for row, far in enumerate(resolved):
                found[row, replicate, number] = _tar(
                    side, drawn, faces, far, soft[row], reach[number][row]
                )
    return dict(zip(resolved, found, strict=True))


def _side(unit: F32, person: I64, counted: Scores, far: float) -> _Side:
    floor = threshold_at_far(counted, min(1.0, _REACH * far))
    low = np.float32(-2.0 if floor is None else floor)
    keys, scores, ones, others = [], [], [], []
    for block in score_blocks(unit, person):
        if block.genuine is not None:
            rows, columns = np.nonzero(block.genuine)
            keys.append(4.0 * person[block.row + rows] + block.cosine[rows, columns])
        high = block.cosine >= low
        if block.impostor is not None:
            high &= block.impostor
        rows, columns = np.nonzero(high)
        scores.append(block.cosine[rows, columns])
        ones.append(person[block.row + rows])
        others.append(person[block.column + columns])
    key, score = np.sort(np.concatenate(keys)), np.concatenate(scores)
    order = np.argsort(-score, kind="stable")
    kept, stands = _thin(len(order))
    order = order[kept]
    people = np.arange(person.max() + 2)
    return _Side(
        key,
        np.searchsorted(key, 4.0 * people - 2.0),
        score[order],
        np.concatenate(ones)[order],
        np.concatenate(others)[order],
        stands,
    )


def _thin(count: int) -> tuple[I64, F64]:
    """Ranks to keep, all of the first 16,384 and then every 2nd, 4th, ... per doubling, and how
    many ranks each stands for: millions of impostors become a hundred thousand."""
    kept, stands = [np.arange(min(count, _DENSE))], [np.ones(min(count, _DENSE))]
    start, step = _DENSE, 2
    while start < count:
        ranks = np.arange(start, min(count, 2 * start), step)
        kept.append(ranks)
        stands.append(np.full(len(ranks), float(step)))
        start, step = 2 * start, 2 * step
    return np.concatenate(kept), np.concatenate(stands)


def _softness(side: _Side, accepted: int, people: int) -> float:
    """The factor on a draw's departure from 1 that makes an impostor count's variance right.

    Its variance is `lone` (of single pairs of people) + `shared` (of people who are like many);
    a draw softened by c gives `c^2 (shared + 2 lone) + c^4 lone`. Both come from who is accepted.
    """
    top = int(np.searchsorted(np.cumsum(side.stands), accepted, side="right"))
    one, other, stands = side.one[:top], side.other[:top], side.stands[:top]
    both = np.minimum(one, other) * people + np.maximum(one, other)
    lone = float((np.bincount(np.unique(both, return_inverse=True)[1], stands) ** 2).sum())
    if not lone:
        return 1.0
    each = np.bincount(one, stands, people) + np.bincount(other, stands, people)
    shared = max(0.0, float(((each - each.mean()) ** 2).sum()) - 2 * lone)
    r = lone / (lone + shared)
    return float(np.sqrt((np.sqrt((1 + r) ** 2 + 4 * r) - 1 - r) / (2 * r)))


def _tar(side: _Side, drawn: I64, faces: I64, far: float, soft: float, reach: int) -> float:
    """TAR at one FAR when person i counts `drawn[i]` times, softened for impostors, of whom the
    first `reach` are looked at."""
    weight = 1 + soft * (drawn - 1.0)
    size = weight * faces
    total = (size.sum() ** 2 - (size**2).sum()) / 2
    top = slice(reach)
    accepted = np.cumsum(side.stands[top] * weight[side.one[top]] * weight[side.other[top]])
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


# Where a false accept rate puts the threshold, and what true accepts other people should lose there.
#
# Knows scores only: cosines of genuine and of impostor pairs, by two models.

_TAIL, _HELD_BY = (1, 2, 4, 8), 20
"""Times the rate; impostor pairs above a threshold for it to be more than these few people's."""


def smoothed_tar_drop(
    far: float, old: F32, old_impostors: F32, new: F32, new_impostors: F32
) -> tuple[float, float]:
    """The loss of true accepts at `far` and its standard error, from all pairs near the threshold.

    Counting pairs that crossed it moves by one of them at a time. Here each counts by a smooth step,
    `tanh`, as wide as genuine scores scatter, and the sum is scaled by how many pairs lie at the
    threshold itself (the density of a step half as wide). The threshold moves as it does in the mean
    of `_TAIL` rates that enough impostors hold. A fraction of the variance for little bias
    (docs/results/int8.md). Pairs are taken for independent: the error is a lower bound.
    """
    first = max(far, _HELD_BY / len(old_impostors))
    moved = [
        smoothed_threshold(new_impostors, rate) - smoothed_threshold(old_impostors, rate)
        for rate in (first * times for times in _TAIL)
        if rate < 1.0
    ]
    width = float(old.std()) or 1.0
    before = (old.astype(np.float64) - smoothed_threshold(old_impostors, far)) / width
    after = before + (new.astype(np.float64) - old - (np.mean(moved) if moved else 0.0)) / width
    lost = (np.tanh(before) - np.tanh(after)) / 2 * _density(before, 0.5) / _density(before, 1.0)
    error = float(lost.std(ddof=1) / np.sqrt(len(lost))) if len(lost) > 1 else 1.0
    return float(lost.mean()), error


def _density(margins: F64, width: float) -> float:
    """Of margins at 0, seen through a step of that width."""
    return float((1 - np.tanh(margins / width) ** 2).mean()) / width or 1e-12


def smoothed_threshold(impostors: F32, far: float) -> float:
    """The lowest threshold that accepts at most `far` of the impostors."""
    allowed = int(far * len(impostors) * (1 + 1e-9))
    if allowed >= len(impostors):
        return -1.0
    highest_refused = np.partition(impostors, len(impostors) - allowed - 1)[-allowed - 1]
    return float(np.nextafter(highest_refused, np.float32(2.0)))
