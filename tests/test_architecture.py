"""The house keeps its shape: imports, packages, sizes, and what `--help` loads."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("calibration", "cli", "distill", "export", "faces", "runtime")
HEAVY = ("torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "numpy", "PIL", "rich")

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def test_imports_flow_as_the_design_says() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_every_package_is_listed() -> None:
    with (ROOT / "pyproject.toml").open("rb") as stream:
        listed = tomllib.load(stream)["tool"]["setuptools"]["packages"]
    found = {
        ".".join(("fr_edge", *file.parent.relative_to(ROOT).parts))
        for file in ROOT.rglob("__init__.py")
        if not {".venv", "build"} & set(file.relative_to(ROOT).parts)
    }
    assert set(listed) == found
    top = {name for name in found if name.count(".") < 2}
    assert top == {"fr_edge", *(f"fr_edge.{room}" for room in ROOMS)}


@pytest.mark.parametrize("args", [["--help"], ["calibrate", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(args: list[str]) -> None:
    code = (
        "import json, sys\n"
        "from fr_edge.cli.main import run\n"
        f"code = run({args!r})\n"
        "print(json.dumps([code, sorted({m.split('.')[0] for m in sys.modules})]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    status, modules = json.loads(out.stdout.splitlines()[-1])
    assert status == 0
    assert not set(HEAVY) & set(modules)


def test_stages_cost_nothing_to_import() -> None:
    for room in (r for r in ROOMS if r != "cli"):
        text = (ROOT / room / "__init__.py").read_text()
        assert re.fullmatch(r'"""[^"]+"""\n', text), f"{room}/__init__.py is one docstring"


def test_files_have_one_reason_each() -> None:
    files = [*ROOT.glob("*.py"), *(f for room in ROOMS for f in (ROOT / room).glob("*.py"))]
    lengths = {f.relative_to(ROOT).as_posix(): len(f.read_text().splitlines()) for f in files}
    assert {name: n for name, n in lengths.items() if n > 300} == {}
    undocumented = [f.name for f in files if not f.read_text().startswith('"""')]
    assert undocumented == []
