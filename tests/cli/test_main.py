"""The command line turns what goes wrong into one message and the right exit code."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from fr_edge.cli.main import COMMANDS, root, run
from fr_edge.errors import DataError, GateFailed, MachineError, UsageError

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def raising() -> Callable[[BaseException], None]:
    """Makes `inspect` raise, as a stage would: the real way from error to exit code."""
    command = root.get_command(click.Context(root), "inspect")
    assert command is not None
    kept = command.callback

    def arrange(error: BaseException) -> None:
        def body(**_: object) -> None:
            raise error

        command.callback = body

    yield arrange
    command.callback = kept


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("u"), 2),
        (GateFailed("g"), 1),
        (MachineError("m"), 3),
        (DataError("d"), 4),
        (KeyboardInterrupt(), 130),
        (MemoryError(), 3),
        (OSError(errno.ENOSPC, "No space left on device"), 3),
        (OSError(errno.EFBIG, "File too large"), 3),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 3),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, raising: Callable[[BaseException], None], capsys: Captured
) -> None:
    raising(error)
    assert run(["inspect", "x"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.lstrip().startswith("fr-edge: ")
    assert "Traceback" not in err


def test_ctrl_c_while_a_library_loads(
    raising: Callable[[BaseException], None], capsys: Captured
) -> None:
    error = ImportError("initialization failed")
    error.__cause__ = KeyboardInterrupt()
    raising(error)
    assert run(["inspect", "x"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_bugs_show_their_traceback(raising: Callable[[BaseException], None]) -> None:
    raising(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        run(["inspect", "x"])


def test_json_errors_are_one_document(capsys: Captured) -> None:
    assert run(["inspect", "nowhere.bundle", "--json"]) == 4
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["exit_code"] == 4
    assert "nowhere.bundle" in document["error"]
    assert document["hint"]
    assert "nowhere.bundle" in err


def test_verbose_says_where_an_error_came_from(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "bundle.json").write_text("{")
    assert run(["inspect", str(tmp_path), "-v"]) == 4
    assert "DecodeError" in capsys.readouterr().err


@pytest.mark.parametrize("args", [["calibrat"], ["calibrate"], ["benchmark", "b", "--batch", "0"]])
def test_usage_errors(args: list[str], capsys: Captured) -> None:
    assert run(args) == 2
    assert "--help" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["export", "x.onnx", "--out", ""], "--out is empty"),
        (["export", "", "--out", "b"], "SOURCE is empty"),
        (["calibrate", "b", "--faces", " "], "--faces is empty"),
        (
            ["distill", "tiny", "--faces", "synthetic:4x4", "--out", "b", "--set", ""],
            "--set is empty",
        ),
        (["demo", "--out", "a\x1b[2Jb"], "cannot be printed"),
        (["demo", "--out", os.fsdecode(b"caf\xe9")], "cannot be printed"),
        (["embed", "b", "--faces", "synthetic:2x2", "--out", "e\n.npz"], "cannot be printed"),
        (["demo", "--out", "FILE/below"], "FILE/below"),
        (["export", "NETWORK", "--preset", "raw", "--out", "FILE/below"], "FILE/below"),
        (["export", "NETWORK", "--preset", "raw", "--out", "FILE"], "is a file"),
    ],
)
def test_odd_paths_are_refused_and_nothing_is_written(
    args: list[str], message: str, network: Path, tmp_path: Path, capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("mine")
    args = [str(network) if arg == "NETWORK" else arg for arg in args]
    assert run(args) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert os.listdir(tmp_path) == ["FILE"]


def test_a_misspelt_command_gets_its_neighbour(capsys: Captured) -> None:
    assert run(["calibrat"]) == 2
    assert "calibrate" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_json_quiet_verbose(name: str) -> None:
    command = root.get_command(click.Context(root), name)
    assert command is not None
    flags = {flag for param in command.params for flag in param.opts}
    assert {"--json", "-q", "--quiet", "-v", "--verbose"} <= flags
