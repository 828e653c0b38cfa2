"""A long benchmark's log: a line of JSON every ten seconds, flushed to disk at once.

Each line is complete in itself, so a file cut short by a power failure is readable up to its last
whole line.
"""

import os
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from ...documents import encode_json
from ...errors import MachineError
from ..machine.sensors import Reading
from .setting import Setting
from .statistics import LatencyRecorder, latency_percentile

_INTERVAL_S = 10.0  # between two lines


class SoakLog:
    """Open it with `with`; call `begin` at each setting and `add` after each run.

    Lines are appended to a file that exists. Opening raises MachineError where it cannot be
    written.
    """

    def __init__(self, path: Path, interval_s: float = _INTERVAL_S) -> None:
        self._path, self._interval_ns = path, round(interval_s * 1e9)
        self._file: IO[bytes] | None = None
        self._setting = Setting()
        self._readings: list[Reading] = []
        self._recorder, self._begin_ns = LatencyRecorder(), 0

    def __enter__(self) -> "SoakLog":
        try:
            self._file = self._path.open("ab")
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
        """Start a setting; `readings` is the list that the board's monitor fills meanwhile."""
        self._write()
        self._setting, self._readings = setting, readings

    def add(self, ns: int) -> None:
        """Count a run's latency, nanoseconds; writes a line when the last one is old enough."""
        if not self._recorder:
            self._begin_ns = time.monotonic_ns()
        self._recorder.add(ns)
        if time.monotonic_ns() - self._begin_ns >= self._interval_ns:
            self._write()

    def _write(self) -> None:
        recorder, self._recorder = self._recorder, LatencyRecorder()
        if not recorder or self._file is None:
            return
        self._file.write(encode_json(_line(self._setting, recorder, self._readings), indent=0))
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
        "mean_ms": latencies.mean_ms,
        "p50_ms": latency_percentile(latencies, 50.0),
        "p99_ms": latency_percentile(latencies, 99.0),
        "max_ms": latencies.max_ms,
        "clock_mhz": board.clock_mhz,
        "temperature_c": board.temperature_c,
        "power_mw": board.power_mw,
        "memory_mb": board.memory_mb,
        "throttled": board.throttled,
    }
