"""`fr-edge compare`: two bundles or two reports, side by side."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .command import define_command
from .output import Output, one_line, table

if TYPE_CHECKING:
    from ..runtime.evaluation.compare import CompareResult


def fraction(ctx: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """`5%` or `0.05`."""
    if text is None:
        return None
    try:
        value = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise click.BadParameter(f"expected 5% or 0.05, found {text!r}") from error
    return value


@define_command("compare", example="fr-edge compare mine.bundle other.bundle")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--max-regression", metavar="5%", callback=fraction, help="Gate: latency's rise.")
def command(output: Output, first: str, second: str, max_regression: float | None) -> None:
    """Compare two bundles, or two reports.

    A and B are bundles, or JSON files of the same kind: what changed, and whether it is more than
    chance. Exit code 1 when a gate fails.
    """
    from ..documents import to_builtins
    from ..runtime.evaluation.compare import compare

    result = compare(Path(first), Path(second), max_regression)
    output.result(to_builtins(result), changes_text(result))
    if not result.passed:
        output.fail_gate(f"slower than {first} by more than allowed")


def changes_text(result: "CompareResult") -> str:
    """The table of changes."""
    rows = [
        [
            change.name,
            _figure(change.first, change.first_interval_95),
            _figure(change.second, change.second_interval_95),
            f"{change.difference:+.6g}",
            f"{100 * change.relative:+.1f} %",
            change.verdict,
        ]
        for change in result.changes
    ]
    lines = [f"differs: {one_line(text)}" for text in result.differences]
    lines.append(table(rows, ("figure", "A, 95 %", "B, 95 %", "B - A", "change", "verdict")))
    lines += [
        f"{'pass' if gate.passed else 'FAIL'}  {gate.name}: {gate.value:g}" for gate in result.gates
    ]
    return "\n".join(lines)


def _figure(value: float, interval: tuple[float, float] | None) -> str:
    """`0.9837 (0.958 to 1)`"""
    return f"{value:g}" + (f" ({interval[0]:.4g} to {interval[1]:.4g})" if interval else "")
