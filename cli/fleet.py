"""`fr-edge fleet`: many boards at once, through Ansible, and their evidence as one verdict."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from . import options
from .command import HelpPageGroup, define_command
from .output import Output, table

if TYPE_CHECKING:
    from ..fleet.board_evidence import BoardEvidence
    from ..fleet.fleet_report import FleetReport

Body = TypeVar("Body", bound=Callable[..., Any])

CHECK, ROLL_OUT = "fleet-check.json", "fleet.json"  # as fleet.board_evidence names them
ROLL_BACK = "fleet-roll-back.json"
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


def _fleet_options(body: Body) -> Body:
    """Inventory, folder of the evidence, and what else Ansible takes."""
    body = click.argument("ansible", nargs=-1, type=click.UNPROCESSED, metavar="[-- ANSIBLE...]")(
        body
    )
    body = click.option(
        "--out",
        default="fleet",
        show_default=True,
        metavar="DIR",
        help="Gather the evidence here, one folder for each board.",
    )(body)
    return click.option(
        "-i",
        "--inventory",
        metavar="FILE",
        help="Your boards, as Ansible lists them; by default as Ansible is set up.",
    )(body)


@define_command("check", example="fr-edge fleet check -i boards.yml")
@_fleet_options
def check_command(
    output: Output, inventory: str | None, out: str, ansible: tuple[str, ...]
) -> None:
    """Show what each board is and what engines it will take, side by side, and what is in the way.

    The latter is what `fr-edge targets` says of the board with the TensorRT that it has. Changes nothing on the boards. What follows `--` goes to ansible-playbook: --limit, --forks,
    --ask-pass. Exit code 1 when a board does not answer or cannot take a roll-out.
    """
    from .fleet_playbook import run_playbook

    folder = _folder(out)
    run_playbook(output, "check", folder, inventory, {}, ansible)
    _print_boards(output, folder, CHECK)


@define_command(
    "roll-out", example="fr-edge fleet roll-out mine.bundle -i boards.yml --sign maker.key"
)
@options.bundle
@_fleet_options
@click.option(
    "--engine",
    "precisions",
    multiple=True,
    type=click.Choice(["fp32", "fp16", "fp8", "int8"]),
    help="Build, verify and time this engine; may be repeated.  [default: int8]",
)
@click.option(
    "--serial",
    default="1,10%,100%",
    show_default=True,
    metavar="N,N%,...",
    help="Boards at a time; a batch with a verdict that is not PASSED is the last.",
)
@click.option("--policy", metavar="FILE.toml", help="Limits of verification, p99 and energy.")
@options.sign(what="Sign the pack with this ed25519 private key")
@options.trust
@click.option("--allow-unsigned", is_flag=True, help="Let boards take a pack that is not signed.")
@click.option("--no-accept", is_flag=True, help="Leave out `fr-edge accept`, which takes minutes.")
def roll_out_command(
    output: Output,
    bundle: str,
    inventory: str | None,
    out: str,
    precisions: tuple[str, ...],
    serial: str,
    policy: str | None,
    sign: str | None,
    trust: tuple[str, ...],
    allow_unsigned: bool,
    no_accept: bool,
    ansible: tuple[str, ...],
) -> None:
    """Bring a bundle to many boards, build its engines there, and judge them.

    BUNDLE is a bundle or a pack (.frb). Each board unpacks it, builds, accepts, verifies and times
    the engines, and takes them into use by one rename if its verdict is PASSED; the release before
    stays. A board that fails or vanishes costs only itself; the same command again does what is
    missing. What follows `--` goes to ansible-playbook: --limit, --forks, --check. Exit code 1 when
    a board is not PASSED.
    """
    from ..documents import to_builtins
    from ..fleet.fleet_report import merge_evidence, read_run, write_fleet_report
    from .fleet_playbook import find_ansible, run_playbook

    batches = _batches(serial)
    find_ansible()  # before the work of packing
    folder = _folder(out)
    given = {  # what is not given stays as the inventory has it
        "fr_edge_trust": _public_key(sign, trust),
        "fr_edge_policy": _file(policy, "--policy"),
        "fr_edge_precisions": list(precisions),
        "fr_edge_allow_unsigned": allow_unsigned,
    }
    variables = {name: value for name, value in given.items() if value}
    variables |= {"fr_edge_accept": False} if no_accept else {}
    variables |= {"fr_edge_serial": batches}
    variables |= {"fr_edge_pack": str(_pack(output, bundle, folder, sign))}
    run_playbook(output, "roll_out", folder, inventory, variables, ansible)
    if {"--check", "-C"} & set(ansible):
        output.note("nothing was changed: --check")
        return
    report = merge_evidence(folder, output.track)
    files = write_fleet_report(report, folder)
    text = f"{fleet_text(report)}\n\n{', '.join(map(str, files))}"
    output.result(to_builtins(report), text)
    rolled = set(read_run(folder, ROLL_OUT).boards)
    fail_unless_passed(output, [board for board in report.boards if board.board in rolled])


@define_command("roll-back", example="fr-edge fleet roll-back -i boards.yml")
@_fleet_options
def roll_back_command(
    output: Output, inventory: str | None, out: str, ansible: tuple[str, ...]
) -> None:
    """Take the release before into use again, by one rename on each board.

    Run again, it changes nothing on boards that are back already. What follows `--` goes to
    ansible-playbook: --limit, --forks. Exit code 1 when a board does not answer, or has no release
    before its current one.
    """
    from .fleet_playbook import run_playbook

    folder = _folder(out)
    run_playbook(output, "roll_back", folder, inventory, {}, ansible)
    _print_boards(output, folder, ROLL_BACK)


def _folder(out: str) -> Path:
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _batches(serial: str) -> list[str]:
    batches = [part.strip() for part in serial.split(",")]
    if not all(re.fullmatch(r"[1-9][0-9]*|[1-9][0-9]?%|100%", part, re.ASCII) for part in batches):
        raise click.UsageError(
            f"--serial {serial!r}: expected numbers of boards or percentages, such as 1,10%,100%"
        )
    return batches


def _pack(output: Output, bundle: str, folder: Path, sign: str | None) -> Path:
    """The pack to roll out: the given one, or one that is made of the bundle."""
    from ..bundle.pack import pack

    given = Path(bundle)
    if given.is_file():
        if sign:
            raise click.UsageError("--sign signs a bundle; this is a pack, signed or not")
        return given.resolve()
    key = options.load_signing_key(sign)
    result = pack(bundle, folder / f"{given.resolve().stem}.frb", key, reports=False)
    signed = ", signed" if result.signed_by else ", not signed"
    output.note(f"{result.file}: {result.files} files{signed}, sha256 {result.sha256}")
    return Path(result.file).resolve()


def _public_key(sign: str | None, trust: tuple[str, ...]) -> str:
    """The key that boards are told to trust for this pack."""
    if len(trust) > 1:
        raise click.UsageError("--trust names one key here: that of the pack")
    if trust:
        return _file(trust[0], "--trust")
    beside = Path(sign).with_suffix(".pub") if sign else None
    return str(beside.resolve()) if beside and beside.is_file() else ""


def _file(path: str | None, option: str) -> str:
    if path is None:
        return ""
    if not Path(path).is_file():
        raise click.UsageError(f"{option} {path}: there is no such file")
    return str(Path(path).resolve())


def _print_boards(output: Output, folder: Path, noted: str) -> None:
    """What a playbook without evidence did on each board."""
    from ..documents import to_builtins
    from ..fleet.fleet_report import read_run_boards

    rows = read_run_boards(folder, noted)
    cells = [
        [
            *(row.board, row.kind or "-", row.jetpack or "-", row.tensorrt or "-"),
            *(row.driver or "-", ", ".join(row.backends) or "-"),
            _plan_text(row),
            "; ".join([*(r.reason for r in row.reasons), *row.problems]) or "ready",
        ]
        for row in rows
    ]
    head = ("board", "kind", "JetPack", "TensorRT", "driver", "backends", "engines", "")
    lines = [table(cells, head) if noted == CHECK else ""]
    for row in rows:
        for reason in row.reasons:
            lines.append(f"{row.board}: {reason.reason}")
            lines += [f"  cure: {reason.cure}"] if reason.cure else []
        if row.plan and row.plan.problems:
            lines.append(f"{row.board}: {'; '.join(row.plan.problems)}")
            lines += [f"  {step}" for step in row.plan.steps]
    bad = [row.board for row in rows if row.reasons]
    lines.append(
        f"{len(rows) - len(bad)} of {len(rows)} boards are ready"
        if noted == CHECK
        else f"{len(rows) - len(bad)} of {len(rows)} boards are back at the release before"
    )
    output.result({"boards": to_builtins(rows)}, "\n".join(lines).strip())
    if bad:
        output.fail_gate(f"not {'ready' if noted == CHECK else 'back'}: {', '.join(bad)}")


def _plan_text(row: "BoardEvidence") -> str:
    """What engines a board will take, as `fr-edge targets` knows it."""
    if row.plan is None:  # no GPU
        return "CPU alone" if row.backends else "-"
    if row.plan.verdict != "works":
        return row.plan.verdict
    typing = row.plan.typing.split(":")[0]
    dla = "DLA" if row.plan.dla[:2] not in ("", "no") else "no DLA"
    return f"{', '.join(row.plan.flavours or {})} ({typing}); {dla}"


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
    fail_unless_passed(output, report.boards)


for below in (check_command, roll_out_command, roll_back_command, report_command):
    command.add_command(below)


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


def fail_unless_passed(output: Output, boards: "Iterable[BoardEvidence]") -> None:
    """End with exit code 1 when a board is not PASSED."""
    bad = [board.board for board in boards if board.verdict != "PASSED"]
    if bad:
        more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        output.fail_gate(f"not PASSED: {', '.join(bad[:_SHOWN])}{more}")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
