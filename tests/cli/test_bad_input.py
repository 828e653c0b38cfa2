"""Bad input: one clear message, the right exit code, and the bundle as it was before."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fr_edge.cli.main import run

Captured = pytest.CaptureFixture[str]


def content(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def nothing(folder: Path) -> None:
    folder.rmdir()


def empty(folder: Path) -> None:
    pass


def text_files(folder: Path) -> None:
    (folder / "someone").mkdir()
    (folder / "someone" / "notes.txt").write_text("no face")


def text_named_jpeg(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir()
        for number in "12":
            (folder / name / f"{number}.jpg").write_text("no face")


def truncated_jpeg(folder: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (112, 112, 3), np.uint8)
    for name in ("a", "b"):
        (folder / name).mkdir()
        for number in "12":
            Image.fromarray(picture).save(folder / name / f"{number}.jpg")
    whole = (folder / "a" / "1.jpg").read_bytes()
    (folder / "a" / "1.jpg").write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (nothing, "no faces at"),
        (empty, "no images"),
        (text_files, "no images"),
        (text_named_jpeg, "a/1.jpg"),
        (truncated_jpeg, "a/1.jpg"),
    ],
)
@pytest.mark.parametrize("command", ["calibrate", "embed", "verify", "evaluate"])
def test_faces_that_cannot_be_used(
    command: str, spoil: Callable[[Path], None], message: str, bundle: Path, tmp_path: Path,
    capsys: Captured,
) -> None:  # fmt: skip
    faces = tmp_path / "faces"
    faces.mkdir()
    spoil(faces)
    before = content(bundle)
    flag = "--protocol" if command == "evaluate" else "--faces"
    rest = ["--out", str(tmp_path / "e.npz")] if command == "embed" else []
    assert run([command, str(bundle), flag, str(faces), *rest]) == 4
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert content(bundle) == before
    assert not (tmp_path / "e.npz").exists()


@pytest.mark.parametrize("data", [b"", b"no model", b"\x08\x07" * 50, b"\xff" * 100])
def test_an_onnx_that_is_none(data: bytes, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    out = tmp_path / "a.bundle"
    args = ["export", str(tmp_path / "model.onnx"), "--out", str(out), "--preset", "raw"]
    assert run(args) == 4
    assert "model.onnx" in capsys.readouterr().err
    assert not out.exists()


def test_export_never_guesses_the_contract(network: Path, tmp_path: Path, capsys: Captured) -> None:
    assert run(["export", str(network), "--out", str(tmp_path / "a.bundle")]) == 2
    assert "--preset" in capsys.readouterr().err
    assert not (tmp_path / "a.bundle").exists()


COMMANDS = (
    ["calibrate", "--faces", "synthetic:4x2"],
    ["build-engine", "--fp32"],
    ["verify"],
    ["evaluate", "--protocol", "synthetic:24x2"],
    ["benchmark", "--duration", "0.1"],
    ["report"],
    ["inspect"],
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
def test_a_bundle_with_a_changed_file(command: list[str], bundle: Path, capsys: Captured) -> None:
    name = "model.onnx"
    if command[0] in ("evaluate", "benchmark"):  # which read the engine alone
        name = "engines/onnxruntime-int8.onnx"
    model = bundle / name
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    before = content(bundle)
    assert run([command[0], str(bundle), *command[1:]]) == 4
    err = capsys.readouterr().err
    assert f"{name} was changed" in err
    assert content(bundle) == before


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
def test_a_bundle_of_a_newer_schema(command: list[str], bundle: Path, capsys: Captured) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["schema"] += 1
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    before = content(bundle)
    assert run([command[0], str(bundle), *command[1:]]) == 4
    assert "upgrade fr-edge" in capsys.readouterr().err
    assert content(bundle) == before


def fr_edge(*args: str, **settings: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "fr_edge", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        **settings,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize("limit", [100, 2000, 20000])
def test_a_full_disk(limit: int, bundle: Path) -> None:
    """No file may grow beyond `limit` bytes: the kernel refuses the write, as on a full disk."""
    before = content(bundle)
    done = fr_edge(
        "calibrate", str(bundle), "--faces", "synthetic:8x2", "-q",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    _, err = done.communicate(timeout=120)
    assert done.returncode == 3, err
    assert err.startswith("fr-edge: ")
    assert "Traceback" not in err
    assert content(bundle) == before


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt-rtx"])
def test_a_disk_that_fills_up_under_an_engine(backend: str, bundle: Path) -> None:
    if backend == "tensorrt-rtx":
        pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    before = content(bundle)
    done = fr_edge(
        "build-engine", str(bundle), "--int8", "--backend", backend, "-q",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)),
    )  # fmt: skip
    _, err = done.communicate(timeout=120)
    assert done.returncode == 3, err
    assert "full" in err
    assert "Traceback" not in err
    assert content(bundle) == before


def test_ctrl_c(bundle: Path) -> None:
    before = content(bundle)
    running = fr_edge("calibrate", str(bundle), "--faces", "synthetic:500x20", "--limit", "9000")
    deadline = time.monotonic() + 60
    while not (bundle / ".draft").exists() and time.monotonic() < deadline:
        if _threads(running.pid) > 1:  # onnxruntime is at work
            break
        time.sleep(0.05)
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert content(bundle) == before


def _threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def test_a_reader_that_goes_away_is_no_error(bundle: Path) -> None:
    running = subprocess.run(
        f"{sys.executable} -m fr_edge inspect {bundle} --json | true",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in running.stderr
