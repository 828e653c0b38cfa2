"""`benchmark`: latency and throughput of an engine on this machine, each figure with a verdict.

One caller runs one batch after the other (MLPerf's SingleStream), several at the same time
(MultiStream), or queries arrive at random (Server).
"""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ...bundle.bundle import open_bundle, transaction
from ...bundle.manifest import Bundle
from ...bundle.provenance import digest_images
from ...documents import encode_json, read_json
from ...graph.load import fixed_batch
from ...metrics.rates import measure_drift
from ...onnx_file import read_onnx
from ...progress import Track, silent
from ..engine_record import session_record
from ..evaluation.limits import (
    POLICY_NAME,
    BenchmarkLimits,
    kept_policy,
    merged_policy,
    min_cosine_floor,
    with_policy_signatures,
)
from ..evaluation.result import check_unchanged, opened_file
from ..fingerprint import SOURCES
from ..machine.device import describe_device
from ..machine.monitor import SensorTrace, read_board, rest, watch
from ..machine.nvml import gpu_processes
from ..machine.sensors import Reading, clock_settings, denied
from ..machine.tegrastats import power_mode as current_power_mode
from ..session import session_provenance
from .breakdown import measure_breakdown
from .conditions import other_gpu_load, power_mode_problems, required_power_mode
from .result import (
    MIN_RUNS,
    BenchmarkInterrupted,
    BenchmarkResult,
    BenchmarkRun,
    judge_performance,
    saturation_batch,
    summarize_run,
)
from .setting import Setting, all_settings, check_options
from .soak_log import SoakLog
from .timing import time_runs
from .workload import EngineUnderTest

logger = logging.getLogger(__name__)

_DURATION_S = 10.0
_ENERGY_DURATION_S = (
    40.0  # power is read twice a second; its interval needs 32 readings, or twice that
)


