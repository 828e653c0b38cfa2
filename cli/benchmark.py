"""`fr-edge benchmark`: latency and throughput of an engine on this machine, or INVALID."""

from pathlib import Path
from typing import Any

import click

from . import options
from .compare import changes_text, fraction
from .output import Output, table
from .output import command as make


def _batches(ctx: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"expected numbers from 1 up, such as 1,8; found {text!r}")
    return tuple(int(part) for part in parts)


@make("benchmark")
@options.bundle
@options.engine()
@options.backend
@click.option(
    "--batch", "batches", default="1", show_default=True, metavar="N,...", callback=_batches
)
@click.option("--duration", default=10.0, show_default=True, metavar="S", help="Per batch size.")
@click.option("--against", metavar="FILE", help="Compare with an earlier benchmark's JSON.")
@click.option(
    "--max-regression", metavar="5%", callback=fraction, help="Gate: latency's rise over --against."
)
@click.option("--allow-invalid", is_flag=True, help="Exit 0 even when a figure is INVALID.")
def command(
    output: Output,
    bundle: str,
    engine: str,
    backend: str,
    batches: tuple[int, ...],
    duration: float,
    against: str | None,
    max_regression: float | None,
    allow_invalid: bool,
) -> None:
    """Time an engine, and say if the figure holds.

    Percentiles of latency, and throughput.
    A run is INVALID when it was too short, too noisy or disturbed, and exits 1.
    """
    from ..runtime.bench.benchmark import benchmark
    from ..runtime.compare import compare

    if max_regression is not None and not against:
        raise click.UsageError("--max-regression needs --against FILE")

    found = benchmark(
        bundle,
        engine,
        backend,
        batches=batches,
        duration_s=duration,
        track=output.track,
    )
    document = found.to_json()
    lines, slower = [_text(bundle, document)], False
    if against:
        report = Path(bundle) / "reports" / f"benchmark-{document['engine']}.json"
        compared = compare(Path(against), report, max_regression)
        document["against"] = compared.to_json()
        lines += ["", f"A is {against}, B this run", changes_text(document["against"])]
        slower = not compared.passed
    output.result(document, "\n".join(lines))
    if slower:
        output.fail_gate(f"slower than {against} by more than allowed")
    invalid = [run["batch"] for run in document["runs"] if run["verdict"] != "VALID"]
    if invalid and not allow_invalid:
        batch = ", ".join(map(str, invalid))
        output.fail_gate(f"INVALID at batch {batch}; --allow-invalid exits 0 all the same")


def _text(bundle: str, found: dict[str, Any]) -> str:
    lines = [f"{bundle}: {found['engine']} on {found['backend']}"]
    rows = []
    for run in found["runs"]:
        latency = run["latency_ms"]
        figures = [f"{latency[key]:.3f}" for key in ("p50", "p90", "p95", "p99")]
        rows.append([str(run["batch"]), *figures, f"{run['throughput_per_s']:.1f}", run["verdict"]])
    lines.append(table(rows, ("batch", "p50 ms", "p90", "p95", "p99", "faces/s", "verdict")))
    for run in found["runs"]:
        lines += [f"  batch {run['batch']}: {reason}" for reason in run["reasons"]]
    return "\n".join(lines)
