"""What a benchmark's line is called, in its text, its report and a comparison."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..._version import __version__
from ...documents import to_builtins
from ..machine.device import describe_device
from ..machine.monitor import SensorTrace, anomalies, energy, summarize_trace
from ..machine.sensors import clock_settings, denied
from ..machine.tegrastats import power_mode
from .breakdown import LatencyBreakdown
from .poisson_load import MAX_BUSY, LoadResult
from .setting import Setting
from .statistics import (
    PERCENTILES,
    Latencies,
    latency_percentile,
    percentile_interval,
    percentile_name,
)
from .timing import SEGMENTS, Timed


def run_label(run: Mapping[str, Any]) -> str:
    """Of a run's JSON: the batch, and beside it what is not the default. An earlier version's has
    no rate, or neither threads nor streams."""
    label = f"batch {run['batch']}"
    label += f", threads {run['threads']}" if run.get("threads") else ""
    label += f", streams {run['streams']}" if (run.get("streams") or 1) > 1 else ""
    return label + (f", {run['rate']} queries/s" if run.get("rate") else "")


# One line of a benchmark: its figures, and the reasons why they cannot be believed.

CURVE = (0.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99)
"""Percentiles that a plot is drawn through."""

MIN_RUNS = 100
"""Fewer runs hold no 99th percentile."""

MIN_DURATION_S = 1.0

MAX_VARIATION = 0.10

MAX_DRIFT = 0.10

MAX_WAITED = 0.05

MAX_LATE = 0.05
"""Of the mean latency, that the benchmark itself may add by sending queries late."""

SAME_LATENCY = 0.9999
"""Cosine from which an embedding made during the run is the one made before it."""


@dataclass(frozen=True)
class BenchmarkRun:
    """`lowest` is the lowest cosine of an embedding sampled during the timed run with the same
    face's before it; `watched` what the board's sensors said meanwhile, `idle` before; `spoilt`
    what was found amiss around it."""

    setting: Setting
    timed: Timed
    duration_s: float
    lowest: float
    watched: SensorTrace | None = None
    idle: SensorTrace | None = None
    spent: LatencyBreakdown | None = None
    spoilt: tuple[str, ...] = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the figures cannot be believed; none when they can."""
        return (*_reasons(self), *self.spoilt)

    @property
    def throughput_per_s(self) -> float:
        served = self.timed.served
        per_s = served.achieved_per_s if served else 1e3 / self.timed.latencies.mean_ms
        return self.setting.faces * per_s

    def to_json(self) -> dict[str, Any]:
        latencies = self.timed.latencies
        intervals = {percentile_name(q): percentile_interval(latencies, q) for q in PERCENTILES}
        reasons = list(self.reasons)
        return {
            "batch": self.setting.batch,
            "threads": self.setting.threads,
            "streams": self.setting.streams,
            "rate": self.setting.rate,
            "verdict": "INVALID" if reasons else "VALID",
            "reasons": reasons,
            "latency_ms": {
                "mean": round(latencies.mean_ms, 4),
                **{
                    percentile_name(q): _short(latency_percentile(latencies, q))
                    for q in PERCENTILES
                },
                "min": round(latencies.min_ms, 4),
                "max": round(latencies.max_ms, 4),
            },
            "interval_95_ms": {
                key: None if ends is None else [_short(end) for end in ends]
                for key, ends in intervals.items()
            },
            "throughput_per_s": round(self.throughput_per_s, 2),
            "runs": latencies.count,
            "resolution": latencies.resolution,
            "duration_s": round(self.duration_s, 3),
            "warmup_s": round(self.timed.warmup_s, 3),
            "variation": round(self.timed.variation, 4),
            "drift": round(self.timed.drift, 4),
            "outliers": self.timed.outliers,
            "waited": _short(self.timed.waited),
            "min_cosine_during": round(self.lowest, 6),
            "quantiles_ms": [[q, _short(latencies.all.percentile(q))] for q in self._quantiles()],
            "work_over_time_ms": [
                _short(part.percentile(50)) for part in self.timed.work.parts(SEGMENTS)
            ],
            "served": self._served(),
            "energy": self._energy(),
            "board": None if self.watched is None else to_builtins(summarize_trace(self.watched)),
            **(self.spent.to_json() if self.spent else {}),
        }

    def _quantiles(self) -> list[float]:
        """Those of `CURVE` that the runs hold."""
        return [q for q in CURVE if latency_percentile(self.timed.latencies, q) is not None]

    def _served(self) -> dict[str, Any] | None:
        if (served := self.timed.served) is None:
            return None
        return {
            "achieved_per_s": round(served.achieved_per_s, 2),
            "most_per_s": round(served.most_per_s, 2),
            "busy": round(served.busy, 4),
            "backlog": served.backlog,
            "late_mean_ms": _short(served.late_ms),
            "work_p50_ms": _short(served.work.all.percentile(50)),
            "waiting_mean_ms": _short(self.timed.latencies.mean_ms - served.work.mean_ms),
        }

    def _energy(self) -> dict[str, Any] | None:
        if self.watched is None or self.idle is None:
            return None
        seconds = self.setting.faces / self.throughput_per_s
        face_energy = energy(self.watched, self.idle, self.setting.faces, seconds)
        return None if face_energy is None else dict(to_builtins(face_energy))


