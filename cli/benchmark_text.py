"""A benchmark's document as people read it: a text that begins with the verdict, a Markdown table."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..runtime.benchmark.result import run_label
from .output import table

_NOT_TOLD = "-"


def as_text(found: Mapping[str, Any]) -> str:
    """Can the figures be believed, then the figures, then where the time goes."""
    device = found["device"]
    lines = [_verdict(found), *_reasons(found)]
    lines += [f"{found['engine']} on {found['backend']}; {_machine(device)}"]
    lines += [f"timed: {found['timed']}", "", table(_rows(found), _header(found))]
    if found["knee"]:
        lines.append(f"a batch above {found['knee']} brings less than 10 % more faces a second")
    lines += [_served(run) for run in found["runs"] if run["served"]]
    for run in found["runs"]:
        lines += _spent(run)
    if device["sensors_denied"]:
        lines.append(f"no permission for {', '.join(device['sensors_denied'])}: no energy from it")
    return "\n".join(lines)


def as_markdown(found: Mapping[str, Any]) -> str:
    """A table for a README, with what is needed to judge it below."""
    header = _header(found)
    rows = [header, ["---"] * len(header), *_rows(found)]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", f"{_verdict(found)} {_machine(found['device'])}; {found['engine']} on"]
    lines[-1] += f" {found['backend']}; timed: {found['timed']}; fr-edge {found['fr_edge']},"
    lines[-1] += f" {found['time'][:10]}."
    return "\n".join([*lines, *(f"- {reason.strip()}" for reason in _reasons(found))])


def _verdict(found: Mapping[str, Any]) -> str:
    if found["verdict"] == "VALID":
        return "VALID: nothing disturbed the measurement."
    bad = sum(run["verdict"] != "VALID" for run in found["runs"])
    return f"INVALID: {bad} of {len(found['runs'])} lines cannot be believed."


def _reasons(found: Mapping[str, Any]) -> list[str]:
    return [f"  {run_label(run)}: {reason}" for run in found["runs"] for reason in run["reasons"]]


def _machine(device: Mapping[str, Any]) -> str:
    name = device["jetson"] or ", ".join(device["gpu"]) or device["cpu"]
    mode = f", power mode {device['power_mode']}" if device["power_mode"] else ""
    held = [unit for unit, clocks in device["clocks"].items() if clocks["held"]]
    clocks = f", clocks held: {', '.join(held)}" if held else ""
    return f"{name}, {device['cores']} cores{mode}{clocks}"


def _header(found: Mapping[str, Any]) -> list[str]:
    figures = ["p50 ms", "95 % interval", "p90", "p99", "p99.9", "faces/s", "mJ/face"]
    return ["batch", *_columns(found), *figures, "verdict"]


def _columns(found: Mapping[str, Any]) -> list[str]:
    names = []
    if any(run["threads"] for run in found["runs"]):
        names.append("threads")
    if any(run["streams"] > 1 for run in found["runs"]):
        names.append("streams")
    if any(run["rate"] for run in found["runs"]):
        names.append("rate")
    return names


def _rows(found: Mapping[str, Any]) -> list[list[str]]:
    return [_row(run, _columns(found)) for run in found["runs"]]


def _row(run: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    latency, ends, energy = run["latency_ms"], run["interval_95_ms"]["p50"], run["energy"]
    return [
        str(run["batch"]),
        *(str(run[name] or "all") for name in columns),
        _ms(latency["p50"]),
        f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else _NOT_TOLD,
        *(_ms(latency[name]) for name in ("p90", "p99", "p99.9")),
        f"{run['throughput_per_s']:.1f}",
        f"{energy['mj_per_face']:.2f}" if energy else _NOT_TOLD,
        run["verdict"],
    ]


def _ms(value: float | None) -> str:
    return _NOT_TOLD if value is None else f"{value:.3f}"


def _served(run: Mapping[str, Any]) -> str:
    served = run["served"]
    return (
        f"{run_label(run)}: at work {100 * served['busy']:.0f} % of the time; a query takes"
        f" {served['work_p50_ms']:.3f} ms once begun and waits {served['waiting_mean_ms']:.3f} ms in"
        f" the mean; latency counts from when it came"
    )


def _spent(run: Mapping[str, Any]) -> Sequence[str]:
    if "spent_ms" not in run:
        return []
    parts = ", ".join(f"{name} {value:.3f}" for name, value in run["spent_ms"].items())
    lines = ["", f"{run_label(run)}, where the time goes, ms: {parts}"]
    lines += [f"  {advice}" for advice in run["advice"]]
    if run["layers"]:
        rows = [
            [layer["name"], layer["kind"], f"{layer['ms']:.3f}", f"{100 * layer['share']:.1f} %"]
            for layer in run["layers"]
        ]
        lines.append(table(rows, ("layer", "kind", "ms", "share")))
    return lines
