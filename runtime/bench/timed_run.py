"""One batch size of a benchmark: its figures, and the reasons why they cannot be believed."""

from dataclasses import dataclass
from typing import Any

from ..machine.watch import Watched, complaints, energy, state
from .latency import PERCENTILES, name, percentile, percentile_interval
from .timing import Timed

MIN_RUNS = 100
"""Fewer runs hold no 99th percentile."""
MIN_DURATION_S = 1.0
MAX_VARIATION = 0.10
MAX_DRIFT = 0.10
MAX_WAITED = 0.05
SAME = 0.9999
"""Cosine from which an embedding made during the run is the one made before it."""


@dataclass(frozen=True)
class Run:
    """`lowest` is the lowest cosine of an embedding sampled during the timed run with the same
    face's before it; `watched` what the board's sensors said meanwhile, `idle` before."""

    batch: int
    timed: Timed
    duration_s: float
    lowest: float
    watched: Watched | None = None
    idle: Watched | None = None

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the figures cannot be believed; none when they can."""
        return tuple(_reasons(self))

    @property
    def throughput_per_s(self) -> float:
        return self.batch * 1e3 / float(self.timed.latencies_ms.mean())

    def to_json(self) -> dict[str, Any]:
        latencies = self.timed.latencies_ms
        intervals = {name(q): percentile_interval(latencies, q) for q in PERCENTILES}
        return {
            "batch": self.batch,
            "verdict": "INVALID" if self.reasons else "VALID",
            "reasons": list(self.reasons),
            "latency_ms": {
                "mean": round(float(latencies.mean()), 4),
                **{name(q): _short(percentile(latencies, q)) for q in PERCENTILES},
                "min": round(float(latencies.min()), 4),
                "max": round(float(latencies.max()), 4),
            },
            "interval_95_ms": {
                key: None if ends is None else [_short(end) for end in ends]
                for key, ends in intervals.items()
            },
            "throughput_per_s": round(self.throughput_per_s, 2),
            "runs": len(latencies),
            "duration_s": round(self.duration_s, 3),
            "warmup_s": round(self.timed.warmup_s, 3),
            "variation": round(self.timed.variation, 4),
            "drift": round(self.timed.drift, 4),
            "outliers": self.timed.outliers,
            "waited": _short(self.timed.waited),
            "min_cosine_during": round(self.lowest, 6),
            "energy": self._energy(),
            "board": None if self.watched is None else state(self.watched),
        }

    def _energy(self) -> dict[str, Any] | None:
        if self.watched is None or self.idle is None:
            return None
        seconds = float(self.timed.latencies_ms.mean()) / 1e3
        return energy(self.watched, self.idle, self.batch, seconds)


def _reasons(run: Run) -> list[str]:
    timed, count = run.timed, len(run.timed.latencies_ms)
    reasons = []
    if timed.interrupted:
        reasons.append("stopped before its time")
    if run.duration_s < MIN_DURATION_S:
        reasons.append(f"too short: {run.duration_s:g} s, at least {MIN_DURATION_S:g} s")
    if count < MIN_RUNS:
        reasons.append(f"too few runs: {count}, p99 needs {MIN_RUNS}; lengthen --duration")
    if timed.latencies_ms.min() <= 0:
        reasons.append("the clock jumped: a run took no time or less")
    if not timed.steady:
        reasons.append(f"not steady after {timed.warmup_s:.1f} s of warm-up")
    if timed.variation > MAX_VARIATION:
        reasons.append(f"too noisy: the middle runs vary by {timed.variation:.0%} of the median")
    if timed.drift > MAX_DRIFT:
        reasons.append(f"the speed moved: medians over the run lie {timed.drift:.0%} apart")
    if timed.waited is not None and timed.waited > MAX_WAITED:
        reasons.append(
            "other load on the machine: its threads stood in line for a core "
            f"{timed.waited:.0%} of the time"
        )
    if run.lowest < SAME:
        reasons.append(f"embeddings moved during the run: cosine {run.lowest:.4f} with before")
    if run.watched is not None:
        reasons += complaints(run.watched, timed.warmup_s)
    return reasons


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
