"""One line of a benchmark: its figures, and the reasons why they cannot be believed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..machine.watch import Watched, complaints, energy, state
from .arrivals import MAX_BUSY, Served
from .latency import PERCENTILES, Latencies, name, percentile, percentile_interval
from .spent import Spent
from .timing import SEGMENTS, Timed

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
SAME = 0.9999
"""Cosine from which an embedding made during the run is the one made before it."""


@dataclass(frozen=True)
class Setting:
    """What was run: `batch` faces in each of `streams` sessions at the same time, each of
    `threads` (onnxruntime's; None is one for each core). With `rate` so many queries of a batch
    arrive a second, at random; without, one follows the other."""

    batch: int = 1
    threads: int | None = None
    streams: int = 1
    rate: int | None = None

    @property
    def faces(self) -> int:
        """In one run."""
        return self.batch * self.streams


@dataclass(frozen=True)
class Run:
    """`lowest` is the lowest cosine of an embedding sampled during the timed run with the same
    face's before it; `watched` what the board's sensors said meanwhile, `idle` before; `spoilt`
    what was found amiss around it."""

    setting: Setting
    timed: Timed
    duration_s: float
    lowest: float
    watched: Watched | None = None
    idle: Watched | None = None
    spent: Spent | None = None
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
        intervals = {name(q): percentile_interval(latencies, q) for q in PERCENTILES}
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
                **{name(q): _short(percentile(latencies, q)) for q in PERCENTILES},
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
            "board": None if self.watched is None else state(self.watched),
            **(self.spent.to_json() if self.spent else {}),
        }

    def _quantiles(self) -> list[float]:
        """Those of `CURVE` that the runs hold."""
        return [q for q in CURVE if percentile(self.timed.latencies, q) is not None]

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
        return energy(self.watched, self.idle, self.setting.faces, seconds)


def _reasons(run: Run) -> Iterator[str]:
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
    if run.lowest < SAME:
        yield f"embeddings moved during the run: cosine {run.lowest:.4f} with before"
    if run.watched is not None:
        yield from complaints(run.watched, timed.warmup_s)


def _queue_reasons(latencies: Latencies, served: Served) -> Iterator[str]:
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
