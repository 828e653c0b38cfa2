"""The policy: what an engine must hold, from flags, a TOML file, or the defaults.

far = 1e-4              # where TAR is judged
max_tar_drop = 0.005    # half a point

[int8]                  # for this precision only; also [fp16], [fp32]
min_cosine = 0.96
"""

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ...errors import DataError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULTS = {"int8": (0.95, 0.97), "fp16": (0.999, 0.9995), "fp32": (0.9999, 0.9999)}
"""Floors of the min and the 1st percentile cosine by precision. The min falls with the number of
faces, a single hard one decides it; the 1st percentile does not."""
MAX_TAR_DROP = 0.01
FAR = 1e-4
PROOF = 0.9999
"""From this cosine on, `model.onnx` on this machine counts as the original network."""
NAME = "policy.toml"
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
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"there is no policy at {path}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a TOML file: {error}") from error
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
