"""Roll-outs to boards behind real sshd, by real Ansible; a double stands in for fr-edge on the boards."""

import json
import locale
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from boards_behind_sshd import Boards, missing
from fleet_documents import system, timing, verification

from fr_edge.cli.main import run

DOUBLE = Path(__file__).with_name("fr_edge_double.sh")

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def boards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Boards]:
    if reason := missing():
        pytest.skip(reason)
    sockets = Path(tempfile.mkdtemp(dir="/tmp"))  # names of sockets must be short
    started = Boards(tmp_path, sockets)
    for name, value in started.environment.items():
        monkeypatch.setenv(name, value)
    try:
        yield started
    finally:
        started.stop()
        shutil.rmtree(sockets, ignore_errors=True)


def furnish(boards: Boards, name: str, verified: Any, *, known: bool = True) -> Path:
    """Start a board whose fr-edge is the double."""
    board = boards.start(name, known=known)
    board.settings |= {"fr_edge_program": str(DOUBLE), "fr_edge_backend": "tensorrt"}
    documents = {"doctor": system(), "verify": verified, "benchmark": timing()}
    for stem, document in documents.items():
        (board.home / f"{stem}.json").write_text(json.dumps(document))
    return board.home


def states(out: Path) -> dict[str, Any]:
    return {path.parent.name: json.loads(path.read_text()) for path in out.glob("*/board.json")}


def test_a_canary_that_is_not_passed_stops_the_others_and_a_board_that_is_not_known_is_named(
    boards: Boards, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the locale C, as in a job of cron, which Ansible refuses."""
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setattr(locale, "getlocale", lambda: (None, None))
    pack, out = tmp_path / "mine.frb", tmp_path / "evidence"
    pack.write_bytes(b"a pack")
    home = furnish(boards, "canary", verification(0.9, "FAILED"))
    stranger = furnish(boards, "stranger", verification(), known=False)
    line = ["fleet", "roll-out", str(pack), "-i", str(boards.inventory()), "-q"]
    line += ["--out", str(out), "--allow-unsigned", "--no-accept", "--serial", "1,100%"]

    assert run(line) == 1
    assert "not PASSED: canary, stranger" in capsys.readouterr().err
    assert set(states(out)) == {"canary"}  # the other was not tried
    assert not (home / "fr-edge" / "current").exists()

    (home / "verify.json").write_text(json.dumps(verification()))
    assert run(line) == 1
    text = capsys.readouterr().out
    assert states(out)["canary"]["changed"] is True
    assert os.readlink(home / "fr-edge" / "current").startswith("releases/")
    assert (home / "calls").read_text().count("build-engine") == 1  # in both runs together
    assert not (stranger / "calls").exists()
    assert "stranger: CANNOT JUDGE: Failed to connect to the host via ssh: Host key" in text
    assert "then `ssh 127.0.0.1` once to accept it" in text
    report = json.loads((out / "fleet-report.json").read_text())
    assert report["counts"] == {"CANNOT JUDGE": 1, "PASSED": 1}
