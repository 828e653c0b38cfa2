"""Gates of `benchmark`: latency, throughput and energy of each run."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..evaluation.gates import PASSED, Gate, ceiling_gate, floor_gate, gate_reasons, overall_verdict
from ..evaluation.limits import BenchmarkLimits
from .result import BenchmarkResult, BenchmarkRun

_LONGER = "lengthen --duration"


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
    label = run.setting.label
    invalid = f"the run is INVALID: {'; '.join(run.reasons)}" if run.reasons else ""
    cure = "repeat it on a quiet machine" if invalid else _LONGER
    if limits.max_p99_ms is not None:
        p99 = run.latency_ms["p99"]
        reason = invalid or ("too few runs show a 99th percentile" if p99 is None else "")
        ends = run.interval_95_ms.get("p99")
        yield ceiling_gate(f"p99 ms, {label}", p99, limits.max_p99_ms, reason, ends, cure)
    if limits.min_throughput is not None:
        name = f"faces per second, {label}"
        yield floor_gate(name, run.throughput_per_s, limits.min_throughput, invalid, None, cure)
    if limits.max_energy_mj is not None:
        energy = run.energy.mj_per_face if run.energy else None
        reason = "no sensor of this machine shows its power" if energy is None else invalid
        cure = "run it on a device with a power sensor (`fr-edge doctor`)" if not energy else cure
        name = f"mJ per face, {label}"
        yield ceiling_gate(name, energy, limits.max_energy_mj, reason, None, cure)