def benchmark(
    bundle: Bundle | str | Path,
    engine: str = "auto",
    backend: str = "auto",
    batches: Sequence[int] | None = (1,),
    duration_s: float | None = None,
    warmup_s: float = 5.0,
    track: Track = silent,
    *,
    threads: Sequence[int] = (),
    streams: Sequence[int] = (1,),
    rates: Sequence[int] = (),
    end_to_end: bool = False,
    layers: bool = False,
    power_mode: str | None = None,
    policy: Path | None = None,
    log: Path | None = None,
    before_storing: Callable[[BenchmarkResult], None] = lambda result: None,
    **limits: float | None,
) -> BenchmarkResult:
    """Time an engine on the golden faces and write its report, `reports/benchmark-...json`.

    Every batch size runs with every number of threads and of streams. Figures that conditions
    spoiled, or of an engine whose golden embeddings fail the verification floor, are marked INVALID
    with the reasons; that does not raise.

    Args:
        bundle: An open bundle or its folder.
        engine: "fp32", "fp16", "fp8", "int8" or "auto", as `open_session`.
        backend: As `open_session`.
        batches: Batch sizes; None doubles the size from 1 on, to 32 at most, until that brings less
            than 10 % more faces per second.
        duration_s: Of each setting, seconds; longer where that holds too few runs. None for 10, or
            40 where `max_energy_mj` is asked of a machine that reports its power: fewer readings
            show no interval.
        warmup_s: Longest warm-up of each setting, seconds.
        track: Shows progress.
        threads: onnxruntime's; empty for one per core.
        streams: Sessions that run at the same time.
        rates: Queries per second, of a batch each, that arrive at random and are answered in turn
            by one session; latency then counts from when a query was due.
        end_to_end: Whether decoding and preprocessing are timed too.
        layers: Whether to add the backend's profile of the layers.
        power_mode: Runs in another mode are INVALID, as nvpmodel names it; by default the one that
            the bundle's policy requires in [benchmark].
        policy: A TOML file with limits in [benchmark], which the bundle keeps.
        log: A file that gets a line of JSON every ten seconds.
        before_storing: Called with the result before it is written into the bundle, which may be
            locked or read-only.
        limits: Gates of each run, by the names of `BenchmarkLimits`: `max_p99_ms=8`. Those left out
            come from `policy`, else from the bundle's policy.

    Returns:
        The figures, the verdicts and the reasons.

    Raises:
        UsageError: Impossible options.
        BundleError: The engine was not built, or a file was changed.
        DataError: The policy cannot be read.
        MachineError: The backend cannot run here, or the bundle cannot be written.
        ModelError: A golden embedding is zero or not finite.
        BenchmarkInterrupted: Ctrl-C came; what had run is written, and is its `result`.
    """
    check_options(
        batches, threads, streams, rates, _DURATION_S if duration_s is None else duration_s
    )
    asked = BenchmarkLimits(**limits)
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    bundle = with_policy_signatures(bundle, policy)
    required_mode = power_mode or required_power_mode(bundle, policy)
    board, processes = read_board(), gpu_processes()  # before a session of ours is there
    subject = EngineUnderTest(bundle, engine, backend, end_to_end=end_to_end)
    session, golden = subject.first, subject.golden
    gated = merged_policy(asked, bundle, policy, session.precision)
    if duration_s is None:
        duration_s = _default_duration(gated, board)
    cosine = measure_drift(golden.embeddings, subject.embeddings, golden.keys).min
    problems = _golden_problems(cosine, min_cosine_floor(bundle, policy, session.precision))
    if (record := session_record(bundle, session)) and (problem := record.problem()):
        problems += (problem,)
    if not subject.on_cpu:
        problems += other_gpu_load(board, processes)
    elif session.precision == "fp8":
        problems += (_EMULATED,)
    one_face = session.largest_batch == 1 and _takes_one_face(bundle)
    settings = all_settings(
        batches, threads, streams, rates, session.largest_batch, one_face=one_face
    )
    runs: list[BenchmarkRun] = []
    interrupted = False
    with SoakLog(log) if log else nullcontext() as soak_log:
        idle = rest(duration_s)
        bench = _Bench(subject, duration_s, warmup_s, idle, soak_log, required_mode, problems)
        try:
            for setting in track(settings, "timing", len(settings)):
                run, stopped = bench.time(setting)
                runs.append(run)
                if stopped:
                    raise KeyboardInterrupt
                parts = bench.breakdown(setting, run, bundle, layers)
                runs[-1] = replace(run, **parts)
                if batches is None and saturation_batch(runs) is not None:
                    break
        except KeyboardInterrupt:
            if not runs:
                raise
            interrupted = True
    result = BenchmarkResult(
        engine=session.precision,
        backend=session.backend,
        artifact=opened_file(session),
        verdict="VALID" if all(run.verdict == "VALID" for run in runs) else "INVALID",
        runs=tuple(runs),
        golden_min_cosine=cosine,
        timed=_what_is_timed(subject),
        saturation_batch=saturation_batch(runs),
        interrupted=interrupted,
        time=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        device=describe_machine(),
        provenance=session_provenance(
            bundle,
            session,
            images=digest_images(golden.faces),
            also=("golden.npz", POLICY_NAME),
            instead={POLICY_NAME: policy},
        ),
    )
    result = judge_performance(gated, result)
    timed = (duration_s, settings, end_to_end, required_mode)
    result = replace(result, report=_report_name(bundle, result, timed))
    try:
        before_storing(result)
    finally:
        _write(bundle, result, kept_policy(policy))
    if interrupted:
        raise BenchmarkInterrupted(result)
    return result


_EMULATED = "FP8 is emulated on this CPU: how long that takes says nothing about a GPU"