def _reasons(run: BenchmarkRun) -> Iterator[str]:
    timed, count = run.timed, run.timed.latencies.count
    if timed.interrupted:
        yield "stopped before its time"
    if run.duration_s < MIN_DURATION_S:
        yield f"too short: {run.duration_s:g} s, at least {MIN_DURATION_S:g} s"
    if (served := timed.served) is None:
        if count < MIN_RUNS:
            yield f"too few runs: {count}, p99 needs {MIN_RUNS}; lengthen --duration"
    else:
        yield from _queue_reasons(timed.latencies, served)
    if timed.work.min_ms <= 0:
        yield "the clock jumped: a run took no time or less"
    if not timed.steady:
        yield f"not steady after {timed.warmup_s:.1f} s of warm-up"
    if timed.variation > MAX_VARIATION:
        yield f"too noisy: the middle runs vary by {timed.variation:.0%} of the median"
    if timed.drift > MAX_DRIFT:
        yield f"the speed moved: medians over the run lie {timed.drift:.0%} apart"
    if timed.waited is not None and timed.waited > MAX_WAITED:
        yield (
            "other load on the machine: its threads stood in line for a core "
            f"{timed.waited:.0%} of the time"
        )
    if run.lowest < SAME_LATENCY:
        yield f"embeddings moved during the run: cosine {run.lowest:.4f} with before"
    if run.watched is not None:
        yield from anomalies(run.watched, timed.warmup_s)


def _queue_reasons(latencies: Latencies, served: LoadResult) -> Iterator[str]:
    needed = MIN_RUNS * latencies.memory
    if served.busy > MAX_BUSY:
        yield (
            f"too many queries: at work {served.busy:.0%} of the time, {served.backlog} waiting at"
            f" the end; without a pause it answers {round(served.most_per_s, 1):.7g} a second"
        )
    elif latencies.count < needed:
        yield (
            f"too few queries: {latencies.count}, p99 needs {needed:.0f} where an engine is at work"
            f" {served.busy:.0%} of the time; lengthen --duration"
        )
    if served.late_ms > MAX_LATE * latencies.mean_ms:
        yield (
            f"the queries were sent late, by {served.late_ms:.3f} ms in the mean, of"
            f" {latencies.mean_ms:.3f} ms latency"
        )


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


# What a benchmark found, as a value and as the document that docs/benchmark.schema.json fixes.

BENCHMARK_SCHEMA = 1
"""Raised when a reader of the document would have to change."""

_GAIN = 1.10

_TIMED = {
    False: "embed() from preprocessed input to embeddings on the host",
    True: "decoding, preprocessing and embed(), from JPEG bytes to embeddings on the host",
}


@dataclass(frozen=True)
class BenchmarkResult:
    """One `Run` for each setting, in order. `golden_cosine` is the lowest of the engine's golden
    embeddings with the original's; `interrupted` if Ctrl-C came before the end; `time` of the end,
    UTC, in ISO 8601."""

    engine: str
    backend: str
    runs: tuple[BenchmarkRun, ...]
    golden_cosine: float
    end_to_end: bool = False
    interrupted: bool = False
    time: str = ""

    @property
    def valid(self) -> bool:
        return not any(run.reasons for run in self.runs)

    @property
    def knee(self) -> int | None:
        return saturation_batch(self.runs)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": BENCHMARK_SCHEMA,
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
                **to_builtins(describe_device()),
                "power_mode": power_mode(),
                "clocks": to_builtins(clock_settings()),
                "sensors_denied": list(denied()),
            },
        }


class BenchmarkInterrupted(KeyboardInterrupt):
    """Ctrl-C came while a benchmark ran; `found` is what had run by then, and was written."""

    def __init__(self, found: BenchmarkResult) -> None:
        super().__init__("stopped")
        self.found = found


def saturation_batch(runs: Sequence[BenchmarkRun]) -> int | None:
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
