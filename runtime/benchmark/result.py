"""What a benchmark measured, with the shape of the document in docs/benchmark.schema.json.

Each run has a verdict: INVALID with the reasons when its figures cannot be trusted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..._version import __version__
from ...bundle.provenance import Provenance
from ..evaluation.gates import (
    PASSED,
    Gate,
    VerdictReason,
    ceiling_gate,
    floor_gate,
    gate_reasons,
    overall_verdict,
)
from ..evaluation.limits import BenchmarkLimits
from ..evaluation.result import OpenedFile
from ..machine.energy import FaceEnergy, energy
from ..machine.monitor import SensorTrace, TraceSummary, anomalies, summarize_trace
from .breakdown import LayerShare
from .poisson_load import MAX_BUSY, LoadResult
from .setting import Setting
from .statistics import (
    PERCENTILES,
    Latencies,
    latency_percentile,
    mean_latency_interval,
    percentile_interval,
    percentile_name,
)
from .timing import SEGMENTS, Timing

BENCHMARK_SCHEMA = 2  # raised when a reader of the document would have to change

_CURVE = (0.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99)  # of a plot

MIN_RUNS = 100  # fewer have no 99th percentile
_MIN_DURATION_S = 1.0
_MAX_VARIATION = 0.10  # half the spread of the middle 68 % over the median
_MAX_DRIFT = 0.10  # spread of the medians of ten parts over the median
_MAX_CPU_WAIT = 0.05  # share of the time that the threads waited for a core
_MAX_LATE = 0.05  # of the mean latency, that late queries of the benchmark itself may add
_SAME_COSINE = 0.9999  # of embeddings during and before the runs
_NO_INTERVAL = "no 95 % interval"
_FEW_RUNS = f"{_NO_INTERVAL}: the runs are few, uneven or drift"
_MIN_GAIN = 1.10  # in faces per second, below which a larger batch does not pay


@dataclass(frozen=True)
class LoadSummary:
    """How the engine served queries that arrived at random; a run with a rate has one.

    Attributes:
        achieved_per_s: Queries per second that were answered.
        most_per_s: Queries per second that it could answer without a pause.
        busy: Share of the time in which a query was worked on.
        backlog: Queries that waited when the time was over, one million at most.
        late_mean_ms: How late the benchmark itself sent a query, in the mean.
        work_p50_ms: Median time of a query once begun.
        waiting_mean_ms: Mean time that a query waited behind others.
    """

    achieved_per_s: float
    most_per_s: float
    busy: float
    backlog: int
    late_mean_ms: float
    work_p50_ms: float
    waiting_mean_ms: float


@dataclass(frozen=True)
class BenchmarkRun:
    """One setting of a benchmark; docs/benchmark.schema.json describes every field.

    Fields with a default are missing in reports of earlier versions.

    Attributes:
        verdict: "VALID" or "INVALID".
        reasons: Why the figures cannot be trusted; empty when they can.
        latency_ms: mean, min, max and percentiles by name; None where the runs do not show one.
        interval_95_ms: Percentile by name -> its 95 % interval.
        throughput_interval_95: 95 % interval of `throughput_per_s`; None where the runs show none.
    """

    batch: int
    verdict: str
    latency_ms: Mapping[str, float | None]
    interval_95_ms: Mapping[str, tuple[float, float] | None]
    throughput_per_s: float
    reasons: tuple[str, ...] = ()
    threads: int | None = None
    streams: int = 1
    rate: int | None = None
    runs: int = 0
    duration_s: float = 0.0
    warmup_s: float = 0.0
    variation: float = 0.0
    drift: float = 0.0
    outliers: int = 0
    cpu_wait_share: float | None = None
    min_cosine_during: float | None = None
    quantiles_ms: tuple[tuple[float, float], ...] = ()
    work_over_time_ms: tuple[float, ...] = ()
    load: LoadSummary | None = None
    energy: FaceEnergy | None = None
    board: TraceSummary | None = None
    breakdown_ms: Mapping[str, float] | None = None
    advice: tuple[str, ...] = ()
    layers: tuple[LayerShare, ...] = ()
    throughput_interval_95: tuple[float, float] | None = None

    @property
    def setting(self) -> Setting:
        """What was run."""
        return Setting(self.batch, self.threads, self.streams, self.rate)


@dataclass(frozen=True)
class BenchmarkResult:
    """A benchmark of one engine; docs/benchmark.schema.json describes every field.

    Attributes:
        engine: The precision: "fp32", "fp16", "fp8" or "int8".
        verdict: "VALID" when all runs are.
        runs: One for each setting, in order.
        golden_min_cosine: The lowest cosine of the engine's golden embeddings with the original's.
        artifact: The file that was timed.
        saturation_batch: The batch from which a larger one brings less than 10 % more faces per
            second.
        gates: Limits that were asked for, of each run, with their verdicts.
        gates_verdict: "PASSED", "FAILED" or "CANNOT JUDGE"; None where no limit was asked for.
        passed: Whether that is PASSED; None where no limit was asked for.
        reasons: Why it is not PASSED.
        interrupted: Whether Ctrl-C came before the end.
        time: Of the end, UTC, ISO 8601.
        report: The report's path within the bundle.
    """

    engine: str
    backend: str
    verdict: str
    runs: tuple[BenchmarkRun, ...]
    golden_min_cosine: float | None = None
    artifact: OpenedFile | None = None
    timed: str = ""
    saturation_batch: int | None = None
    gates: tuple[Gate, ...] = ()
    gates_verdict: str | None = None
    passed: bool | None = None
    reasons: tuple[VerdictReason, ...] = ()
    interrupted: bool = False
    time: str = ""
    device: Mapping[str, Any] = field(default_factory=dict)
    report: str = ""
    provenance: Provenance | None = None
    fr_edge: str = __version__
    schema: int = BENCHMARK_SCHEMA


class BenchmarkInterrupted(KeyboardInterrupt):
    """Ctrl-C came while a benchmark ran.

    Attributes:
        result: What had run by then, and was written.
    """

    def __init__(self, result: BenchmarkResult) -> None:
        super().__init__("interrupted")
        self.result = result


def summarize_run(
    setting: Setting,
    timing: Timing,
    duration_s: float,
    min_cosine: float,
    trace: SensorTrace | None = None,
    idle: SensorTrace | None = None,
    problems: Sequence[str] = (),
) -> BenchmarkRun:
    """A run's figures and its verdict.

    Args:
        setting: What was run.
        timing: The latencies.
        duration_s: How long the run should last, seconds.
        min_cosine: Lowest cosine of an embedding during the run with the same face's before it.
        trace: The board's sensors during the run.
        idle: The board's sensors before it.
        problems: What else spoiled the figures.
    """
    latencies, load = timing.latencies, timing.load
    reasons = (*_reasons(timing, duration_s, min_cosine, trace), *problems)
    per_s = load.achieved_per_s if load else 1e3 / latencies.mean_ms
    throughput, ends = setting.faces * per_s, _throughput_ends(setting, timing)
    seconds = setting.faces / throughput
    interval_s = (setting.faces / ends[1], setting.faces / ends[0]) if ends else None
    percentiles = {percentile_name(q): latency_percentile(latencies, q) for q in PERCENTILES}
    return BenchmarkRun(
        batch=setting.batch,
        threads=setting.threads,
        streams=setting.streams,
        rate=setting.rate,
        verdict="INVALID" if reasons else "VALID",
        reasons=reasons,
        latency_ms={
            "mean": latencies.mean_ms,
            **percentiles,
            "min": latencies.min_ms,
            "max": latencies.max_ms,
        },
        interval_95_ms={percentile_name(q): percentile_interval(latencies, q) for q in PERCENTILES},
        throughput_per_s=throughput,
        runs=latencies.count,
        duration_s=duration_s,
        warmup_s=timing.warmup_s,
        variation=timing.variation,
        drift=timing.drift,
        outliers=timing.outliers,
        cpu_wait_share=timing.cpu_wait_share,
        min_cosine_during=min_cosine,
        quantiles_ms=_curve(latencies),
        work_over_time_ms=tuple(part.percentile(50) for part in timing.work.parts(SEGMENTS)),
        load=_summarize_load(load, latencies) if load else None,
        energy=energy(trace, idle, setting.faces, seconds, interval_s) if trace and idle else None,
        board=summarize_trace(trace) if trace else None,
        throughput_interval_95=ends,
    )


def _throughput_ends(setting: Setting, timing: Timing) -> tuple[float, float] | None:
    """Of one batch after the other, from the mean latency; of queries, from their Poisson count."""
    load, count = timing.load, timing.latencies.count
    if load:
        center, half = setting.faces * load.achieved_per_s, 1.96 / count**0.5
        return (center * (1 - half), center * (1 + half)) if count >= MIN_RUNS else None
    ends = mean_latency_interval(timing.latencies)
    return (1e3 * setting.faces / ends[1], 1e3 * setting.faces / ends[0]) if ends else None


def saturation_batch(runs: Sequence[BenchmarkRun]) -> int | None:
    """The batch from which a larger one brings less than 10 % more faces per second.

    Args:
        runs: At least one; those with the first one's threads and streams count.

    Returns:
        Faces; None with fewer than three batch sizes, or where each still brought more.
    """
    first = runs[0]
    alike = [
        run
        for run in runs
        if run.rate is None and (run.threads, run.streams) == (first.threads, first.streams)
    ]
    ordered = sorted(alike, key=lambda run: run.batch)
    if len(ordered) < 3:
        return None
    for smaller, larger in zip(ordered, ordered[1:], strict=False):
        if larger.throughput_per_s < _MIN_GAIN * smaller.throughput_per_s:
            return smaller.batch
    return None


def _curve(latencies: Latencies) -> tuple[tuple[float, float], ...]:
    values = ((q, latency_percentile(latencies, q)) for q in _CURVE)
    return tuple((q, ms) for q, ms in values if ms is not None)


def _summarize_load(load: LoadResult, latencies: Latencies) -> LoadSummary:
    return LoadSummary(
        load.achieved_per_s,
        load.max_per_s,
        load.busy,
        load.backlog,
        load.late_ms,
        load.work.percentile(50),
        latencies.mean_ms - load.work.mean_ms,
    )


def _reasons(
    timing: Timing, duration_s: float, min_cosine: float, trace: SensorTrace | None
) -> Iterator[str]:
    """Why the figures cannot be trusted."""
    count = timing.latencies.count
    if timing.interrupted:
        yield "stopped before its time"
    if duration_s < _MIN_DURATION_S:
        yield f"too short: {duration_s:g} s, at least {_MIN_DURATION_S:g} s"
    if timing.load:
        yield from _load_reasons(timing.latencies, timing.load)
    elif count < MIN_RUNS:
        yield f"too few runs: {count}, p99 needs {MIN_RUNS}; lengthen --duration"
    if timing.work.min_ms <= 0:
        yield "the clock jumped: a run took no time or less"
    if not timing.steady:
        yield f"not steady after {timing.warmup_s:.1f} s of warm-up"
    if timing.variation > _MAX_VARIATION:
        yield f"too noisy: the middle runs vary by {timing.variation:.0%} of the median"
    if timing.drift > _MAX_DRIFT:
        yield f"the speed moved: medians over the run lie {timing.drift:.0%} apart"
    if timing.cpu_wait_share is not None and timing.cpu_wait_share > _MAX_CPU_WAIT:
        yield (
            "other load on the machine: the threads waited for a core "
            f"{timing.cpu_wait_share:.0%} of the time"
        )
    if min_cosine < _SAME_COSINE:
        yield f"embeddings moved during the run: cosine {min_cosine:.4f} with before"
    if trace is not None:
        yield from anomalies(trace, timing.warmup_s)


def _load_reasons(latencies: Latencies, load: LoadResult) -> Iterator[str]:
    needed = MIN_RUNS * latencies.memory
    if load.busy > MAX_BUSY:
        yield (
            f"too many queries: at work {load.busy:.0%} of the time, {load.backlog} waiting at the"
            f" end; without a pause it answers {round(load.max_per_s, 1):.7g} a second"
        )
    elif latencies.count < needed:
        yield (
            f"too few queries: {latencies.count}, p99 needs {needed:.0f} where an engine is at work"
            f" {load.busy:.0%} of the time; lengthen --duration"
        )
    if load.late_ms > _MAX_LATE * latencies.mean_ms:
        yield (
            f"the queries were sent late, by {load.late_ms:.3f} ms in the mean, of"
            f" {latencies.mean_ms:.3f} ms latency"
        )


def judge_performance(limits: BenchmarkLimits, result: BenchmarkResult) -> BenchmarkResult:
    """A benchmark with the gates that were asked for and their verdict.

    Figures of an INVALID run cannot be judged.

    Args:
        limits: What was asked for.
        result: What was measured.
    """
    gates = [gate for run in result.runs for gate in _gates(limits, run)]
    if not gates:
        return result
    verdict = overall_verdict(gate.verdict for gate in gates)
    return replace(
        result,
        gates=tuple(gates),
        gates_verdict=verdict,
        passed=verdict == PASSED,
        reasons=tuple(gate_reasons(gates)),
    )


def skipped_gates(result: BenchmarkResult) -> Sequence[str]:
    """What was measured in no run, in words.

    Args:
        result: What was measured.
    """
    skipped = []
    if not any(run.energy for run in result.runs):
        skipped.append("energy: this machine has no sensor that was readable")
    if all(run.latency_ms["p99"] is None for run in result.runs):
        skipped.append("p99: too few runs")
    return skipped


def _gates(limits: BenchmarkLimits, run: BenchmarkRun) -> Iterator[Gate]:
    """Without an interval no gate passes; p99 fails by its value then."""
    label = run.setting.label
    invalid = f"the run is INVALID: {'; '.join(run.reasons)}" if run.reasons else ""
    cure = "repeat it on a quiet machine" if invalid else "lengthen --duration"
    if limits.max_p99_ms is not None:
        p99, ends = run.latency_ms["p99"], run.interval_95_ms.get("p99")
        shown = ends or (p99 is not None and p99 > limits.max_p99_ms)
        reason = invalid or ("" if shown else _FEW_RUNS)
        yield ceiling_gate(f"p99 ms, {label}", p99, limits.max_p99_ms, reason, ends, cure)
    if limits.min_throughput is not None:
        ends = run.throughput_interval_95
        reason = invalid or ("" if ends else _FEW_RUNS)
        name, value = f"faces per second, {label}", run.throughput_per_s
        yield floor_gate(name, value, limits.min_throughput, reason, ends, cure)
    if limits.max_energy_mj is not None:
        energy, name = run.energy, f"mJ per face, {label}"
        reason = "no sensor of this machine shows its power" if energy is None else invalid
        cure = cure if energy else "run it on a device with a power sensor (`fr-edge doctor`)"
        drawn = energy.mj_per_face if energy else None
        ends = energy.interval_95_mj if energy else None
        if energy and not ends and not invalid:
            reason = f"{_NO_INTERVAL}: {energy.samples} readings of power are few, uneven or drift"
            cure = "lengthen --duration to 40 s or more"
        yield ceiling_gate(name, drawn, limits.max_energy_mj, reason, ends, cure)
