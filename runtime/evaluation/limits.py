"""Limits that engines must satisfy, from flags, from a policy file or by default.

A policy is a TOML file that the bundle keeps, with a table per command and precision:

    require_signature = true    # of every command: only files that a trusted key has signed are used

    far = 1e-4                  # of `verify`: where TAR is judged
    max_tar_drop = 0.005        # half a point; a precision's own value goes before it
    max_landmark_shift = 0.5    # of `verify --photos`: pixels of the aligned face, in the median

    [int8]                      # of `verify`, for this precision only; also [fp8], [fp16], [fp32]
    min_cosine = 0.96

    [evaluate]                  # also [evaluate.int8]; [verify] is the same as the top level
    min_accuracy = 0.99

    [benchmark]                 # also [benchmark.int8]
    max_p99_ms = 8.0
"""

import math
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from ...bundle.manifest import Bundle
from ...bundle.trust import with_required_signatures
from ...documents import read_toml
from ...errors import DataError, UsageError
from ...reading import read_file

# Precision -> floors of the minimum and of the 1st percentile cosine. A single hard face decides
# the minimum, which falls with the number of faces; the 1st percentile does not.
COSINE_FLOORS = {
    "int8": (0.95, 0.97),
    "fp8": (0.95, 0.97),
    "fp16": (0.999, 0.9995),
    "fp32": (0.9999, 0.9999),
}

POLICY_NAME = "policy.toml"  # where a bundle keeps the policy it is judged by

_MAX_TAR_DROP = 0.01
_FAR = 1e-4
_MAX_RECALL_LOSS = 0.02  # INT8 misses 1 and 3 of 187 faces (docs/results/detectors.md)
_MAX_SHIFT = 1.0  # pixels of the aligned face; INT8 moves them by .13 and .24 in the median

_COSINES = ("min_cosine", "p1_cosine")
_RATES = ("far", "max_kept_far")
_POSITIVE = ("max_p99_ms", "min_throughput", "max_energy_mj", "max_landmark_shift")


@dataclass(frozen=True)
class Limits:
    """What `verify` demands of an engine; None is no gate, or the default of the first four.

    Impossible limits raise UsageError.

    Attributes:
        min_cosine: Floor of the lowest cosine with the reference.
        p1_cosine: Floor of the 1st percentile of the cosines.
        max_tar_drop: Largest loss of TAR at `far`, a fraction of the genuine pairs.
        far: The false accept rate at which TAR is judged.
        max_stratum_drop: Largest loss of TAR in the kind of face that loses most.
        min_tar: Floor of the engine's TAR at `far`.
        min_accuracy: Floor of the engine's accuracy over a pair list's folds.
        max_eer: Ceiling of the engine's equal error rate.
        min_kept_tar: Floor of the engine's TAR at the reference's threshold, which a device keeps.
        max_kept_far: Ceiling of the engine's FAR at that threshold.
        max_detector_recall_loss: Largest share of the FP32 detector's faces that the device's misses;
            of photographs only.
        max_landmark_shift: Ceiling of the median shift of the landmarks, in pixels of the 112x112
            aligned face; of photographs only.
    """

    min_cosine: float | None = None
    p1_cosine: float | None = None
    max_tar_drop: float | None = None
    max_stratum_drop: float | None = None
    far: float | None = None
    min_tar: float | None = None
    min_accuracy: float | None = None
    max_eer: float | None = None
    min_kept_tar: float | None = None
    max_kept_far: float | None = None
    max_detector_recall_loss: float | None = None
    max_landmark_shift: float | None = None

    def __post_init__(self) -> None:
        _check(self)

    @property
    def judged_far(self) -> float:
        """`far` or its default."""
        return _FAR if self.far is None else self.far

    @property
    def tar_drop(self) -> float:
        """`max_tar_drop` or its default."""
        return _MAX_TAR_DROP if self.max_tar_drop is None else self.max_tar_drop

    @property
    def detector_recall_loss(self) -> float:
        """`max_detector_recall_loss` or its default."""
        given = self.max_detector_recall_loss
        return _MAX_RECALL_LOSS if given is None else given

    @property
    def landmark_shift(self) -> float:
        """`max_landmark_shift` or its default, in pixels."""
        return _MAX_SHIFT if self.max_landmark_shift is None else self.max_landmark_shift


