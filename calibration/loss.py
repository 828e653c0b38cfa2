"""What INT8 loses in face terms: embeddings of two models of the same faces, side by side.

Knows arrays only. (The full verification report is `runtime`'s.)
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .histogram import F32
from .likely import likely_drop, threshold

I64 = npt.NDArray[np.int64]

_TELLS_APART, _FEWEST_PAIRS = 0.5, 20
"""Trained networks accept nine genuine pairs in ten and more at the first of these rates."""
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
    before, after = threshold(old_impostors, far), threshold(new_impostors, far)
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


def _unit(embeddings: F32) -> F32:
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    out: F32 = (embeddings / np.maximum(length, 1e-12)).astype(np.float32)
    return out
