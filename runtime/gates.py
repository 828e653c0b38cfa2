"""Gates: a measured value, its limit and the verdict. What could not be measured fails."""

import math
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError

DEFAULTS = {"int8": (0.95, 0.97), "fp16": (0.999, 0.9995), "fp32": (0.9999, 0.9999)}
"""Floors of the min and the 1st percentile cosine by precision."""
MAX_TAR_DROP = 0.01
PROOF = 0.9999
"""From this cosine on, `model.onnx` on this machine counts as the original network."""


@dataclass(frozen=True)
class Limits:
    """What an engine must hold. None means the default of its precision, `DEFAULTS`.

    Cosines are against the reference, `max_tar_drop` is the share of genuine pairs that may be
    lost at the false accept rate `far`. Raises UsageError for limits that no engine can be at.
    """

    min_cosine: float | None = None
    p1_cosine: float | None = None
    max_tar_drop: float | None = None
    far: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("min_cosine", "p1_cosine"):
            value = getattr(self, name)
            if value is not None and not -1 <= value <= 1:
                raise UsageError(f"{name} is a cosine, -1 to 1, found {value}")
        if self.max_tar_drop is not None and not 0 <= self.max_tar_drop <= 1:
            raise UsageError(f"max_tar_drop is a fraction, 0 to 1, found {self.max_tar_drop}")
        if not 0 < self.far < 1:
            raise UsageError(f"far is a rate between 0 and 1, found {self.far}", "--far 1e-4")


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
        """`min cosine 0.9712, at least 0.9`."""
        found = self.why or "not measured" if self.value is None else f"{self.value:.4f}"
        return f"{self.name} {found}, at {'most' if self.most else 'least'} {self.limit:g}"
