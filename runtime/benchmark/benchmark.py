"""`benchmark`: latency and throughput of an engine here, or the reasons why they mean nothing.

One caller, one batch after the other (MLPerf's SingleStream), as many at the same time as there are
streams (MultiStream), or queries that come at random (Server).
"""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from ...bundle.bundle import open_bundle, transaction
from ...bundle.manifest import Bundle
from ...errors import UsageError
from ...metrics.rates import measure_drift
from ...progress import Track, silent
from ..machine.monitor import SensorTrace, read_board, rest, watch
from ..machine.nvml import gpu_processes
from .breakdown import LatencyBreakdown, time_parts
from .conditions import demanded_power_mode, occupied, wrong_power_mode
from .result import MIN_RUNS, BenchmarkInterrupted, BenchmarkResult, BenchmarkRun, saturation_batch
from .setting import Setting
from .soak_log import SoakLog
from .timing import time_runs
from .workload import EngineUnderTest


def benchmark(
    bundle: Bundle | str | Path,
    engine: str = "auto",
    backend: str = "auto",
    batches: Sequence[int] | None = (1,),
    duration_s: float = 10.0,
    warmup_s: float = 5.0,
    track: Track = silent,
    *,
    threads: Sequence[int] = (),
    streams: Sequence[int] = (1,),
    rates: Sequence[int] = (),
    end_to_end: bool = False,
    layers: bool = False,
    power_mode: str | None = None,
    log: Path | None = None,
) -> BenchmarkResult:
    """Time an engine on the golden faces; writes `reports/benchmark-ENGINE.json`.

    Every batch size runs with every number of `threads` (onnxruntime's, by default one for each
    core) and of `streams` (sessions at the same time). `batches=None` doubles the size from 1 on,
    to 32 at most, until that brings less than 10 % more faces a second. `rates` are queries a second,
    of a batch each, that come at random and are answered in turn by one session; latency then
    counts from when a query came. Each is warmed up until
    steady, `warmup_s` seconds at most, then runs for `duration_s`, longer where that holds too few
    runs. With `end_to_end` decoding and preprocessing are timed too; `layers` adds the backend's
    profile; `power_mode` is demanded of the board, as the policy's table [benchmark] may demand it;
    `log` is a file that gets a line of JSON every ten seconds.

    Figures that conditions spoiled are marked INVALID with the reasons; that does not raise. Ctrl-C
    keeps what has run, writes it, and goes on as `Stopped`, a KeyboardInterrupt. Raises UsageError
    for numbers that cannot be, and as `open_session`.
    """
    _check(batches, threads, streams, rates, duration_s)
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    demanded = power_mode or demanded_power_mode(bundle)
    board, others = read_board(), gpu_processes()  # before there is a session of ours
    subject = EngineUnderTest(bundle, engine, backend, end_to_end=end_to_end)
    spoilt = () if subject.on_cpu else occupied(board, others)
    settings = list(subject.settings(batches, threads, streams, rates))
    runs: list[BenchmarkRun] = []
    with SoakLog(log) if log else nullcontext() as journal:
        bench = _Bench(subject, duration_s, warmup_s, rest(duration_s), journal, demanded, spoilt)
        interrupted = False
        try:
            for setting in track(settings, "timing", len(settings)):
                runs.append(bench.run(setting))
                if runs[-1].timed.interrupted:
                    raise KeyboardInterrupt
                runs[-1] = replace(runs[-1], spent=bench.spent(runs[-1], end_to_end, layers))
                if batches is None and saturation_batch(runs) is not None:
                    break
        except KeyboardInterrupt:
            if not runs:
                raise
            interrupted = True
    golden = subject.golden
    cosine = measure_drift(golden.embeddings, subject.embeddings, golden.keys).min
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    found = BenchmarkResult(
        subject.engine, subject.backend, tuple(runs), cosine, end_to_end, interrupted, now
    )
    _write(bundle, found)
    if interrupted:
        raise BenchmarkInterrupted(found)
    return found


@dataclass(frozen=True)
class _Bench:
    subject: EngineUnderTest
    duration_s: float
    warmup_s: float
    idle: SensorTrace | None
    journal: SoakLog | None
    demanded: str | None
    spoilt: tuple[str, ...]

    def run(self, setting: Setting) -> BenchmarkRun:
        work, journal = self.subject.work(setting), self.journal

        def between(index: int, ns: int) -> None:
            work.sample(index)
            if journal:
                journal.add(ns)

        try:
            with watch(duration_s=self.duration_s) as watched:
                if journal:
                    journal.begin(setting, watched.readings)
                timed = time_runs(
                    work.run,
                    self.duration_s,
                    MIN_RUNS,
                    warmup_s=self.warmup_s,
                    between=between,
                    rate_per_s=setting.rate,
                )
        finally:
            work.close()
        spoilt = (*self.spoilt, *wrong_power_mode(watched, self.demanded))
        return BenchmarkRun(
            setting, timed, self.duration_s, work.lowest, watched, self.idle, None, spoilt
        )

    def spent(self, run: BenchmarkRun, end_to_end: bool, layers: bool) -> LatencyBreakdown:
        median = None if end_to_end else run.timed.work.all.percentile(50)
        session, golden = self.subject.session(run.setting), self.subject.golden
        return time_parts(
            session, golden.faces, self.subject.spec, run.setting.batch, median, layers=layers
        )


def _check(
    batches: Sequence[int] | None,
    threads: Sequence[int],
    streams: Sequence[int],
    rates: Sequence[int],
    duration_s: float,
) -> None:
    for what, option, values in (
        ("batch sizes", "--batch 1,8", (1,) if batches is None else batches),
        ("threads", "--threads 1,2", threads or (1,)),
        ("streams", "--streams 1,2", streams),
        ("rates", "--rate 20,50", rates or (1,)),
    ):
        if not values or min(values) < 1:
            raise UsageError(f"{what} are 1 or more, found {list(values)}", option)
    if rates and (batches is None or tuple(streams) != (1,)):
        raise UsageError(
            "queries at random are answered by one session, in batches of a given size",
            "leave out --streams and --batch auto",
        )
    if not 0 < duration_s < float("inf"):
        raise UsageError(f"the duration is above 0 seconds, found {duration_s}", "--duration 10")


def _write(bundle: Bundle, found: BenchmarkResult) -> None:
    settings = [run.setting for run in found.runs]
    options = {
        "engine": found.engine,
        "backend": found.backend,
        "batch": list(dict.fromkeys(setting.batch for setting in settings)),
    }
    with transaction(bundle.root, "benchmark", options) as draft:
        path = draft.path(f"reports/benchmark-{found.engine}.json", "benchmark")
        path.write_text(json.dumps(found.to_json(), indent=1) + "\n", encoding="utf-8")
        draft.summary.update(verdict="VALID" if found.valid else "INVALID")
