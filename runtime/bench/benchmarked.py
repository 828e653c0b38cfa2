"""What a benchmark found, as a value and as the document that docs/benchmark.schema.json fixes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ... import __version__
from ..machine.board import denied
from ..machine.clock_settings import clock_settings
from ..machine.device import describe_device
from ..machine.tegrastats import power_mode
from .timed_run import Run

SCHEMA = 1
"""Raised when a reader of the document would have to change."""
_GAIN = 1.10
_TIMED = {
    False: "embed() from preprocessed input to embeddings on the host",
    True: "decoding, preprocessing and embed(), from JPEG bytes to embeddings on the host",
}


@dataclass(frozen=True)
class Benchmarked:
    """One `Run` for each setting, in order. `golden_cosine` is the lowest of the engine's golden
    embeddings with the original's; `interrupted` if Ctrl-C came before the end; `time` of the end,
    UTC, in ISO 8601."""

    engine: str
    backend: str
    runs: tuple[Run, ...]
    golden_cosine: float
    end_to_end: bool = False
    interrupted: bool = False
    time: str = ""

    @property
    def valid(self) -> bool:
        return not any(run.reasons for run in self.runs)

    @property
    def knee(self) -> int | None:
        return knee(self.runs)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "engine": self.engine,
            "backend": self.backend,
            "verdict": "VALID" if self.valid else "INVALID",
            "runs": [run.to_json() for run in self.runs],
            "knee": self.knee,
            "golden_min_cosine": round(self.golden_cosine, 6),
            "timed": _TIMED[self.end_to_end],
            "interrupted": self.interrupted,
            "fr_edge": __version__,
            "time": self.time,
            "device": {
                **describe_device().to_json(),
                "power_mode": power_mode(),
                "clocks": clock_settings(),
                "sensors_denied": list(denied()),
            },
        }


class Stopped(KeyboardInterrupt):
    """Ctrl-C came while a benchmark ran; `found` is what had run by then, and was written."""

    def __init__(self, found: Benchmarked) -> None:
        super().__init__("stopped")
        self.found = found


def knee(runs: Sequence[Run]) -> int | None:
    """The batch from which a larger one brings less than 10 % more faces a second.

    Of the runs with the first's threads and streams. None with fewer than three sizes, or where
    each still brought more.
    """
    like = [
        run
        for run in runs
        if run.setting.rate is None
        and (run.setting.threads, run.setting.streams)
        == (runs[0].setting.threads, runs[0].setting.streams)
    ]
    ordered = sorted(like, key=lambda run: run.setting.batch)
    if len(ordered) < 3:
        return None
    for smaller, larger in zip(ordered, ordered[1:], strict=False):
        if larger.throughput_per_s < _GAIN * smaller.throughput_per_s:
            return smaller.setting.batch
    return None
