"""What INT8 loses in face terms: embeddings of two models of the same faces, side by side.

Knows arrays only. (The full verification report is `runtime`'s.)
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .histogram import F32

I64 = npt.NDArray[np.int64]

_TELLS_APART, _FEWEST_PAIRS = 0.5, 20
"""Trained networks accept nine genuine pairs in ten and more at the first of these rates."""
_TAIL, _HELD_BY = (1, 2, 4, 8), 20
"""Times the rate; impostor pairs above a threshold for it to be more than these few people's."""
FARS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


@dataclass(frozen=True)
class AtFar:
    """One false accept rate: the match threshold of each model there, the share of genuine pairs
    each accepts, and what INT8 accepts (genuine, impostors) at the threshold of FP32.

    `likely_drop` is what other people should lose, and `drop_error` its standard error: few pairs
    cross a threshold, but every pair near it shows where scores go."""

    far: float
    threshold_fp32: float
    threshold_int8: float
    tar_fp32: float
    tar_int8: float
    tar_kept: float
    far_kept: float
    likely_drop: float
    drop_error: float

    @property
    def drop(self) -> float:
        return self.tar_fp32 - self.tar_int8

    @property
    def likely(self) -> str:
        return f"{self.likely_drop:+.4f} ± {self.drop_error:.4f}"

    @property
    def sure_drop(self) -> float:
        """The larger of what was counted and what is likely, with its error: what budgets are for."""
        return max(self.drop, self.likely_drop + self.drop_error)


@dataclass(frozen=True)
class Loss:
    """Cosines between the two models' embeddings of each face, and rates where pairs suffice."""

    faces: int
    people: int
    genuine: int
    """Pairs of one person: a rate cannot move by less than one of them."""
    cosine_mean: float
    cosine_p1: float
    cosine_min: float
    rates: tuple[AtFar, ...]

    def at(self, far: float) -> AtFar | None:
        """None where the pairs cannot show this rate."""
        return next((rate for rate in self.rates if rate.far == far), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "faces": self.faces,
            "people": self.people,
            "genuine_pairs": self.genuine,
            "cosine": {
                "mean": round(self.cosine_mean, 6),
                "p1": round(self.cosine_p1, 6),
                "min": round(self.cosine_min, 6),
            },
            "rates": [{k: round(v, 7) for k, v in vars(rate).items()} for rate in self.rates],
        }


def compare(fp32: F32, int8: F32, labels: I64, extra_far: float | None = None) -> Loss:
    """`(N, D) float32` each, `labels (N,)`; rates at `FARS` and `extra_far`.

    A rate needs as many impostor pairs as its inverse, and one genuine pair.
    """
    before, after = _unit(fp32), _unit(int8)
    cosine = np.einsum("nd,nd->n", before, after)
    first, second = np.triu_indices(len(labels), 1)
    same = labels[first] == labels[second]
    old, new = (np.asarray((x @ x.T)[first, second]) for x in (before, after))
    rates = []
    if same.any() and not same.all():
        impostors = int((~same).sum())
        fars = sorted({*FARS, *([extra_far] if extra_far else [])}, reverse=True)
        for far in fars:
            if far * impostors >= 1.0:
                rates.append(_at(far, old[same], old[~same], new[same], new[~same]))
    return Loss(
        len(labels),
        len(np.unique(labels)),
        int(same.sum()),
        float(cosine.mean()),
        float(np.percentile(cosine, 1)),
        float(cosine.min()),
        tuple(rates),
    )


def stranger_note(loss: Loss) -> str:
    """What to tell the user when the float network itself hardly tells the judged people apart, for
    then the faces are not what it was trained on; else, or with too few pairs to say, empty."""
    first = loss.rates[0] if loss.rates else None
    if first is None or loss.genuine < _FEWEST_PAIRS or first.tar_fp32 >= _TELLS_APART:
        return ""
    return (
        f"the float network accepts {first.tar_fp32:.0%} of {loss.genuine} genuine pairs where it"
        f" accepts one impostor pair in {1 / first.far:.0f}: are the faces aligned, the labels"
        " right, the input contract the network's (`fr-edge doctor preprocess`)?"
    )


def _at(far: float, old: F32, old_impostors: F32, new: F32, new_impostors: F32) -> AtFar:
    before, after = _threshold(old_impostors, far), _threshold(new_impostors, far)
    return AtFar(
        far,
        before,
        after,
        float((old >= before).mean()),
        float((new >= after).mean()),
        float((new >= before).mean()),
        float((new_impostors >= before).mean()),
        *likely_drop(far, old, old_impostors, new, new_impostors),
    )


def likely_drop(
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
        _threshold(new_impostors, rate) - _threshold(old_impostors, rate)
        for rate in (first * times for times in _TAIL)
        if rate < 1.0
    ]
    width = float(old.std()) or 1.0
    before = (old.astype(np.float64) - _threshold(old_impostors, far)) / width
    after = before + (new.astype(np.float64) - old - (np.mean(moved) if moved else 0.0)) / width
    lost = (np.tanh(before) - np.tanh(after)) / 2 * _density(before, 0.5) / _density(before, 1.0)
    error = float(lost.std(ddof=1)) / np.sqrt(len(lost)) if len(lost) > 1 else 1.0
    return float(lost.mean()), error


def _density(margins: npt.NDArray[np.float64], width: float) -> float:
    """Of margins at 0, seen through a step of that width."""
    return float((1 - np.tanh(margins / width) ** 2).mean()) / width or 1e-12


def _threshold(impostors: F32, far: float) -> float:
    """The lowest threshold that accepts at most `far` of the impostors."""
    allowed = int(far * len(impostors) * (1 + 1e-9))
    if allowed >= len(impostors):
        return -1.0
    highest_refused = np.partition(impostors, len(impostors) - allowed - 1)[-allowed - 1]
    return float(np.nextafter(highest_refused, np.float32(2.0)))


def _unit(embeddings: F32) -> F32:
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    out: F32 = (embeddings / np.maximum(length, 1e-12)).astype(np.float32)
    return out
