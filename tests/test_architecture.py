"""The house keeps its shape: imports, packages, sizes, and what `--help` loads."""

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from fr_edge.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
ROOMS = {
    "bundle", "calibration", "cli", "distill", "export", "faces", "fleet", "graph", "metrics", "runtime",
}  # fmt: skip
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
    packages = {
        ".".join(("fr_edge", *file.parent.relative_to(ROOT).parts))
        for file in package_files()
        if file.name == "__init__.py"
    }
    assert set(listed) == packages
    top = {name for name in packages if name.count(".") < 2}
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
    for init in (f for f in package_files() if f.name == "__init__.py" and f.parent != ROOT):
        text = init.read_text()
        assert re.fullmatch(r'"""[^"]+"""\n', text), f"{init.relative_to(ROOT)} is one docstring"


def package_files() -> list[Path]:
    """The package's Python files; its root is the repository's."""
    outside = {".venv", "build", "tests", "docs", "benchmarks", "examples", "demo"}
    tops = [top for top in ROOT.iterdir() if top.name not in outside and top.name[0] != "."]
    return [f for top in tops for f in ([top] if top.suffix == ".py" else top.rglob("*.py"))]


def relative(files: Iterable[Path]) -> list[str]:
    return sorted(file.relative_to(ROOT).as_posix() for file in files)


def public(file: Path) -> list[ast.FunctionDef | ast.ClassDef]:
    body = ast.parse(file.read_text()).body
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [node for node in body if isinstance(node, kinds) and not node.name.startswith("_")]


def parameters(function: ast.FunctionDef) -> list[str]:
    args = function.args
    rest = [arg for arg in (args.vararg, args.kwarg) if arg]
    return [arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs, *rest)]


def undocumented(function: ast.FunctionDef) -> list[str]:
    """The parameters that the docstring's `Args:` does not name."""
    section = re.search(r"(?ms)^Args:\n(.*?)(?=^\S|\Z)", ast.get_docstring(function) or "")
    text = section[1] if section else ""
    named = re.findall(r"(?m)^    (?! )((?:\*{0,2}\w+(?:, )?)+):", text)
    words = {word.strip(" *") for names in named for word in names.split(",")}
    return [name for name in parameters(function) if name not in words]


def repeated(places: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Name -> its places, of names that have several."""
    by_name: dict[str, list[str]] = {}
    for name, place in places:
        by_name.setdefault(name, []).append(place)
    return {name: sorted(files) for name, files in by_name.items() if len(files) > 1}


def test_a_public_name_stands_for_one_thing() -> None:
    """A file of `cli` defines the Click command of its name as `command`."""
    names = [
        (node.name, file.relative_to(ROOT).as_posix())
        for file in package_files()
        for node in public(file)
        if not (file.parent.name == "cli" and node.name == "command")
    ]
    assert repeated(names) == {}


def test_file_names_stand_for_one_concept() -> None:
    """A command's file is named like the function that it calls; the other files' names differ."""
    files = [f for f in package_files() if f.name != "__init__.py" and f.parent.name != "cli"]
    twice = {f"{stem}.py" for stem in ("errors", "layers", "result")}
    assert set(repeated((f.name, str(f)) for f in files)) == twice
    commands = {f"{name.replace('-', '_')}.py" for name in COMMANDS}
    shared = {f.name for f in files} & {f.name for f in (ROOT / "cli").glob("*.py")}
    assert shared - {"__init__.py"} <= commands


def test_public_functions_document_their_arguments() -> None:
    missing = {
        f"{file.relative_to(ROOT).as_posix()}:{node.name}": names
        for file in package_files()
        if file.parent.name != "cli"
        for node in public(file)
        if isinstance(node, ast.FunctionDef) and (names := undocumented(node))
    }
    assert missing == {}


def test_the_argument_check_sees_what_is_missing() -> None:
    text = '''def f(a, b, *rest, key, **more):
    """Do it.

    Args:
        a, rest: The first: a number,
            b: on the next line.
        key: Named.
    """
'''
    function = ast.parse(text).body[0]
    assert isinstance(function, ast.FunctionDef)
    assert undocumented(function) == ["b", "more"]


def test_files_hold_one_concept_each() -> None:
    files = package_files()
    lengths = {file: len(file.read_text().splitlines()) for file in files}
    assert relative(file for file, length in lengths.items() if length > 400) == []
    small = [f for f, length in lengths.items() if length < 45 and f.name != "__init__.py"]
    assert len(small) <= 10, relative(small)
    outside_cli = [f for f in files if f.name != "__init__.py" and f.parent.name != "cli"]
    assert len(outside_cli) <= 245
    rooms = Counter(f.parent for f in files if f.name != "__init__.py")
    assert max(count for room, count in rooms.items() if room.name != "cli") <= 20
    assert relative(file for file in files if not file.read_text().startswith('"""')) == []


def test_variables_are_named_for_what_they_hold() -> None:
    text = "\n".join(file.read_text() for file in package_files())
    assert len(re.findall(r"\bfound(?:: [^=\n]+)? = ", text)) < 20
