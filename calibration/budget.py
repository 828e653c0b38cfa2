"""The accuracy budget: which layers to keep in float so that INT8 loses no more than allowed.

Layers are ranked by what each alone costs the embedding, per time that its INT8 saves; the search
keeps the first k of that list in float and bisects k. So more float never means less accuracy by
luck of the order, and a handful of models is judged instead of 2 ** layers.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bundle import write_atomic
from ..errors import GateFailed, UsageError
from .loss import Loss

REASON = "accuracy budget"


@dataclass(frozen=True)
class Budget:
    """What INT8 may lose: `max_tar_drop` of the genuine pairs accepted at the false accept rate
    `far`, counted and likely, and `min_cosine` that the worst face must keep. None sets no limit."""

    max_tar_drop: float | None = None
    min_cosine: float | None = None
    far: float = 1e-4

    def __post_init__(self) -> None:
        if self.max_tar_drop is None and self.min_cosine is None:
            raise UsageError("an accuracy budget is a TAR drop or a cosine", "--max-tar-drop 0.003")
        if self.max_tar_drop is not None and not 0 <= self.max_tar_drop <= 1:
            raise UsageError(f"--max-tar-drop is a share, 0 to 1, found {self.max_tar_drop}")
        if self.min_cosine is not None and not -1 <= self.min_cosine <= 1:
            raise UsageError(f"--min-cosine is a cosine, -1 to 1, found {self.min_cosine}")
        if not 0 < self.far < 1:
            raise UsageError(f"--far is a rate between 0 and 1, found {self.far}", "--far 1e-4")

    def holds(self, loss: Loss) -> bool:
        rate = loss.at(self.far)
        return (
            self.max_tar_drop is None or (rate is not None and rate.sure_drop <= self.max_tar_drop)
        ) and (self.min_cosine is None or loss.cosine_min >= self.min_cosine)

    def describe(self) -> str:
        parts = []
        if self.max_tar_drop is not None:
            parts.append(f"TAR drop <= {self.max_tar_drop:g} at FAR {self.far:g}")
        if self.min_cosine is not None:
            parts.append(f"cosine >= {self.min_cosine:g}")
        return " and ".join(parts)


class Journal:
    """Results by name in a file, so that a search that was killed goes on where it was.

    What was found under another `key` (model, faces, options) is forgotten.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._key = key
        self._found: dict[str, Any] = {}
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["key"] == key:
                self._found = dict(data["found"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none yet, or a half-written one: begin anew

    def recall(self, name: str, work: Callable[[], Any]) -> Any:
        """What `work` gave under this name, now or before the interruption; JSON values only."""
        if name not in self._found:
            self._found[name] = work()
            data = json.dumps({"key": self._key, "found": self._found})
            write_atomic(self._path, data.encode())
        return self._found[name]

    def close(self) -> None:
        self._path.unlink(missing_ok=True)


def ranked(errors: Mapping[str, float], saved: Mapping[str, float]) -> list[str]:
    """Layer names: first those that INT8 does not make faster, then the one whose float costs least
    time for the accuracy it brings.

    `errors` are what each layer alone in INT8 costs, `saved` is the time that its INT8 saves.
    """

    def price(name: str) -> tuple[bool, float]:
        return saved[name] > 0.0, -errors[name] / max(saved[name], 1e-12)

    return sorted(errors, key=price)


def least_float(count: int, judge: Callable[[int], Loss], budget: Budget) -> int:
    """The least k of 1 to `count` - 1 for which keeping the first k layers in float holds.

    0 must have been tried; one layer stays in INT8. Raises GateFailed when no k holds.
    """
    low, high = 0, count - 1
    last = judge(high)
    if high == low or not budget.holds(last):
        rate = last.at(budget.far)
        found = f"cosine {last.cosine_min:.4f}"
        found += f", TAR drop {rate.drop:.4f}, likely {rate.likely}" if rate else ""
        raise GateFailed(
            f"no assignment holds {budget.describe()}: with one layer in INT8, {found}",
            "allow more (what was judged is remembered), or build FP16:"
            " `fr-edge build-engine BUNDLE --fp16`",
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if budget.holds(judge(middle)) else (middle, high)
    return high