@dataclass(frozen=True)
class EvaluateLimits:
    """What `evaluate` demands; None is no gate.

    Attributes:
        min_tar: Floor of the TAR at `far`.
        min_accuracy: Floor of the accuracy over the folds.
        max_eer: Ceiling of the equal error rate.
        far: The false accept rate of `min_tar`.
    """

    min_tar: float | None = None
    min_accuracy: float | None = None
    max_eer: float | None = None
    far: float | None = None

    def __post_init__(self) -> None:
        _check(self)

    @property
    def judged_far(self) -> float:
        """`far` or its default."""
        return _FAR if self.far is None else self.far


@dataclass(frozen=True)
class BenchmarkLimits:
    """What `benchmark` demands of each of its runs; None is no gate.

    Attributes:
        max_p99_ms: Ceiling of the 99th percentile of latency, milliseconds.
        min_throughput: Floor of the throughput, faces per second.
        max_energy_mj: Ceiling of the energy of a face, millijoules.
    """

    max_p99_ms: float | None = None
    min_throughput: float | None = None
    max_energy_mj: float | None = None

    def __post_init__(self) -> None:
        _check(self)


AnyLimits = TypeVar("AnyLimits", Limits, EvaluateLimits, BenchmarkLimits)

_COMMANDS: dict[str, type] = {
    "verify": Limits,
    "evaluate": EvaluateLimits,
    "benchmark": BenchmarkLimits,
}
_REQUIRE_SIGNATURE = "require_signature"
_OTHER_KEYS = {"benchmark": ("power_mode",)}  # which `benchmark` reads itself


def merge_limits(asked: AnyLimits, other: AnyLimits) -> AnyLimits:
    """The limits that were asked for, and others where those are None.

    Args:
        asked: Go before.
        other: Of the same kind.
    """
    return replace(other, **{k: v for k, v in vars(asked).items() if v is not None})


def read_policy(path: Path, precision: str, kind: type[AnyLimits]) -> AnyLimits:
    """The limits of a policy file for one command and precision.

    The whole file is checked, so that a mistake in another command's table is found too.

    Args:
        path: A TOML file.
        precision: "fp32", "fp16", "fp8" or "int8".
        kind: `Limits` of `verify`, `EvaluateLimits` or `BenchmarkLimits`.

    Raises:
        DataError: The file is missing, not TOML, holds a key or value that is no limit, or two
            values of one limit.
    """
    data = read_toml(path)
    data.pop(_REQUIRE_SIGNATURE, None)  # `with_policy_signatures` has read it
    commands = {name: data.pop(name, {}) for name in _COMMANDS}
    parsed = {"": _tables(data, path, "", "verify")}
    for name, table in commands.items():
        parsed[name] = _tables(table, path, f"[{name}]", name)
    _refuse_two_values(parsed[""], parsed["verify"], path)
    command = next(name for name, limits in _COMMANDS.items() if limits is kind)
    result = kind()
    for table in ("", precision):
        for name in ("", "verify") if command == "verify" else (command,):
            result = merge_limits(kind(**parsed[name][table]), result)
    return result


def merged_policy(
    asked: AnyLimits, bundle: Bundle, policy: Path | None, precision: str
) -> AnyLimits:
    """The limits that hold: those asked for, else those of a policy file, else of the bundle's.

    Args:
        asked: Go before the policy.
        bundle: An open bundle.
        policy: A TOML file that takes the place of the bundle's own policy; None for the latter.
        precision: "fp32", "fp16", "fp8" or "int8".

    Raises:
        DataError: The policy cannot be read.
    """
    kind = type(asked)
    if policy is None:
        return merge_limits(asked, bundle_policy(bundle, precision, kind))
    return merge_limits(asked, read_policy(policy, precision, kind))


def bundle_policy(bundle: Bundle, precision: str, kind: type[AnyLimits]) -> AnyLimits:
    """The limits of the policy that a bundle keeps; all None without one.

    Args:
        bundle: An open bundle.
        precision: "fp32", "fp16", "fp8" or "int8".
        kind: `Limits` of `verify`, `EvaluateLimits` or `BenchmarkLimits`.

    Raises:
        DataError: The policy cannot be read.
    """
    if POLICY_NAME not in bundle:
        return kind()
    return read_policy(bundle.file(POLICY_NAME), precision, kind)


def kept_policy(policy: Path | None) -> dict[str, bytes]:
    """The file to write where a policy shall stay in the bundle; empty without one.

    Args:
        policy: The policy that was read.
    """
    return {POLICY_NAME: read_file(policy, "TOML_KB")} if policy else {}


