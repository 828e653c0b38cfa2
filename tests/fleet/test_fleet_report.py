"""The evidence of many boards: one verdict, the odd ones named, and files that mean harm."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from fleet_documents import system, timing, verification, write_board

from fr_edge.cli.fleet import _print_boards
from fr_edge.cli.main import run
from fr_edge.cli.output import Output
from fr_edge.errors import DataError
from fr_edge.fleet.board_evidence import BoardEvidence
from fr_edge.fleet.fleet_report import FleetReport, merge_evidence, read_run_boards
from fr_edge.fleet.outliers import robust_outliers
from fr_edge.runtime.compatibility import compatibility_of

Captured = pytest.CaptureFixture[str]


def by_name(report: FleetReport) -> dict[str, BoardEvidence]:
    return {board.board: board for board in report.boards}


def boards(root: Path, count: int = 4) -> None:
    for number in range(count):
        write_board(root, f"b{number}", benchmark=timing(1 + 0.01 * number))


def test_boards_that_passed_are_one_group_with_their_figures(tmp_path: Path) -> None:
    boards(tmp_path)
    report = merge_evidence(tmp_path)
    assert (report.verdict, report.counts) == ("PASSED", {"PASSED": 4})
    (group,) = report.groups
    assert (group.kind, group.jetpack) == ("NVIDIA Jetson Orin Nano", "JetPack 6, L4T 36.4.3")
    assert (group.tensorrt, group.boards, group.passed) == ("10.3", 4, 4)
    assert group.p50_ms == pytest.approx(1.015)
    (engine,) = report.boards[0].engines
    assert (engine.far, engine.tar, engine.tar_interval_95) == ("1e-3", 0.97, (0.96, 0.98))
    assert (engine.p50_ms, engine.memory_mb, engine.temperature_c) == (1.0, 210.0, 61.0)


@pytest.mark.parametrize(
    ("documents", "named", "verdict"),
    [
        ({"verify": verification(0.95)}, "other embeddings", "CANNOT JUDGE"),
        ({"verify": verification(0.9999)}, "other embeddings", "CANNOT JUDGE"),
        ({"verify": verification(model="c" * 64)}, "another model", "CANNOT JUDGE"),
        ({"benchmark": timing(1.3)}, "p50 int8 1.3 ms", "PASSED"),
        ({"benchmark": timing(mode="7W")}, "power mode 7W, most boards", "PASSED"),
        ({"benchmark": timing(throttled=("hot",))}, "throttled while it was timed: hot", "PASSED"),
    ],
)
def test_the_odd_board_of_a_kind_is_named(
    tmp_path: Path, documents: dict[str, object], named: str, verdict: str
) -> None:
    boards(tmp_path)
    write_board(tmp_path, "odd", **documents)
    report = by_name(merge_evidence(tmp_path))
    assert named in "; ".join(report["odd"].outliers)
    assert report["odd"].verdict == verdict
    assert all(not b.outliers and b.verdict == "PASSED" for n, b in report.items() if n != "odd")


def test_boards_of_other_kinds_are_not_compared(tmp_path: Path) -> None:
    boards(tmp_path)
    write_board(tmp_path, "thor", doctor=system("Thor"), benchmark=timing(0.2, "120W"))
    assert not by_name(merge_evidence(tmp_path))["thor"].outliers


def test_an_outlier_is_far_by_score_and_by_ratio() -> None:
    assert robust_outliers([1, 1.01, 0.99, 1.3], 1.1) == [3]
    assert robust_outliers([1, 1, 1, 1.05], 1.1) == []  # MAD 0, but within 10 %
    assert robust_outliers([1, 2, 3, 4, 5], 1.1) == []  # spread, none is odd
    assert robust_outliers([1, 9], 1.1) == []
    # log2: median 1, MAD 1; 0.6745 |x - 1| is 3.37 at 6 and 4.05 at 7
    assert robust_outliers([1, 2, 4, 2, 64], 1.1) == []
    assert robust_outliers([1, 2, 4, 1, 4, 128], 1.1) != []


def test_a_board_that_failed_or_vanished_is_named_with_its_remedy(tmp_path: Path) -> None:
    boards(tmp_path, 1)
    write_board(tmp_path, "fails", verify=verification(0.9, "FAILED"))
    write_board(tmp_path, "lost", verify=None, benchmark=None, state={"state": "at work"})
    refusal = {"error": "the disk is full", "hint": "free some space", "exit_code": 3}
    write_board(tmp_path, "full", verify=refusal)
    write_board(tmp_path, "idle", verify=None, benchmark=None)
    (tmp_path / "fleet.json").write_text('{"boards": ["b0", "later"]}')
    report = merge_evidence(tmp_path)
    why = {name: board.reasons for name, board in by_name(report).items()}
    assert report.verdict == "FAILED"
    assert why["fails"][0].cure == "calibrate again"
    assert "connection broke off" in why["lost"][0].reason
    assert (why["full"][0].reason, why["full"][0].cure) == (
        "verify: the disk is full",
        "free some space",
    )
    assert why["idle"][0].reason == "no engine was verified"
    assert "not tried" in why["later"][0].reason
    assert all(why[name][0].cure for name in why if name != "b0")


@pytest.mark.parametrize("name", ["..", "../elsewhere", "/etc", ""])
def test_a_run_names_folders_of_its_own_only(name: str, tmp_path: Path) -> None:
    boards(tmp_path, 1)
    (tmp_path / "fleet.json").write_text(json.dumps({"boards": ["b0", name]}))
    with pytest.raises(DataError, match="not a folder's name"):
        merge_evidence(tmp_path)


@pytest.mark.parametrize(("state", "verdict"), [("done", "CANNOT JUDGE"), ("failed", "PASSED")])
def test_evidence_of_a_release_that_was_left_counts_no_more(
    tmp_path: Path, state: str, verdict: str
) -> None:
    write_board(tmp_path, "b", back={"state": state, "verb": "roll-back", "error": "no release"})
    assert merge_evidence(tmp_path).verdict == verdict


def test_evidence_that_a_roll_out_fetched_is_one_file_by_step(tmp_path: Path) -> None:
    refusal = {"error": "no engine", "hint": "build it", "exit_code": 3}
    steps = {"a/../\0b": refusal, "verify-int8": verification(), "unpack": {"files": 7}, "odd": [1]}
    state = {"state": "done", "verb": "roll-out", "bundle": "x", "system": system()}
    fetched = {"evidence": steps}
    write_board(
        tmp_path, "b", doctor=None, verify=None, benchmark=None, board=state, evidence=fetched
    )
    (board,) = merge_evidence(tmp_path).boards
    assert (board.kind, board.engines[0].verdict) == ("NVIDIA Jetson Orin Nano", "PASSED")
    (reason,) = board.reasons
    assert reason.reason == "a/../\\x00b: no engine"


def test_the_report_is_printed_written_and_decides_the_exit_code(
    tmp_path: Path, capsys: Captured
) -> None:
    boards(tmp_path)
    assert run(["fleet", "report", str(tmp_path), "-q"]) == 0
    write_board(tmp_path, "b1-copy", verify=verification(0.9, "FAILED"))
    assert run(["fleet", "report", str(tmp_path), "-q", "--json"]) == 1
    out, err = capsys.readouterr()
    assert "not PASSED: b1-copy" in err
    document = json.loads((tmp_path / "fleet-report.json").read_text())
    assert json.loads(out[out.index("{") :]) == document
    suite = ElementTree.parse(tmp_path / "fleet-report.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("5", "1", "0")
    (failed,) = (case for case in suite if case.find("failure") is not None)
    assert failed.get("name") == "b1-copy"


def test_hostile_evidence_costs_its_own_board_only(tmp_path: Path) -> None:
    boards(tmp_path)
    bad = {
        "large": lambda path: (path.touch(), os.truncate(path, 1 << 30)),
        "link": lambda path: path.symlink_to("/etc/passwd"),
        "folder": lambda path: path.mkdir(),
        "deep": lambda path: path.write_text("[" * 100_000),
        "half": lambda path: path.write_text('{"cosine": '),
        "kinds": lambda path: path.write_text('{"cosine": {"faces": "many"}, "engine": []}'),
        "number": lambda path: path.write_text(f'{{"runs": {"9" * 400}}}'),
        "binary": lambda path: path.write_bytes(bytes(range(256))),
        "escape": lambda path: path.write_text('{"error": "\\u001b[2J\\u202e<b>", "exit_code": 3}'),
    }
    for name, make in bad.items():
        make(write_board(tmp_path, name) / "evil.json")
    (tmp_path / "away").symlink_to("/etc")
    report = by_name(merge_evidence(tmp_path))
    assert "away" not in report
    assert {name for name, board in report.items() if board.verdict == "PASSED"} == {
        "b0",
        "b1",
        "b2",
        "b3",
    }
    for name in bad:
        (reason,) = report[name].reasons
        assert reason.verdict == "CANNOT JUDGE"
        assert "\x1b" not in reason.reason
        assert name == "escape" or reason.reason.startswith("unreadable: evil.json ")
    assert run(["fleet", "report", str(tmp_path), "-q"]) == 1
    page = (tmp_path / "fleet.html").read_text()
    assert "<script" not in page
    assert "<b>" not in page.replace("<b class", "")
    assert "\u202e" not in page
    ElementTree.parse(tmp_path / "fleet-report.xml")


@pytest.mark.parametrize("what", ["missing", "file", "empty"])
def test_a_folder_without_boards_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / what
    if what == "file":
        path.write_text("")
    if what == "empty":
        path.mkdir()
    with pytest.raises(DataError):
        merge_evidence(path)
    assert run(["fleet", "report", str(path)]) == 4


def test_the_page_sorts_without_a_script(
    tmp_path: Path, shown: Callable[[Path, int, float], str]
) -> None:
    boards(tmp_path)
    assert run(["fleet", "report", str(tmp_path), "-q"]) == 0
    page = (tmp_path / "fleet.html").read_text()  # what axe-core asks for
    assert page.count("<main>") == 1
    assert page.count('class="wide"') == page.count('tabindex="0"') > 0
    dom = shown(tmp_path / "fleet.html", 1200, 60)
    assert dom.count("--p50:") >= 4


def test_a_check_shows_what_engines_each_board_will_take(tmp_path: Path, capsys: Captured) -> None:
    boards = {
        "nano": system("NVIDIA Jetson Orin Nano Developer Kit"),
        "old": system("NVIDIA Jetson Xavier NX"),
        "odd": system("NVIDIA Jetson Nonesuch"),
        "cpu": system(),
    }
    boards["old"]["device"] |= {"python": "3.8.10", "packages": {"tensorrt": "8.5.2.2"}}
    boards["cpu"]["device"] |= {"gpu": [], "jetson": ""}
    (tmp_path / "fleet-check.json").write_text(json.dumps({"boards": [*boards], "verb": "check"}))
    for name, found in boards.items():
        state = {"state": "done", "verb": "check", "system": found}
        (tmp_path / name).mkdir()
        (tmp_path / name / "check.json").write_text(json.dumps(state))
    rows = {row.board: row.plan for row in read_run_boards(tmp_path, "fleet-check.json")}
    assert rows["nano"] is not None
    assert rows["nano"].flavours == compatibility_of("orin-nano@jetpack6.2").flavours
    assert rows["old"] is not None
    assert "Python 3.8.10: fr-edge needs 3.10 and later" in rows["old"].problems
    assert rows["odd"] is not None
    assert rows["odd"].verdict == "unknown"
    assert rows["cpu"] is None

    _print_boards(Output(), tmp_path, "fleet-check.json")
    text = capsys.readouterr().out
    (line,) = (line for line in text.splitlines() if line.startswith("nano "))
    assert "fp32, fp16, int8 (strong); no DLA" in line
    assert "  CPU alone  " in text
    assert "old: TensorRT 8.5.2: fr-edge drives 8.6 and later" in text
    assert "4 of 4 boards are ready" in text
