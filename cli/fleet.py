"""`fr-edge fleet`: many boards at once, through Ansible, and their evidence as one verdict."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .command import HelpPageGroup, define_command
from .output import Output, table

if TYPE_CHECKING:
    from ..fleet.fleet_report import FleetReport

_SHOWN = 40  # boards that a terminal shows; the page has all


@define_command(
    "fleet",
    cls=HelpPageGroup,
    example="fr-edge fleet report evidence",
)
def command(output: Output) -> None:
    """Roll a bundle out to many boards, and merge what they show.

    Ansible, with your own inventory, does the work on the boards; the same playbooks run by plain
    `ansible-playbook` too (docs/fleet.md).
    """


assert isinstance(command, click.Group)


@define_command("report", example="fr-edge fleet report evidence")
@click.argument("folder", metavar="DIR")
def report_command(output: Output, folder: str) -> None:
    """Merge the evidence of many boards into one verdict.

    DIR holds a folder for each board with the JSON files that `accept`, `doctor`, `verify`,
    `evaluate` and `benchmark` wrote there. Writes fleet.html, fleet-report.json and fleet-report.xml
    (JUnit) into DIR. Boards of one kind are compared: another model, other embeddings, another
    speed, power mode or heat is named. Exit code 1 when a board is not PASSED.
    """
    from ..documents import to_builtins
    from ..fleet.fleet_report import merge_evidence, write_fleet_report

    report = merge_evidence(Path(folder), output.track)
    files = write_fleet_report(report, Path(folder))
    text = f"{fleet_text(report)}\n\n{', '.join(map(str, files))}"
    output.result(to_builtins(report), text)
    fail_unless_passed(output, report)


command.add_command(report_command)


def fleet_text(report: "FleetReport") -> str:
    """Kinds, and the boards that need attention, for the terminal."""
    from ..fleet.board_evidence import reason_text

    head = ("kind", "JetPack", "TensorRT", "engine", "boards", "passed", "p50 ms", "p99 ms", "mJ")
    rows = [
        [
            *(g.kind or "unknown", g.jetpack or "-", g.tensorrt or "-"),
            f"{g.precision} on {g.backend}",
            *(str(g.boards), str(g.passed)),
            *(_number(g.p50_ms, 3), _number(g.p99_ms, 3), _number(g.energy_mj, 2)),
        ]
        for g in report.groups
    ]
    lines = [table(rows, head), ""] if rows else []
    troubled = [b for b in report.boards if b.verdict != "PASSED" or b.outliers]
    for board in troubled[:_SHOWN]:
        why, cure = reason_text(board)
        notes = [why] if why else []
        notes += [text for text in board.outliers if text not in why]
        lines.append(f"{board.board}: {board.verdict}: {'; '.join(notes)}")
        lines += [f"  cure: {cure}"] if cure else []
    if len(troubled) > _SHOWN:
        lines.append(f"and {len(troubled) - _SHOWN} more, which the page lists")
    counts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(report.counts.items()))
    return "\n".join([*lines, f"{report.verdict}: of {len(report.boards)} boards {counts}"])


def fail_unless_passed(output: Output, report: "FleetReport") -> None:
    """End with exit code 1 when a board is not PASSED."""
    bad = [board.board for board in report.boards if board.verdict != "PASSED"]
    if bad:
        more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        output.fail_gate(f"not PASSED: {', '.join(bad[:_SHOWN])}{more}")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
