"""TAR, FAR and thresholds of reference and engine side by side, with how sure the change is.

Takes counted scores; knows nothing of networks or files.
"""

from dataclasses import dataclass, replace
from typing import Any

from .bootstrap import Interval
from .metrics import Scores, equal_error_rate, far_name, rates_at, roc, threshold_at_far

FEW = 10
"""With fewer impostors above the threshold than this, a TAR hangs on single pairs."""
_COARSE = 128


@dataclass(frozen=True)
class Rate:
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
    interval: Interval | None = None
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
            "reference": short(self.reference),
            "engine": short(self.engine),
            "delta": short(self.delta),
            "interval_95": self.interval.to_json() if self.interval else None,
            "threshold": {
                "reference": short(self.reference_threshold),
                "engine": short(self.engine_threshold),
            },
            "threshold_kept": {"tar": short(self.kept_tar), "far": short(self.kept_far, 9)},
            **({"reason": self.why} if self.why else {}),
            **({"shaky": self.shaky} if self.shaky else {}),
        }


def compare_rates(reference: Scores, engine: Scores, fars: tuple[float, ...]) -> list[Rate]:
    """One `Rate` for each FAR, the largest first."""
    return [_rate(reference, engine, far) for far in sorted(set(fars), reverse=True)]


def with_intervals(rates: list[Rate], intervals: dict[float, Interval]) -> list[Rate]:
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
        "roc": {name: [short(v, 9) for v in values] for name, values in roc(scores).items()},
        "eer": short(equal_error_rate(scores)),
        "genuine": [short(float(v), 8) for v in genuine],
        "impostor": [short(float(v), 8) for v in impostor],
    }


def short(value: float | None, digits: int = 6) -> float | None:
    return None if value is None else round(value, digits)


def _rate(reference: Scores, engine: Scores, far: float) -> Rate:
    old, new = threshold_at_far(reference, far), threshold_at_far(engine, far)
    if not reference.genuine_pairs:
        return Rate(far, why="no two faces are of the same person")
    if old is None or new is None:
        needed = round(1 / far)
        return Rate(far, why=f"{reference.impostor_pairs:,} impostor pairs, {needed:,} needed")
    kept_tar, kept_far = rates_at(engine, old)
    return Rate(
        far,
        rates_at(reference, old)[0],
        rates_at(engine, new)[0],
        old,
        new,
        kept_tar,
        kept_far,
        shaky=few_impostors(reference.impostor_pairs, far),
    )
