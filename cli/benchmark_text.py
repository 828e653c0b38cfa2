"""A benchmark's result as people read it: a text that begins with the verdict, a Markdown table."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .output import table
from .verdict_text import artifact_text, gates_text, reason_lines

if TYPE_CHECKING:
    from ..runtime.benchmark.result import BenchmarkResult, BenchmarkRun, LoadSummary

_NOT_MEASURED = "-"


def as_text(result: "BenchmarkResult") -> str:
    """Whether the figures can be trusted, the figures, and where the time goes."""
    lines = [_verdict(result), *_reasons(result)]
    lines += [f"{result.engine} on {result.backend}; {_machine(result.device)}"]
    lines += [artifact_text(result.artifact, result.backend).replace("judged:", "timed:", 1)]
    lines += [f"  {result.timed}", "", table(_rows(result), _header(result))]
    if result.saturation_batch:
        lines.append(
            f"a batch above {result.saturation_batch} brings less than 10 % more faces per second"
        )
    if result.gates:
        lines += [gates_text(result.gates), *reason_lines(result.reasons)]
        lines += [str(result.gates_verdict)]
    for run in result.runs:
        lines += _load(run.setting.label, run.load) if run.load else []
    for run in result.runs:
        lines += _energy(run)
    for run in result.runs:
        lines += _breakdown(run)
    if denied := result.device.get("sensors_denied"):
        lines.append(f"no permission for {', '.join(denied)}: no energy from it")
    return "\n".join(lines)


def as_markdown(result: "BenchmarkResult") -> str:
    """A table for a README, with what is needed to judge it below."""
    header = _header(result)
    rows = [header, ["---"] * len(header), *_rows(result)]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", f"{_verdict(result)} {_machine(result.device)}; {result.engine} on"]
    lines[-1] += f" {result.backend}; timed: {result.timed}; fr-edge {result.fr_edge},"
    lines[-1] += f" {result.time[:10]}."
    return "\n".join([*lines, *(f"- {reason.strip()}" for reason in _reasons(result))])


def _verdict(result: "BenchmarkResult") -> str:
    if result.verdict == "VALID":
        return "VALID: nothing disturbed the measurement."
    bad = sum(run.verdict != "VALID" for run in result.runs)
    return f"INVALID: {bad} of {len(result.runs)} lines cannot be trusted."


def _reasons(result: "BenchmarkResult") -> list[str]:
    return [f"  {run.setting.label}: {reason}" for run in result.runs for reason in run.reasons]


def _machine(device: Mapping[str, Any]) -> str:
    name = device["jetson"] or ", ".join(device["gpu"]) or device["cpu"]
    mode = f", power mode {device['power_mode']}" if device["power_mode"] else ""
    fixed = [unit for unit, clocks in device["clocks"].items() if clocks["held"]]
    clocks = f", clocks held: {', '.join(fixed)}" if fixed else ""
    return f"{name}, {device['cores']} cores{mode}{clocks}"


def _header(result: "BenchmarkResult") -> list[str]:
    figures = ["p50 ms", "95 % interval", "p90", "p99", "p99.9", "faces/s", "mJ/face"]
    return ["batch", *_columns(result), *figures, "verdict"]


def _columns(result: "BenchmarkResult") -> list[str]:
    names = []
    if any(run.threads for run in result.runs):
        names.append("threads")
    if any(run.streams > 1 for run in result.runs):
        names.append("streams")
    if any(run.rate for run in result.runs):
        names.append("rate")
    return names


def _rows(result: "BenchmarkResult") -> list[list[str]]:
    return [_row(run, _columns(result)) for run in result.runs]


def _row(run: "BenchmarkRun", columns: Sequence[str]) -> list[str]:
    ends = run.interval_95_ms.get("p50")
    return [
        str(run.batch),
        *(str(getattr(run, name) or "all") for name in columns),
        _ms(run.latency_ms["p50"]),
        f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else _NOT_MEASURED,
        *(_ms(run.latency_ms[name]) for name in ("p90", "p99", "p99.9")),
        f"{run.throughput_per_s:.1f}",
        f"{run.energy.mj_per_face:.2f}" if run.energy else _NOT_MEASURED,
        run.verdict,
    ]


def _ms(value: float | None) -> str:
    return _NOT_MEASURED if value is None else f"{value:.3f}"


def _load(label: str, load: "LoadSummary") -> list[str]:
    return [
        f"{label}: at work {100 * load.busy:.0f} % of the time; a query takes"
        f" {load.work_p50_ms:.3f} ms once begun and waits {load.waiting_mean_ms:.3f} ms in the"
        " mean; latency counts from when it was due"
    ]


def _energy(run: "BenchmarkRun") -> list[str]:
    energy = run.energy
    if energy is None:
        return []
    ends = energy.interval_95_mj
    between = f" ({ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
    return [
        f"{run.setting.label}: {energy.mj_per_face:.2f}{between} mJ per face above rest;"
        f" {energy.rail} drew {energy.power_mw:.0f} mW, at rest {energy.idle_mw:.0f} mW"
    ]


def _breakdown(run: "BenchmarkRun") -> Sequence[str]:
    if run.breakdown_ms is None:
        return []
    parts = ", ".join(f"{name} {value:.3f}" for name, value in run.breakdown_ms.items())
    lines = ["", f"{run.setting.label}, where the time goes, ms: {parts}"]
    lines += [f"  {advice}" for advice in run.advice]
    if run.layers:
        rows = [
            [layer.name, layer.kind, f"{layer.ms:.3f}", f"{100 * layer.share:.1f} %"]
            for layer in run.layers
        ]
        lines.append(table(rows, ("layer", "kind", "ms", "share")))
    return lines
