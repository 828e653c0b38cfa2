"""Gates: measured values, their limits, and the verdicts.

Limits come from flags, from a policy (a TOML file that the bundle keeps), or from the defaults:

    far = 1e-4              # where TAR is judged
    max_tar_drop = 0.005    # half a point

    [int8]                  # for this precision only; also [fp16], [fp32]
    min_cosine = 0.96
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ...bundle.manifest import Bundle
from ...documents import read_toml
from ...errors import DataError, UsageError
from ...metrics.comparison import VerificationComparison
from ...metrics.rates import CosineDrift, RateChange
from ...metrics.strata import MIN_STRATUM_PAIRS
from ...metrics.verification import far_name
from .reference import ReferenceCheck

# Precision -> floors of the minimum and of the 1st percentile cosine. A single hard face decides
# the minimum, which falls with the number of faces; the 1st percentile does not.
_COSINE_FLOORS = {"int8": (0.95, 0.97), "fp16": (0.999, 0.9995), "fp32": (0.9999, 0.9999)}

_MAX_TAR_DROP = 0.01
_FAR = 1e-4

MIN_REFERENCE_COSINE = 0.9999  # from which model.onnx on this machine is the original network
POLICY_NAME = "policy.toml"  # where a bundle keeps the policy it is judged by


@dataclass(frozen=True)
class Limits:
    """What an engine must satisfy; None stands for the default, which for strata is no gate.

    Impossible limits raise UsageError.

    Attributes:
        min_cosine: Floor of the lowest cosine with the reference.
        p1_cosine: Floor of the 1st percentile of the cosines.
        max_tar_drop: Largest loss of TAR at `far`, a fraction of the genuine pairs.
        max_stratum_drop: The same in the kind of face that loses most.
        far: The false accept rate at which TAR is judged.
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
        """These limits, and `other`'s where these are None."""
        return replace(other, **{k: v for k, v in vars(self).items() if v is not None})

    @property
    def judged_far(self) -> float:
        """`far` or its default."""
        return _FAR if self.far is None else self.far

    @property
    def tar_drop(self) -> float:
        """`max_tar_drop` or its default."""
        return _MAX_TAR_DROP if self.max_tar_drop is None else self.max_tar_drop


@dataclass(frozen=True)
class Gate:
    """A limit and its verdict; make one with `floor_gate` or `ceiling_gate`.

    Attributes:
        value: What was measured; None where it could not be.
        at: "least" for a floor, "most" for a ceiling.
        passed: Whether the value keeps the limit; False without a value.
        reason: Why there is no value.
    """

    name: str
    value: float | None
    limit: float
    at: str
    passed: bool
    reason: str = ""

    def describe(self) -> str:
        """`min cosine 0.9712, at least 0.95`."""
        value = self.reason or "not measured" if self.value is None else f"{self.value:.4f}"
        return f"{self.name} {value}, at {self.at} {self.limit:g}"


@dataclass(frozen=True)
class GalleryAdvice:
    """Whether people enrolled with another network may be matched by the engine.

    Attributes:
        verdict: "keep the gallery" or "enrol again".
        far: The FAR by name.
        delta: Change of TAR of mixed pairs, a fraction.
        threshold: The match threshold of mixed pairs, a cosine.
    """

    verdict: str
    far: str
    delta: float
    threshold: float


def read_policy(path: Path, precision: str) -> Limits:
    """The limits of a policy file for one precision.

    Args:
        path: A TOML file.
        precision: "fp32", "fp16" or "int8".

    Raises:
        DataError: The file is missing, not TOML, or holds a key or value that is no limit.
    """
    data = read_toml(path)
    data.pop("benchmark", None)  # for `benchmark`, which reads it itself
    own = {name: data.pop(name, {}) for name in _COSINE_FLOORS}
    return _parse_limits(own[precision], path).over(_parse_limits(data, path))


def bundle_policy(bundle: Bundle, precision: str) -> Limits:
    """The limits of the policy that a bundle keeps; all None without one.

    Args:
        bundle: An open bundle.
        precision: "fp32", "fp16" or "int8".

    Raises:
        DataError: The policy cannot be read.
    """
    return read_policy(bundle.file(POLICY_NAME), precision) if POLICY_NAME in bundle else Limits()


def min_cosine_floor(bundle: Bundle, precision: str) -> float:
    """The floor of an engine's lowest cosine: the policy's, else the default.

    Args:
        bundle: An open bundle.
        precision: "fp32", "fp16" or "int8".

    Raises:
        DataError: The bundle's policy cannot be read.
    """
    floor = bundle_policy(bundle, precision).min_cosine
    return _COSINE_FLOORS[precision][0] if floor is None else floor


