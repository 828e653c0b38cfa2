"""`--log-file` and FR_EDGE_LOG: what a log holds, and which files it is never written to."""

import os
import stat
from pathlib import Path

import pytest

from fr_edge.cli.log_file import hide_names
from fr_edge.cli.main import run


def test_a_log_has_the_options_the_lines_and_the_end(bundle: Path, tmp_path: Path) -> None:
    log, ann = tmp_path / "x.log", tmp_path / "Ann Smith" / "faces"
    log.touch(0o644)
    faces = ["--faces", "synthetic:8x2", "--limit", "16"]
    assert run(["calibrate", str(bundle), *faces, "-q", "--log-file", str(log)]) == 0
    assert run(["calibrate", str(bundle), "--faces", str(ann), "--log-file", str(log)]) == 4
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    text = log.read_text()
    start, *middle, end, again, error = [
        line for line in text.splitlines() if " TRACE " not in line
    ][:-1]
    assert "START fr-edge.calibrate: fr-edge 0." in start
    assert "limit=16" in start
    assert "faces=..." in start
    assert any(" WARNING fr_edge.calibration." in line for line in middle)
    assert "END fr-edge.calibrate: exit code 0 after " in end
    assert "START" in again
    assert error.endswith("ERROR fr-edge.calibrate: FacesError: a message about faces")
    assert " TRACE fr-edge.calibrate: faces/sources.py:" in text
    assert "exit code 4" in text
    assert not {"Ann", "Smith", str(tmp_path)} & set(text.replace("/", " ").split())
    assert "Ann" not in text


def test_the_variable_serves_every_command_once(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FR_EDGE_LOG", str(tmp_path / "x.log"))
    assert run(["inspect", str(bundle)]) == 0
    assert run(["fleet", "report", str(tmp_path / "none")]) == 4
    starts = [
        line.split()[3] for line in (tmp_path / "x.log").read_text().splitlines() if "START" in line
    ]
    assert starts == ["fr-edge.inspect:", "fr-edge.fleet.report:"]


@pytest.mark.parametrize(
    "kind", ["folder", "link", "second name", "pipe", "missing folder", "empty"]
)
def test_only_a_file_of_its_own_is_written(
    kind: str, bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.write_text("kept")
    path = tmp_path / "x.log"
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(other)
    elif kind == "second name":
        path.hardlink_to(other)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "missing folder":
        path = tmp_path / "none" / "x.log"
    assert run(["inspect", str(bundle), "--log-file", "" if kind == "empty" else str(path)]) == 2
    assert other.read_text() == "kept"
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "whole", "kept"),
    [
        ("there is no bundle at /a/Ann B/x.bundle", False, "there is no bundle at <path>"),
        ("Ann Smith/1.jpg is damaged", True, "<path> is damaged"),
        ("faces: Ann.JPG cannot be read; no Ann's", True, "faces: <path> cannot be read; no Ann's"),
        ("no person 'Ann' in \"Bob\"", False, "no person '...' in '...'"),
        ("200 images/s, see docs/ci.md", False, "200 images/s, see docs/ci.md"),
        ("reports/verify-int8.json kept, Q/DQ", True, "reports/verify-int8.json kept, Q/DQ"),
    ],
)
def test_names_of_files_and_people_are_left_out(text: str, whole: bool, kept: str) -> None:
    assert hide_names(text, whole) == kept
