"""`benchmark`: latency and throughput of an engine here, or the reasons why they mean nothing.

One caller, one batch after the other (MLPerf's SingleStream). What is timed is the session's
`embed` from preprocessed input to embeddings on the host; decoding and preprocessing are not.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ... import __version__
from ...bundle import Bundle, change, open_bundle
from ...errors import UsageError
from ...faces.contract import preprocess
from ...progress import Track, silent
from ..accuracy.drift import measure_drift
from ..accuracy.embeddings import check_embeddings
from ..accuracy.golden import read_golden
from ..accuracy.metrics import cosines
from ..engines.session import Session, open_session
from ..machine.device import describe_device
from ..machine.tegrastats import power_mode
from ..machine.watch import rest, watch
from .timed_run import MIN_RUNS, Run
from .timing import time_runs

_INPUTS = 8
_SAMPLE = 16
_GAIN = 1.10


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

    @property
    def knee(self) -> int | None:
        """The batch from which a larger one brings less than 10 % more faces a second; None with
        fewer than three sizes, or where each still brought more."""
        runs = sorted(self.runs, key=lambda run: run.batch)
        if len(runs) < 3:
            return None
        for smaller, larger in zip(runs, runs[1:], strict=False):
            if larger.throughput_per_s < _GAIN * smaller.throughput_per_s:
                return smaller.batch
        return None

    def to_json(self) -> dict[str, Any]:
        return {
            "engine": self.engine,
            "backend": self.backend,
            "verdict": "VALID" if self.valid else "INVALID",
            "runs": [run.to_json() for run in self.runs],
            "knee": self.knee,
            "golden_min_cosine": round(self.golden_cosine, 6),
            "timed": "embed() from preprocessed input to embeddings on the host",
            "fr_edge": __version__,
            "device": {**describe_device().to_json(), "power_mode": power_mode()},
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
    `duration_s`, longer where that holds too few runs. Figures that conditions spoiled are marked
    INVALID with the reasons; that does not raise. Ctrl-C keeps what has run, writes it, and goes on
    as KeyboardInterrupt. Raises UsageError for a batch or duration that cannot be, and as
    `open_session`.
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
    idle = rest(duration_s)
    runs: list[Run] = []
    for size in track(batches, "timing", len(batches)):
        with watch() as watched:
            run = _time_batch(session, inputs, before, size, duration_s, warmup_s)
        runs.append(replace(run, watched=watched, idle=idle))
        if runs[-1].timed.interrupted:
            break
    cosine = measure_drift(golden.embeddings, before, golden.keys).min
    found = Benchmarked(session.precision, session.backend, tuple(runs), cosine)
    options = {"engine": session.precision, "backend": session.backend, "batch": list(batches)}
    with change(bundle.root, "benchmark", options) as draft:
        draft.drop("report.html")
        path = draft.path(f"reports/benchmark-{session.precision}.json", "benchmark")
        path.write_text(json.dumps(found.to_json(), indent=1) + "\n", encoding="utf-8")
        draft.summary.update(verdict="VALID" if found.valid else "INVALID")
    if runs[-1].timed.interrupted:
        raise KeyboardInterrupt
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
