"""The policy: what an engine must hold, from flags, a TOML file, or the defaults.

far = 1e-4              # where TAR is judged
max_tar_drop = 0.005    # half a point

[int8]                  # for this precision only; also [fp16], [fp32]
min_cosine = 0.96
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ...documents import read_toml
from ...errors import DataError, UsageError
from ...metrics.comparison import VerificationComparison
from ...metrics.rates import CosineDrift, RateChange
from ...metrics.strata import MIN_STRATUM_PAIRS
from ...metrics.verification import far_name
from .reference import ReferenceCheck

DEFAULTS = {"int8": (0.95, 0.97), "fp16": (0.999, 0.9995), "fp32": (0.9999, 0.9999)}
"""Floors of the min and the 1st percentile cosine by precision. The min falls with the number of
faces, a single hard one decides it; the 1st percentile does not."""

MAX_TAR_DROP = 0.01

FAR = 1e-4

PROOF = 0.9999
"""From this cosine on, `model.onnx` on this machine counts as the original network."""

POLICY_NAME = "policy.toml"
"""Where a bundle keeps the policy it is judged by."""


@dataclass(frozen=True)
class Limits:
    """What an engine must hold; None is the default, which for strata is no gate.

    Cosines are with the reference; drops are shares of genuine pairs lost at the false accept rate
    `far`, over all faces and in the stratum that loses most. Raises UsageError for limits that
    nothing can be at.
    """

    min_cosine: float | None = None
    p1_cosine: float | None = None
    max_tar_drop: float | None = None
    max_stratum_drop: float | None = None
    far: float | None = None

    def __post_init__(self) -> None:
        for name in ("min_cosine", "p1_cosine"):
            value = getattr(self, name)
            if value is not None and not -1 <= value <= 1:
                raise UsageError(f"{name} is a cosine, -1 to 1, found {value}")
        for name in ("max_tar_drop", "max_stratum_drop"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"{name} is a fraction, 0 to 1, found {value}")
        if self.far is not None and not 0 < self.far < 1:
            raise UsageError(f"far is a rate between 0 and 1, found {self.far}", "--far 1e-4")

    def over(self, other: "Limits") -> "Limits":
        """These limits, and `other`'s where these say nothing."""
        return replace(other, **{k: v for k, v in vars(self).items() if v is not None})


def read_policy(path: Path, precision: str) -> Limits:
    """The limits of a policy file for one precision.

    Raises DataError when it is missing, no TOML, or holds a key or value that is no limit.
    """
    data = read_toml(path)
    data.pop("benchmark", None)  # what `benchmark` demands, and reads itself
    own = {name: data.pop(name, {}) for name in DEFAULTS}
    return _limits(own[precision], path).over(_limits(data, path))


def _limits(data: Any, path: Path) -> Limits:
    known = [field.name for field in fields(Limits)]
    if not isinstance(data, dict) or set(data) - set(known):
        found = ", ".join(sorted(set(data) - set(known))) if isinstance(data, dict) else data
        raise DataError(
            f"{path} holds {found}, expected {', '.join(known)}",
            "a table of its own may be [int8], [fp16] or [fp32]",
        )
    for name, value in data.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DataError(f"{path}: {name} is a number, found {value!r}")
    try:
        return Limits(**{name: float(value) for name, value in data.items()})
    except UsageError as error:
        raise DataError(f"{path}: {error.message}") from error


# Gates: a measured value, its limit and the verdict. What could not be measured fails.


@dataclass(frozen=True)
class Gate:
    """`value` is None when it could not be measured; `limit` is a floor or (`most`) a ceiling."""

    name: str
    value: float | None
    limit: float
    most: bool = False
    why: str = ""
    """Why there is no value."""

    @property
    def passed(self) -> bool:
        if self.value is None or not math.isfinite(self.value):
            return False
        return self.value <= self.limit if self.most else self.value >= self.limit

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": None if self.value is None else round(self.value, 6),
            "limit": self.limit,
            "at": "most" if self.most else "least",
            "passed": self.passed,
            **({"reason": self.why} if self.why else {}),
        }

    def describe(self) -> str:
        """`min cosine 0.9712, at least 0.95`."""
        found = self.why or "not measured" if self.value is None else f"{self.value:.4f}"
        return f"{self.name} {found}, at {'most' if self.most else 'least'} {self.limit:g}"


# From what was measured to gates, advice, and the list of what was not.


def judge_gates(
    limits: Limits,
    precision: str,
    proof: ReferenceCheck,
    drift: CosineDrift,
    told: VerificationComparison | None,
) -> tuple[list[Gate], list[str]]:
    """The gates, and what was left unmeasured.

    A gate that was asked for and could not be measured fails; the default TAR gate is left out
    where the pairs are too few, and said to be.
    """
    minimum, p1 = DEFAULTS[precision]
    gates = [
        Gate("fp32 model is the original: min cosine", proof.fp32, PROOF),
        Gate("min cosine", drift.min, minimum if limits.min_cosine is None else limits.min_cosine),
        Gate("p1 cosine", drift.p1, p1 if limits.p1_cosine is None else limits.p1_cosine),
    ]
    far = FAR if limits.far is None else limits.far
    name = f"TAR drop at FAR {far_name(far)}"
    rate = told.at(far) if told else None
    why = rate.reason if rate else "no faces of several known people were given"
    low_confidence = rate.low_confidence if rate else ""
    if limits.max_tar_drop is not None or not (why or low_confidence):
        drop = -rate.delta if rate and rate.delta is not None else None
        limit = MAX_TAR_DROP if limits.max_tar_drop is None else limits.max_tar_drop
        gates.append(Gate(name, drop, limit, most=True, why=why))
    if limits.max_stratum_drop is not None:
        gates.append(_stratum_gate(limits.max_stratum_drop, told))
    missing = (
        [f"{name}: {why}"]
        if why
        else [f"{name} has low confidence: {low_confidence}"]
        if low_confidence
        else []
    )
    missing += told.notes if told else ()
    if told is None or told.accuracy is None:
        missing.append("10-fold accuracy: no pair list was given")
    return gates, missing


def mixed_advice(limits: Limits, rates: Sequence[RateChange]) -> dict[str, str | float] | None:
    """May people enrolled with another network be matched by the engine, or must they enrol again?

    They may stay when mixed pairs, `rates`, lose no more TAR than the engine's own may.
    """
    far = FAR if limits.far is None else limits.far
    mixed = next((rate for rate in rates if rate.far == far), None)
    if mixed is None or mixed.delta is None or mixed.threshold.engine is None:
        return None
    limit = MAX_TAR_DROP if limits.max_tar_drop is None else limits.max_tar_drop
    stays = -mixed.delta <= limit
    return {
        "verdict": "keep the gallery" if stays else "enrol again",
        "far": far_name(far),
        "delta": round(mixed.delta, 6),
        "threshold": round(mixed.threshold.engine, 6),
    }


def _stratum_gate(limit: float, told: VerificationComparison | None) -> Gate:
    drops = {}
    if told is not None:
        found = (*told.strata, *told.degraded)
        drops = {stratum.name: stratum.drop for stratum in found if stratum.drop is not None}
    if told is None or told.strata_far is None or not drops:
        return Gate(
            "worst stratum's TAR drop",
            None,
            limit,
            True,
            f"no stratum has {MIN_STRATUM_PAIRS} pairs",
        )
    worst = max(drops, key=lambda name: drops[name])
    name = f"TAR drop at FAR {told.strata_far} of the worst stratum: {worst}"
    return Gate(name, drops[worst], limit, most=True)
