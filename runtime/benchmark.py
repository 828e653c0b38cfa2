"""`benchmark`: latency and throughput of an engine here, or the reasons why they mean nothing.

One caller, one batch after the other (MLPerf's SingleStream). What is timed is the session's
`embed` from preprocessed input to embeddings on the host; decoding and preprocessing are not.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import __version__
from ..bundle import Bundle, change, open_bundle
from ..errors import UsageError
from ..faces.contract import preprocess
from ..progress import Track, silent
from .device import describe_device
from .drift import measure_drift
from .embeddings import check_embeddings
from .golden import Golden, read_golden
from .metrics import cosines
from .session import Session, open_session
from .timing import Timed, time_runs

PERCENTILES = (50, 90, 95, 99)
MIN_RUNS = 100
"""Fewer runs hold no 99th percentile."""
MIN_DURATION_S = 1.0
MAX_VARIATION = 0.10
MAX_DRIFT = 0.10
MAX_WAITED = 0.05
SAME = 0.9999
"""Cosine from which an embedding made during the run is the one made before it."""
_INPUTS = 8
_SAMPLE = 16


@dataclass(frozen=True)
class Run:
    """One batch size. `lowest` is the lowest cosine of an embedding sampled during the timed run
    with the same face's before it."""

    batch: int
    timed: Timed
    duration_s: float
    lowest: float

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the figures cannot be believed; none when they can."""
        return tuple(_reasons(self))

    def to_json(self) -> dict[str, Any]:
        latencies = self.timed.latencies_ms
        return {
            "batch": self.batch,
            "verdict": "INVALID" if self.reasons else "VALID",
            "reasons": list(self.reasons),
            "latency_ms": {
                "mean": round(float(latencies.mean()), 4),
                **{f"p{p}": round(float(np.percentile(latencies, p)), 4) for p in PERCENTILES},
                "min": round(float(latencies.min()), 4),
                "max": round(float(latencies.max()), 4),
            },
            "throughput_per_s": round(self.batch * 1e3 / float(latencies.mean()), 2),
            "runs": len(latencies),
            "duration_s": round(self.duration_s, 3),
            "warmup_s": round(self.timed.warmup_s, 3),
            "variation": round(self.timed.variation, 4),
            "drift": round(self.timed.drift, 4),
            "outliers": self.timed.outliers,
            "waited": None if self.timed.waited is None else round(self.timed.waited, 4),
            "min_cosine_during": round(self.lowest, 6),
        }


@dataclass(frozen=True)
class Benchmarked:
    """What `benchmark` found, one `Run` for each batch size."""

    engine: str
    backend: str
    runs: tuple[Run, ...]
    golden_cosine: float

    @property
    def valid(self) -> bool:
        return not any(run.reasons for run in self.runs)

    def to_json(self) -> dict[str, Any]:
        return {
            "engine": self.engine,
            "backend": self.backend,
            "verdict": "VALID" if self.valid else "INVALID",
            "runs": [run.to_json() for run in self.runs],
            "golden_min_cosine": round(self.golden_cosine, 6),
            "timed": "embed() from preprocessed input to embeddings on the host",
            "fr_edge": __version__,
            "device": describe_device().to_json(),
        }


def benchmark(
    bundle: Bundle | str | Path,
    engine: str = "auto",
    backend: str = "auto",
    batches: Sequence[int] = (1,),
    duration_s: float = 10.0,
    warmup_s: float = 5.0,
    track: Track = silent,
) -> Benchmarked:
    """Time an engine on the golden faces; writes `reports/benchmark-ENGINE.json`.

    Each batch size is warmed up until steady, `warmup_s` seconds at most, then runs for
    `duration_s`, longer where that holds too few runs. Figures that conditions spoiled are marked INVALID with the reasons; that does
    not raise. Raises UsageError for a batch or duration that cannot be, and as `open_session`.
    """
    if not batches or min(batches) < 1:
        raise UsageError(f"batch sizes are 1 or more, found {list(batches)}", "--batch 1,8")
    if not 0 < duration_s < float("inf"):
        raise UsageError(f"the duration is above 0 seconds, found {duration_s}", "--duration 10")
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    session = open_session(bundle, engine, backend)
    golden = read_golden(bundle)
    inputs = preprocess(golden.faces, bundle.spec)
    before = session.embed(inputs)
    check_embeddings(before, golden.keys, f"the {session.precision} engine")
    runs = tuple(
        _time_batch(session, inputs, before, size, duration_s, warmup_s)
        for size in track(batches, "timing", len(batches))
    )
    found = Benchmarked(session.precision, session.backend, runs, _against_golden(golden, before))
    options = {"engine": session.precision, "backend": session.backend, "batch": list(batches)}
    with change(bundle.root, "benchmark", options) as draft:
        draft.drop("report.html")
        path = draft.path(f"reports/benchmark-{session.precision}.json", "benchmark")
        path.write_text(json.dumps(found.to_json(), indent=1) + "\n", encoding="utf-8")
        draft.summary.update(verdict="VALID" if found.valid else "INVALID")
    return found


def _time_batch(
    session: Session,
    inputs: npt.NDArray[np.float32],
    expected: npt.NDArray[np.float32],
    size: int,
    duration_s: float,
    warmup_s: float,
) -> Run:
    """Several different inputs in turn, so that nothing can be remembered from run to run."""
    picks = [(np.arange(size) + shift) % len(inputs) for shift in range(_INPUTS)]
    ready = [np.ascontiguousarray(inputs[pick]) for pick in picks]
    last: npt.NDArray[np.float32] = expected
    lowest = 1.0

    def run(index: int) -> None:
        nonlocal last
        last = session.embed(ready[index % _INPUTS])

    def sample(index: int) -> None:
        nonlocal lowest
        if index % _SAMPLE == 0:
            same = cosines(last, expected[picks[index % _INPUTS]])
            lowest = min(lowest, float(np.nan_to_num(same, nan=-1.0).min()))

    timed = time_runs(run, duration_s, MIN_RUNS, warmup_s=warmup_s, between=sample)
    return Run(size, timed, duration_s, lowest)


def _reasons(run: Run) -> list[str]:
    timed, count = run.timed, len(run.timed.latencies_ms)
    reasons = []
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
            f"other load on the machine: its threads stood in line for a core {timed.waited:.0%} of the time"
        )
    if run.lowest < SAME:
        reasons.append(f"embeddings moved during the run: cosine {run.lowest:.4f} with before")
    return reasons


def _against_golden(golden: Golden, found: npt.NDArray[np.float32]) -> float:
    return measure_drift(golden.embeddings, found, golden.keys).min
