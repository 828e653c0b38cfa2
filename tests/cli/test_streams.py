"""Broken streams and hostile text: no traceback, no escape codes, the command's own exit code."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fr_edge.cli.main import COMMANDS, run
from fr_edge.cli.output import one_line, printable, reader_left, table

Captured = pytest.CaptureFixture[str]
HOSTILE = "a\x1b[31m\x9b2J\u202eb\udcff\x07\x7f"


def start(*args: str, **streams: int | None) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "fr_edge", *args], **streams)  # type: ignore[call-overload, no-any-return]


def pipe_without_reader() -> int:
    read, write = os.pipe()
    os.close(read)
    return write


def test_a_reader_that_leaves_is_no_error(exported: Path) -> None:
    processes = []
    for args in (("inspect", str(exported), "--json"), ("inspect", "nowhere", "--json"), ("-h",)):
        write = pipe_without_reader()
        processes.append(start(*args, stdout=write, stderr=subprocess.PIPE))
        os.close(write)
    good, bad, page = ((p.communicate()[1].decode(), p.returncode) for p in processes)
    assert good == page == ("", 0)
    assert bad[1] == 4
    assert bad[0].startswith("fr-edge: there is no bundle at nowhere")


@pytest.mark.parametrize("args", [["--version"], *([name, "--help"] for name in COMMANDS)])
def test_every_page_may_lose_its_reader(
    args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    with os.fdopen(pipe_without_reader(), "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "stderr", sys.stderr)  # Click replaces both
        assert run(args) == 0
    assert capsys.readouterr().err == ""


def test_completion_and_errors_without_a_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    with os.fdopen(pipe_without_reader(), "w") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        with monkeypatch.context() as asked:
            asked.setenv("_FR_EDGE_COMPLETE", "bash_source")
            assert run([]) == 0
    with os.fdopen(pipe_without_reader(), "w") as broken:
        monkeypatch.setattr(sys, "stderr", broken)
        assert run([]) == 2


def test_only_a_broken_pipe_has_lost_its_reader() -> None:
    read, write = os.pipe()
    with os.fdopen(read), os.fdopen(write, "w") as open_pipe, open(os.devnull, "w") as null:
        assert not reader_left(open_pipe)
        assert not reader_left(null)
    assert not reader_left(open_pipe)  # closed
    with os.fdopen(pipe_without_reader(), "w") as broken:
        assert reader_left(broken)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_stream_is_told_where_it_can_be(exported: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    results = [
        start("inspect", str(exported), stdout=full, stderr=subprocess.PIPE),
        start("inspect", "nowhere", "--json", stdout=full, stderr=subprocess.PIPE),
        start("inspect", "nowhere", stdout=subprocess.PIPE, stderr=full),
        start("--help", stdout=full, stderr=subprocess.PIPE),
    ]
    texts = [(p.communicate()[1] or b"").decode() for p in results]
    os.close(full)
    assert [p.returncode for p in results] == [3, 4, 4, 3]
    assert texts[0] == "fr-edge: stdout cannot be written: No space left on device\n"
    assert texts[1].startswith("fr-edge: there is no bundle at nowhere")
    assert "Traceback" not in "".join(texts)
    assert "Exception ignored" not in "".join(texts)


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_closed_streams(closed: str, exported: Path) -> None:
    line = f"{sys.executable} -m fr_edge inspect {exported} {closed}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Traceback" not in done.stdout + done.stderr


def test_nothing_that_a_terminal_obeys_is_printed() -> None:
    shown = printable(HOSTILE + "\tü\n")
    assert shown == "a\\x1b[31m\\x9b2J\\u202eb\\udcff\\x07\\x7f\tü\n"
    assert one_line("x\ny\tz\r") == "x\\ny\\tz\\r"
    assert table([["a\nb", "\x1b"], ["c", "d"]]) == "a\\nb  \\x1b\nc     d"


def test_a_folder_whose_name_is_not_text(built: Path, tmp_path: Path, capsys: Captured) -> None:
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff"))
    shutil.copytree(built, place)
    assert run(["inspect", str(place)]) == 0
    assert "b\\udcff: 32-d" in capsys.readouterr().out
    assert run(["inspect", str(place), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["embedding_dim"] == 32
    assert run(["verify", str(place), "--engine", "int8", "-q"]) == 0
    assert run(["calibrate", str(place), "--faces", "synthetic:12x2", "-q", "--limit", "16"]) == 0
    assert "Traceback" not in "".join(capsys.readouterr())


def test_a_manifest_cannot_write_to_the_terminal(bundle: Path, capsys: Captured) -> None:
    path = bundle / "bundle.json"
    manifest = json.loads(path.read_text())
    manifest["history"][0] |= {"stage": "x\x1b[2J\nall hashes match", "time": "\x9b"}
    manifest["files"]["model.onnx"]["role"] = "\x1b]0;title\x07\nforged line"
    manifest["history"][-1]["stale"] = {"reports/x\x1b.json": "\u202e"}
    path.write_text(json.dumps(manifest))
    assert run(["inspect", str(bundle)]) == 0
    printed = capsys.readouterr().out
    assert printable(printed) == printed
    assert printed.splitlines().count("all hashes match") == 1
    assert "forged line" not in printed.splitlines()
    manifest["input"] = {"evil\x1b[2J\nfr-edge: all is well": 1}
    path.write_text(json.dumps(manifest))
    assert run(["inspect", str(bundle)]) == 4
    printed = capsys.readouterr().err
    assert printable(printed) == printed
    assert sum(line.startswith("fr-edge: ") for line in printed.splitlines()) == 1


def test_calibrate_with_a_budget_inside_the_bundle(
    bundle: Path, distinct: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle)
    line = f"calibrate . --faces {distinct} --limit 16 --min-cosine 0.5 --force -q"
    assert run(line.split()) == 0
    assert run(["inspect", ".", "-q"]) == 0