@dataclass(frozen=True)
class _Bench:
    subject: EngineUnderTest
    duration_s: float
    warmup_s: float
    idle: SensorTrace | None
    soak_log: SoakLog | None
    required_mode: str | None
    problems: tuple[str, ...]

    def time(self, setting: Setting) -> tuple[BenchmarkRun, bool]:
        """One setting's run, and whether Ctrl-C ended it."""
        workload, soak_log = self.subject.workload(setting), self.soak_log

        def between(index: int, ns: int) -> None:
            workload.check(index)
            if soak_log:
                soak_log.add(ns)

        try:
            with watch(duration_s=self.duration_s) as trace:
                if soak_log:
                    soak_log.begin(setting, trace.readings)
                timing = time_runs(
                    workload.run,
                    self.duration_s,
                    MIN_RUNS,
                    warmup_s=self.warmup_s,
                    between=between,
                    rate_per_s=setting.rate,
                )
        finally:
            workload.close()
        trace.load_s = timing.span_s
        problems = (*self.problems, *power_mode_problems(trace, self.required_mode))
        cosine = workload.min_cosine
        run = summarize_run(setting, timing, self.duration_s, cosine, trace, self.idle, problems)
        return run, timing.interrupted

    def breakdown(
        self, setting: Setting, run: BenchmarkRun, bundle: Bundle, layers: bool
    ) -> dict[str, Any]:
        """The fields of `BenchmarkRun` that say where the time goes."""
        embed_ms = run.load.work_p50_ms if run.load else run.latency_ms["p50"]
        breakdown = measure_breakdown(
            self.subject.session(setting),
            self.subject.golden.faces,
            bundle.spec,
            setting.batch,
            None if self.subject.end_to_end else embed_ms,
            layers=layers,
        )
        return vars(breakdown)


def _default_duration(limits: BenchmarkLimits, board: Reading) -> float:
    if limits.max_energy_mj is None or not (board.energy_uj or board.total_mw()):
        return _DURATION_S
    logger.info(
        "each line is timed for %g s, not %g: the gate on energy needs the readings of power",
        _ENERGY_DURATION_S,
        _DURATION_S,
    )
    return _ENERGY_DURATION_S


def _takes_one_face(bundle: Bundle) -> bool:
    """Whether no engine of this bundle takes more than one face, as export found."""
    name = SOURCES["fp32"]
    return name in bundle and fixed_batch(read_onnx(bundle.file(name))) == 1


def _golden_problems(cosine: float, floor: float) -> tuple[str, ...]:
    if cosine >= floor:
        return ()
    return (
        f"the engine is not the original network: golden min cosine {cosine:.4f}, at least"
        f" {floor:g}; `fr-edge verify` shows more",
    )


def _what_is_timed(subject: EngineUnderTest) -> str:
    if subject.end_to_end:
        return "decoding, preprocessing and embedding, from JPEG bytes to embeddings on the host"
    if subject.first.uint8_input:
        return (
            "embedding with the input contract in the engine, from pixels to embeddings on the host"
        )
    return "embedding, from preprocessed input to embeddings on the host"


def describe_machine() -> dict[str, Any]:
    """The machine as benchmarks record it: device, power mode, clocks, sensors without permission."""
    return {
        **asdict(describe_device()),
        "power_mode": current_power_mode(),
        "clocks": {unit: asdict(clocks) for unit, clocks in clock_settings().items()},
        "sensors_denied": list(denied()),
    }


def _report_name(bundle: Bundle, result: BenchmarkResult, timed: object) -> str:
    """A name for the engine's bytes, the machine and the settings.

    Only an INVALID run has another name than the VALID one that the bundle holds already.
    """
    provenance = result.provenance
    evidence = (result.artifact, provenance.device if provenance else {}, timed)
    digest = hashlib.sha256(encode_json(evidence, indent=0)).hexdigest()[:8]
    name = f"reports/benchmark-{result.engine}-{result.backend}-{digest}"
    if result.verdict != "VALID" and f"{name}.json" in bundle:
        earlier = read_json(bundle.path(f"{name}.json"), dict[str, Any])
        if earlier.get("verdict") == "VALID":
            return f"{name}-invalid.json"
    return f"{name}.json"


def _write(bundle: Bundle, result: BenchmarkResult, files: Mapping[str, bytes]) -> None:
    options = {
        "engine": result.engine,
        "backend": result.backend,
        "batch": list(dict.fromkeys(run.batch for run in result.runs)),
    }
    of = tuple(result.provenance.files) if result.provenance else ()
    with transaction(bundle, "benchmark", options) as change:
        check_unchanged(bundle, result.artifact)
        for name, data in files.items():
            change.path(name, "policy").write_bytes(data)
        if result.verdict == "VALID":
            change.remove(result.report.replace(".json", "-invalid.json"))
        path = change.path(result.report, "benchmark", of=of)
        path.write_bytes(encode_json(result))
        change.summary.update(verdict=result.verdict)
