"""TAR, FAR and thresholds of reference and engine side by side, with how sure the change is.

Takes counted scores; knows nothing of networks or files.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import F32, I64
from .intervals import TarInterval, smoothed_tar_drop, smoothed_threshold
from .verification import (
    Scores,
    cosines,
    equal_error_rate,
    far_name,
    rates_at,
    roc,
    threshold_at_far,
)

FEW = 10
"""With fewer impostors above the threshold than this, a TAR hangs on single pairs."""

_COARSE = 128


@dataclass(frozen=True)
class RateChange:
    """TAR at one FAR for both; `kept_tar` and `kept_far` are the engine's if the reference's
    threshold stays. All None, with the reason `why`, where the pairs do not resolve this FAR;
    `shaky` says that they do, but by a handful."""

    far: float
    reference: float | None = None
    engine: float | None = None
    reference_threshold: float | None = None
    engine_threshold: float | None = None
    kept_tar: float | None = None
    kept_far: float | None = None
    interval: TarInterval | None = None
    why: str = ""
    shaky: str = ""

    @property
    def delta(self) -> float | None:
        """Engine minus reference, as a fraction: negative is a loss."""
        if self.reference is None or self.engine is None:
            return None
        return self.engine - self.reference

    def to_json(self) -> dict[str, Any]:
        return {
            "reference": format_rate(self.reference),
            "engine": format_rate(self.engine),
            "delta": format_rate(self.delta),
            "interval_95": self.interval.to_json() if self.interval else None,
            "threshold": {
                "reference": format_rate(self.reference_threshold),
                "engine": format_rate(self.engine_threshold),
            },
            "threshold_kept": {
                "tar": format_rate(self.kept_tar),
                "far": format_rate(self.kept_far, 9),
            },
            **({"reason": self.why} if self.why else {}),
            **({"shaky": self.shaky} if self.shaky else {}),
        }


def compare_rates(reference: Scores, engine: Scores, fars: tuple[float, ...]) -> list[RateChange]:
    """One `Rate` for each FAR, the largest first."""
    return [_rate(reference, engine, far) for far in sorted(set(fars), reverse=True)]


def with_intervals(
    rates: list[RateChange], intervals: dict[float, TarInterval]
) -> list[RateChange]:
    return [replace(rate, interval=intervals.get(rate.far)) for rate in rates]


def few_impostors(pairs: int, far: float) -> str:
    """Why this FAR is shaky on so many impostor pairs, in a sentence; empty when it is solid."""
    if pairs * far >= FEW:
        return ""
    return (
        f"FAR {far_name(far)} needs {round(FEW / far):,} impostor pairs to be solid, "
        f"these faces give {pairs:,}"
    )


def curves(scores: Scores) -> dict[str, Any]:
    """What a report draws: ROC, and the shares of scores in 128 bins over cosine -1..1."""
    genuine, impostor = (
        counts.reshape(_COARSE, -1).sum(axis=1) / max(1, counts.sum())
        for counts in (scores.genuine, scores.impostor)
    )
    return {
        "roc": {name: [format_rate(v, 9) for v in values] for name, values in roc(scores).items()},
        "eer": format_rate(equal_error_rate(scores)),
        "genuine": [format_rate(float(v), 8) for v in genuine],
        "impostor": [format_rate(float(v), 8) for v in impostor],
    }


def format_rate(value: float | None, digits: int = 6) -> float | None:
    return None if value is None else round(value, digits)


def _rate(reference: Scores, engine: Scores, far: float) -> RateChange:
    old, new = threshold_at_far(reference, far), threshold_at_far(engine, far)
    if not reference.genuine_pairs:
        return RateChange(far, why="no two faces are of the same person")
    if old is None or new is None:
        needed = round(1 / far)
        return RateChange(
            far, why=f"{reference.impostor_pairs:,} impostor pairs, {needed:,} needed"
        )
    kept_tar, kept_far = rates_at(engine, old)
    return RateChange(
        far,
        rates_at(reference, old)[0],
        rates_at(engine, new)[0],
        old,
        new,
        kept_tar,
        kept_far,
        shaky=few_impostors(reference.impostor_pairs, far),
    )


# How far the engine's embeddings moved from the reference's, face by face.

_WORST = 12

_BINS = 40


@dataclass(frozen=True)
class CosineDrift:
    """Cosines between reference and engine over `faces` faces.

    `edges` (one more than `counts`) and `counts` are their histogram; `worst` are the faces that
    moved most, key and cosine.
    """

    faces: int
    min: float
    p1: float
    p5: float
    median: float
    mean: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    worst: tuple[tuple[str, float], ...]

    def to_json(self) -> dict[str, Any]:
        numbers = ("min", "p1", "p5", "median", "mean")
        return {
            "faces": self.faces,
            **{name: round(getattr(self, name), 6) for name in numbers},
            "histogram": {"edges": list(self.edges), "counts": list(self.counts)},
        }


def measure_drift(
    reference: npt.NDArray[np.float32], engine: npt.NDArray[np.float32], keys: Sequence[str]
) -> CosineDrift:
    """Compare `(N, D)` embeddings row by row; `keys` names the faces."""
    cosine = np.minimum(cosines(reference, engine).astype(np.float64), 1.0)
    p1, p5, median = (float(v) for v in np.percentile(cosine, (1, 5, 50)))
    floor = np.floor(cosine.min() * 100 - 1e-9) / 100
    counts, edges = np.histogram(cosine, _BINS, (floor, 1.0))
    return CosineDrift(
        len(cosine),
        float(cosine.min()),
        p1,
        p5,
        median,
        float(cosine.mean()),
        tuple(round(float(e), 6) for e in edges),
        tuple(int(c) for c in counts),
        tuple((keys[i], round(float(cosine[i]), 6)) for i in np.argsort(cosine)[:_WORST]),
    )


# What INT8 loses in face terms: embeddings of two models of the same faces, side by side.
#
# Knows arrays only. (The full verification report is `runtime`'s.)

_TELLS_APART, _FEWEST_PAIRS = 0.5, 20
"""Trained networks accept nine genuine pairs in ten and more at the first of these rates."""

LOSS_FARS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


@dataclass(frozen=True)
class LossAtFar:
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
    def upper_tar_drop(self) -> float:
        """The larger of what was counted and what is likely, with its error: what budgets are for."""
        return max(self.drop, self.likely_drop + self.drop_error)


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
    rates: tuple[LossAtFar, ...]

    def at(self, far: float) -> LossAtFar | None:
        """None where the pairs cannot show this rate."""
        return next((rate for rate in self.rates if rate.far == far), None)


def compare_embeddings(
    fp32: F32, int8: F32, labels: I64, extra_far: float | None = None
) -> EmbeddingLoss:
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
        fars = sorted({*LOSS_FARS, *([extra_far] if extra_far else [])}, reverse=True)
        for far in fars:
            if far * impostors >= 1.0:
                rates.append(_at(far, old[same], old[~same], new[same], new[~same]))
    return EmbeddingLoss(
        len(labels),
        len(np.unique(labels)),
        int(same.sum()),
        CosineSummary(float(cosine.mean()), float(np.percentile(cosine, 1)), float(cosine.min())),
        tuple(rates),
    )


def unseparated_warning(loss: EmbeddingLoss) -> str:
    """What to tell the user when the float network itself hardly tells the judged people apart, for
    then the faces are not what it was trained on; else, or with too few pairs to say, empty."""
    first = loss.rates[0] if loss.rates else None
    if first is None or loss.genuine_pairs < _FEWEST_PAIRS or first.tar_fp32 >= _TELLS_APART:
        return ""
    return (
        f"the float network accepts {first.tar_fp32:.0%} of {loss.genuine_pairs} genuine pairs where it"
        f" accepts one impostor pair in {1 / first.far:.0f}: are the faces aligned, the labels"
        " right, the input contract the network's (`fr-edge doctor preprocess`)?"
    )


def _at(far: float, old: F32, old_impostors: F32, new: F32, new_impostors: F32) -> LossAtFar:
    before, after = smoothed_threshold(old_impostors, far), smoothed_threshold(new_impostors, far)
    return LossAtFar(
        far,
        before,
        after,
        float((old >= before).mean()),
        float((new >= after).mean()),
        float((new >= before).mean()),
        float((new_impostors >= before).mean()),
        *smoothed_tar_drop(far, old, old_impostors, new, new_impostors),
    )


def _unit(embeddings: F32) -> F32:
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    out: F32 = (embeddings / np.maximum(length, 1e-12)).astype(np.float32)
    return out