def floor_gate(name: str, value: float | None, limit: float, reason: str = "") -> Gate:
    """A gate that passes from its limit upwards.

    Args:
        name: What is judged.
        value: What was measured; None where it could not be.
        limit: The smallest value that passes.
        reason: Why there is no value.
    """
    passed = value is not None and math.isfinite(value) and value >= limit
    return Gate(name, value, limit, "least", passed, reason)


def ceiling_gate(name: str, value: float | None, limit: float, reason: str = "") -> Gate:
    """A gate that passes up to its limit.

    Args:
        name: What is judged.
        value: What was measured; None where it could not be.
        limit: The largest value that passes.
        reason: Why there is no value.
    """
    passed = value is not None and math.isfinite(value) and value <= limit
    return Gate(name, value, limit, "most", passed, reason)


def judge_gates(
    limits: Limits,
    precision: str,
    golden: ReferenceCheck,
    drift: CosineDrift,
    comparison: VerificationComparison | None,
) -> tuple[list[Gate], list[str]]:
    """Judge what was measured.

    A gate that was asked for and could not be measured fails; the default TAR gate is left out
    where the pairs are too few.

    Args:
        limits: What the engine must satisfy.
        precision: "fp32", "fp16" or "int8".
        golden: The golden faces' answer.
        drift: Cosines of engine and reference.
        comparison: Rates of both, where faces of several people were given.

    Returns:
        The gates, and in words what was not measured.
    """
    minimum, p1 = _COSINE_FLOORS[precision]
    gates = [
        floor_gate(
            "fp32 model is the original: min cosine", golden.fp32_min_cosine, MIN_REFERENCE_COSINE
        ),
        floor_gate(
            "min cosine", drift.min, minimum if limits.min_cosine is None else limits.min_cosine
        ),
        floor_gate("p1 cosine", drift.p1, p1 if limits.p1_cosine is None else limits.p1_cosine),
    ]
    far = far_name(limits.judged_far)
    name = f"TAR drop at FAR {far}"
    rate = comparison.tar[far] if comparison else None
    reason = rate.reason if rate else "no faces of several known people were given"
    doubt = rate.low_confidence if rate else ""
    if limits.max_tar_drop is not None or not (reason or doubt):
        drop = -rate.delta if rate and rate.delta is not None else None
        gates.append(ceiling_gate(name, drop, limits.tar_drop, reason))
    if limits.max_stratum_drop is not None:
        gates.append(_stratum_gate(limits.max_stratum_drop, comparison))
    not_measured = []
    if reason:
        not_measured.append(f"{name}: {reason}")
    elif doubt:
        not_measured.append(f"{name} has low confidence: {doubt}")
    not_measured += comparison.notes if comparison else ()
    if comparison is None or comparison.accuracy is None:
        not_measured.append("10-fold accuracy: no pair list was given")
    return gates, not_measured


def gallery_advice(limits: Limits, rates: Mapping[str, RateChange]) -> GalleryAdvice | None:
    """May people enrolled with another network be matched by the engine, or must they enrol again?

    They may stay when mixed pairs lose no more TAR than the engine's own pairs may.

    Args:
        limits: What the engine must satisfy.
        rates: FAR by name -> TAR of the other network alone, and of mixed pairs.

    Returns:
        The advice, None where the pairs are too few.
    """
    mixed = rates.get(far_name(limits.judged_far))
    if mixed is None or mixed.delta is None or mixed.threshold.engine is None:
        return None
    stays = -mixed.delta <= limits.tar_drop
    return GalleryAdvice(
        "keep the gallery" if stays else "enrol again",
        far_name(limits.judged_far),
        mixed.delta,
        mixed.threshold.engine,
    )


def _stratum_gate(limit: float, comparison: VerificationComparison | None) -> Gate:
    drops: dict[str, float] = {}
    if comparison is not None and comparison.strata_far is not None:
        strata = (*comparison.strata, *comparison.degraded)
        drops = {stratum.name: stratum.drop for stratum in strata if stratum.drop is not None}
    if comparison is None or not drops:
        reason = f"no stratum has {MIN_STRATUM_PAIRS} pairs"
        return ceiling_gate("worst stratum's TAR drop", None, limit, reason)
    worst = max(drops, key=lambda name: drops[name])
    name = f"TAR drop at FAR {comparison.strata_far} of the worst stratum: {worst}"
    return ceiling_gate(name, drops[worst], limit)


def _parse_limits(data: Any, path: Path) -> Limits:
    known = [field.name for field in fields(Limits)]
    if not isinstance(data, dict) or set(data) - set(known):
        unknown = ", ".join(sorted(set(data) - set(known))) if isinstance(data, dict) else data
        raise DataError(
            f"{path} holds {unknown}, expected {', '.join(known)}",
            "a table of its own may be [int8], [fp16] or [fp32]",
        )
    for name, value in data.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DataError(f"{path}: {name} is a number, found {value!r}")
    try:
        return Limits(**{name: float(value) for name, value in data.items()})
    except UsageError as error:
        raise DataError(f"{path}: {error.message}") from error
