"""Installations without torch, and systems that are not Linux: a sentence, never a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else real(name, *rest)
"""

WITHOUT_POSIX = """
import importlib.util, os, sys
import numpy, onnx, onnxruntime, PIL.Image, rich.progress, logging, tempfile, subprocess, click
if WITH_TORCH and importlib.util.find_spec("torch"):
    import torch, torch.distributed
sys.platform = SYSTEM
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "resource", "termios", "grp", "pwd"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
for name in ("fcntl", "resource", "grp", "pwd"):
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Absent())
for name in ("sched_getaffinity", "sched_setaffinity", "posix_fallocate", "getuid", "sysconf"):
    if hasattr(os, name):
        delattr(os, name)
"""


def without_posix(system: str, *, torch: bool) -> str:
    return WITHOUT_POSIX.replace("SYSTEM", repr(system)).replace("WITH_TORCH", str(torch))


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "NO_COLOR": "1"},
    )


@pytest.mark.parametrize(
    "line",
    [
        ["demo", "--out", "demo"],
        ["distill", "tiny-teacher", "--faces", "synthetic:4x2", "--out", "teacher.bundle"],
    ],
    ids=["demo", "distill"],
)
def test_training_without_torch_names_the_remedy(line: list[str], tmp_path: Path) -> None:
    call = f"from fr_edge.cli.main import run\nsys.exit(run({line!r}))\n"
    done = python(WITHOUT_TORCH + call, tmp_path)
    assert done.returncode == 3, done.stderr
    assert "torch" in done.stderr
    assert "'torch>=2.4'" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_are_told_linux_only(system: str, tmp_path: Path) -> None:
    call = (
        "from fr_edge.cli.main import run\n"
        "assert run(['--help']) == 0\n"
        "assert run(['verify', '--help']) == 0\n"
        "sys.exit(run(['inspect', 'mine.bundle']))\n"
    )
    done = python(without_posix(system, torch=False) + call, tmp_path)
    assert done.returncode == 3, done.stderr
    assert f"Linux only, and this is {system}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_no_module_needs_linux_to_be_imported(system: str, tmp_path: Path) -> None:
    """What a test or a notebook imports on another system; torch and TensorRT apart."""
    call = """
import pkgutil, traceback
import fr_edge
bad = []
for module in pkgutil.walk_packages(fr_edge.__path__, "fr_edge."):
    if not module.name.startswith(ROOMS):
        continue
    try:
        __import__(module.name)
    except ModuleNotFoundError as error:
        if error.name in ("fcntl", "resource"):
            bad.append(f"{module.name}: {error}")
    except Exception as error:
        bad.append(f"{module.name}: {error!r}")
print("\\n".join(bad))
sys.exit(bool(bad))
"""
    rooms = ("distill", "export", "calibration", "runtime", "graph", "metrics", "bundle", "faces")
    prefixes = tuple(f"fr_edge.{room}" for room in (*rooms, "cli", "files", "documents"))
    code = without_posix(system, torch=True) + call.replace("ROOMS", repr(prefixes))
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
