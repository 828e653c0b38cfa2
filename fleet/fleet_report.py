"""`merge_evidence`: the evidence of many boards as one verdict, as JSON, JUnit and a page."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from xml.etree import ElementTree

from .._version import __version__
from ..documents import encode_json, read_json
from ..errors import DataError
from ..files import write_atomic
from ..progress import Track, silent
from ..runtime.evaluation.gates import (
    CANNOT_JUDGE,
    FAILED,
    PASSED,
    VerdictReason,
    overall_verdict,
)
from .board_evidence import (
    AGAIN,
    ROLL_OUT,
    BoardEvidence,
    BoardState,
    EngineEvidence,
    plain_text,
    reason_text,
    state_reason,
    with_verdict,
)
from .evidence_files import read_evidence
from .fleet_page import fleet_page
from .outliers import engine_kinds, judge_outliers

PAGE_NAME, JSON_NAME, JUNIT_NAME = "fleet.html", "fleet-report.json", "fleet-report.xml"


@dataclass(frozen=True)
class FleetGroup:
    """Engines of boards of one kind; medians are None where no board has the figure.

    Attributes:
        kind: The board's, GPU's or CPU's name.
        jetpack: Such as "JetPack 6, L4T 36.4.3"; "" elsewhere.
        precision: "fp32", "fp16", "fp8" or "int8".
        boards: How many have such an engine.
        passed: How many of them are PASSED.
    """

    kind: str
    jetpack: str
    tensorrt: str
    precision: str
    backend: str
    boards: int
    passed: int
    p50_ms: float | None
    p99_ms: float | None
    energy_mj: float | None
    cosine: float | None


@dataclass(frozen=True)
class FleetReport:
    """The evidence of all boards.

    Attributes:
        verdict: FAILED when a board is, else CANNOT JUDGE when a board is, else PASSED.
        passed: Whether it is PASSED.
        counts: Verdict -> boards.
        groups: Boards of one kind with one engine.
        boards: All boards, those that are not PASSED first, then those that are outliers.
        time: UTC, ISO 8601.
    """

    verdict: str
    passed: bool
    counts: dict[str, int]
    groups: tuple[FleetGroup, ...]
    boards: tuple[BoardEvidence, ...]
    time: str = ""
    fr_edge: str = __version__


@dataclass(frozen=True)
class FleetRun:
    """What a playbook notes about its boards, in `fleet.json` and its kin.

    Attributes:
        boards: Their names.
        verb: "check", "roll-out" or "roll-back".
        bundle: sha256 of the pack that is rolled out.
    """

    boards: tuple[str, ...] = ()
    verb: str = ""
    bundle: str = ""


def merge_evidence(folder: Path, track: Track = silent) -> FleetReport:
    """Read the evidence of all boards and judge it together.

    Args:
        folder: Holds a folder for each board; links are not followed. A roll-out's `fleet.json` names
            boards that must be there too.
        track: Shows progress.

    Returns:
        The report. A board whose files cannot be read is CANNOT JUDGE.

    Raises:
        DataError: There is no such folder, it holds no board, or `fleet.json` is damaged.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder", "give the folder that holds one folder for each board"
        )
    folders = sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and not path.is_symlink() and not path.name.startswith(".")
    )
    run = read_run(folder, ROLL_OUT)
    boards = [read_evidence(path) for path in track(folders, "reading boards", len(folders))]
    boards = _with_untried(boards, run)
    if not boards:
        raise DataError(
            f"{folder} holds no board's folder",
            "give the folder that `fr-edge fleet roll-out --out` names: it holds a folder of JSON files"
            " for each board",
        )
    judged = sorted(
        judge_outliers(boards), key=lambda b: (b.verdict == PASSED, not b.outliers, b.board)
    )
    verdict = overall_verdict(board.verdict for board in judged)
    return FleetReport(
        verdict=verdict,
        passed=verdict == PASSED,
        counts=dict(Counter(board.verdict for board in judged)),
        groups=_groups(judged),
        boards=tuple(judged),
        time=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def read_run(folder: Path, noted: str) -> FleetRun:
    """Read what a playbook noted about its boards.

    Args:
        folder: Of the evidence.
        noted: `fleet.json`, `fleet-check.json` or `fleet-roll-back.json`.

    Returns:
        The run; an empty one where no playbook noted any.

    Raises:
        DataError: The file cannot be read or is damaged.
    """
    path = folder / noted
    run = read_json(path, FleetRun) if _exists(path) else FleetRun()
    if strange := [name for name in run.boards if name in ("", ".", "..") or "/" in name]:
        raise DataError(
            f"{path} names a board {strange[0]!r}, which is not a folder's name",
            "the file was changed by hand: remove it",
        )
    return run


def read_run_boards(folder: Path, noted: str) -> tuple[BoardEvidence, ...]:
    """What `check` or `roll-back` noted about each of its boards.

    Args:
        folder: Of the evidence.
        noted: `fleet-check.json` or `fleet-roll-back.json`: which boards the run was about.

    Returns:
        A board each, with why it was not done as its reasons.

    Raises:
        DataError: A file cannot be read or is damaged.
    """
    state_name = noted.removeprefix("fleet-")
    boards = []
    for name in read_run(folder, noted).boards:
        evidence, path = read_evidence(folder / name), folder / name / state_name
        state = (
            read_json(path, BoardState)
            if _exists(path)
            else BoardState("failed", error="not tried")
        )
        done = state.state == "done"
        reason = None if done else state_reason(state)
        boards.append(replace(evidence, reasons=(reason,) if reason else (), verdict=""))
    return tuple(boards)


def _with_untried(boards: Sequence[BoardEvidence], run: FleetRun) -> list[BoardEvidence]:
    """Boards of a roll-out that it did not come to have no evidence, or that of another bundle."""
    untried = VerdictReason(CANNOT_JUDGE, "not tried: the roll-out was stopped before", AGAIN)
    expected = dict.fromkeys(map(plain_text, run.boards))
    names = {board.board for board in boards}
    judged = [
        with_verdict(board, [untried])
        if run.verb == "roll-out" and board.board in expected and board.bundle != run.bundle
        else board
        for board in boards
    ]
    lost = (BoardEvidence(name) for name in expected if name not in names)
    return [*judged, *(with_verdict(board, [untried]) for board in lost)]


def write_fleet_report(report: FleetReport, folder: Path) -> tuple[Path, ...]:
    """Write a fleet's report as a page, as JSON and as JUnit XML.

    Args:
        report: The merged evidence.
        folder: Where `fleet.html`, `fleet-report.json` and `fleet-report.xml` are written.

    Returns:
        The three files.

    Raises:
        MachineError: jinja2 is not installed.
        OSError: The folder cannot be written.
    """
    page = fleet_page(report)
    contents = {
        PAGE_NAME: page.encode(),
        JSON_NAME: encode_json(report),
        JUNIT_NAME: fleet_junit(report).encode(),
    }
    for name, data in contents.items():
        write_atomic(folder / name, data)
    return tuple(folder / name for name in contents)


def fleet_junit(report: FleetReport) -> str:
    """A fleet's report as JUnit XML: a test case for each board.

    Args:
        report: The merged evidence.

    Returns:
        An XML document: a failure for each board that is FAILED, an error for each that cannot be
        judged; outliers of boards that PASSED are their output.
    """
    suite = ElementTree.Element("testsuite", name="fr-edge fleet", tests=str(len(report.boards)))
    for board in report.boards:
        name = f"fr-edge.fleet.{board.kind or 'unknown'}"
        case = ElementTree.SubElement(suite, "testcase", classname=name, name=board.board)
        if board.verdict != PASSED:
            tag = "failure" if board.verdict == FAILED else "error"
            text, cure = reason_text(board)
            problem = ElementTree.SubElement(case, tag, type=board.verdict, message=text)
            problem.text = f"{text}\n{cure}".strip()
        elif board.outliers:
            ElementTree.SubElement(case, "system-out").text = "\n".join(board.outliers)
    for attribute, tag in (("failures", "failure"), ("errors", "error")):
        suite.set(attribute, str(len(suite.findall(f"*/{tag}"))))
    ElementTree.indent(suite)
    head = '<?xml version="1.0" encoding="utf-8"?>\n'
    return head + ElementTree.tostring(suite, "unicode") + "\n"


def _groups(boards: Sequence[BoardEvidence]) -> tuple[FleetGroup, ...]:
    passed = {board.board for board in boards if board.verdict == PASSED}
    groups = []
    for key, rows in engine_kinds(boards).items():
        engines = [engine for _, engine in rows]
        groups.append(
            FleetGroup(
                *key,
                boards=len(rows),
                passed=sum(board in passed for board, _ in rows),
                p50_ms=_median(engines, "p50_ms"),
                p99_ms=_median(engines, "p99_ms"),
                energy_mj=_median(engines, "energy_mj"),
                cosine=_median(engines, "cosine"),
            )
        )
    return tuple(
        sorted(groups, key=lambda g: (-g.boards, g.kind, g.jetpack, g.tensorrt, g.precision))
    )


def _median(engines: Sequence[EngineEvidence], name: str) -> float | None:
    values = [value for engine in engines if (value := getattr(engine, name)) is not None]
    return median(values) if values else None


def _exists(path: Path) -> bool:
    return path.is_symlink() or path.exists()
