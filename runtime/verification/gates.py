"""Gates: a measured value, its limit and the verdict. What could not be measured fails."""

import math
from dataclasses import dataclass
from typing import Any


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
