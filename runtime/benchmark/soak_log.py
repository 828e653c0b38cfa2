"""A long benchmark's journal: a line of JSON every ten seconds, on the disk before the next.

Each line stands for itself, so that a file cut short by a power failure is read to its last whole
line.
"""

import json
import os
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from ...errors import MachineError
from ..machine.sensors import Reading
from .setting import Setting
from .statistics import LatencyRecorder, latency_percentile

_EVERY_S = 10.0


class SoakLog:
    """Open it with a file's path and `with`; `add` every run's latency, `begin` at each setting.

    Lines are added to a file that is there. Raises MachineError where it cannot be written.
    """

    def __init__(self, path: Path, every_s: float = _EVERY_S) -> None:
        self._path, self._every_ns = path, round(every_s * 1e9)
        self._file: IO[str] | None = None
        self._setting = Setting()
        self._readings: list[Reading] = []
        self._recorder, self._begun = LatencyRecorder(), 0

    def __enter__(self) -> "SoakLog":
        try:
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise MachineError(
                f"cannot write {self._path}: {error.strerror}", "choose another file for --log"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._write()
        if self._file is not None:
            self._file.close()

    def begin(self, setting: Setting, readings: list[Reading]) -> None:
        """`readings` is the list that the board's watch fills meanwhile."""
        self._write()
        self._setting, self._readings = setting, readings

    def add(self, ns: int) -> None:
        if not self._recorder:
            self._begun = time.monotonic_ns()
        self._recorder.add(ns)
        if time.monotonic_ns() - self._begun >= self._every_ns:
            self._write()

    def _write(self) -> None:
        recorder, self._recorder = self._recorder, LatencyRecorder()
        if not recorder or self._file is None:
            return
        self._file.write(json.dumps(_line(self._setting, recorder, self._readings)) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _line(setting: Setting, recorder: LatencyRecorder, readings: list[Reading]) -> dict[str, Any]:
    latencies = recorder.latencies()
    board = readings[-1] if readings else Reading()
    return {
        "time": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "batch": setting.batch,
        "threads": setting.threads,
        "streams": setting.streams,
        "rate": setting.rate,
        "runs": latencies.count,
        "mean_ms": round(latencies.mean_ms, 4),
        "p50_ms": latency_percentile(latencies, 50.0),
        "p99_ms": latency_percentile(latencies, 99.0),
        "max_ms": round(latencies.max_ms, 4),
        "clock_mhz": board.clock_mhz,
        "temperature_c": board.temperature_c,
        "power_mw": board.power_mw,
        "memory_mb": board.memory_mb,
        "throttled": list(board.throttled),
    }