def with_policy_signatures(bundle: Bundle, policy: Path | None) -> Bundle:
    """The bundle, restricted to signed files where the policy asks for that.

    Args:
        bundle: An open bundle.
        policy: A TOML file that takes the place of the bundle's own policy; None for the latter.

    Raises:
        DataError: The policy cannot be read.
        BundleError: A signature is required, and no key is trusted here or a signature does not
            hold.
    """
    path = policy or (bundle.file(POLICY_NAME) if POLICY_NAME in bundle else None)
    required = read_toml(path).get(_REQUIRE_SIGNATURE, False) if path else False
    if not isinstance(required, bool):
        raise DataError(f"{path}: {_REQUIRE_SIGNATURE} is true or false, found {required!r}")
    return with_required_signatures(bundle) if required and bundle.signed is None else bundle


def min_cosine_floor(bundle: Bundle, policy: Path | None, precision: str) -> float:
    """The floor of an engine's lowest cosine: the policy's, else the default.

    Args:
        bundle: An open bundle.
        policy: A TOML file that takes the place of the bundle's own policy; None for the latter.
        precision: "fp32", "fp16", "fp8" or "int8".

    Raises:
        DataError: The policy cannot be read.
    """
    floor = merged_policy(Limits(), bundle, policy, precision).min_cosine
    return COSINE_FLOORS[precision][0] if floor is None else floor


def _check(limits: Limits | EvaluateLimits | BenchmarkLimits) -> None:
    for name, value in vars(limits).items():
        if value is None:
            continue
        if name in _COSINES:
            if not -1 <= value <= 1:
                raise UsageError(f"{name} is a cosine, -1 to 1, found {value}")
        elif name in _RATES:
            if not 0 < value < 1:
                raise UsageError(f"{name} is a rate between 0 and 1, found {value}", "such as 1e-4")
        elif name in _POSITIVE:
            if not (value > 0 and math.isfinite(value)):
                raise UsageError(f"{name} is a number above 0, found {value}")
        elif not 0 <= value <= 1:
            raise UsageError(f"{name} is a fraction, 0 to 1, found {value}")


def _tables(data: Any, path: Path, where: str, command: str) -> dict[str, dict[str, float]]:
    """Limits of a table and of its tables by precision; "" is the table itself."""
    if not isinstance(data, dict):
        raise DataError(f"{path}: {where} holds {data!r}, expected a table")
    general = {name: value for name, value in data.items() if name not in COSINE_FLOORS}
    parsed = {"": _limits(general, path, where, command)}
    for name in COSINE_FLOORS:
        own = data.get(name, {})
        section = f"{where[:-1]}.{name}]" if where else f"[{name}]"
        if not isinstance(own, dict):
            raise DataError(f"{path}: {section} holds {own!r}, expected a table")
        parsed[name] = _limits(own, path, section, command)
    return parsed


def _refuse_two_values(
    top: dict[str, dict[str, float]], verify: dict[str, dict[str, float]], path: Path
) -> None:
    """The file's top level and `[verify]` are one table: both may hold a limit with one value only."""
    for table, limits in top.items():
        places = (f"[{table}]", f"[verify.{table}]") if table else ("the top level", "[verify]")
        for name, value in limits.items():
            other = verify[table].get(name, value)
            if other != value:
                raise DataError(
                    f"{path} contradicts itself: {name} is {value:g} in {places[0]} and {other:g}"
                    f" in {places[1]}, which both are of `verify`",
                    "keep one of them",
                )


def _limits(data: dict[str, Any], path: Path, where: str, command: str) -> dict[str, float]:
    known = [field.name for field in fields(_COMMANDS[command])]
    other = _OTHER_KEYS.get(command, ())
    place = f" in {where}" if where else ""
    for name, value in data.items():
        if name in other:
            continue
        if name not in known:
            near = get_close_matches(name, [*known, *other, *_COMMANDS, *COSINE_FLOORS], 1)
            raise DataError(
                f"{path} holds {name!r}{place}, expected {', '.join((*known, *other))}",
                f"did you mean {near[0]!r}?"
                if near
                else "tables: [int8], [fp8], [fp16], [fp32], [verify], [evaluate], [benchmark]",
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DataError(f"{path}: {name}{place} is a number, found {value!r}")
    limits = {name: float(value) for name, value in data.items() if name in known}
    try:
        _COMMANDS[command](**limits)
    except UsageError as error:
        raise DataError(f"{path}: {error.message}") from error
    return limits
