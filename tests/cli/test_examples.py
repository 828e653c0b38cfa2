"""Every example that a command's help shows runs, on small files of the names it uses."""

import importlib.util
import re
import shlex
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import product
from pathlib import Path

import click
import numpy as np
import pytest
from bright_detector import write_bright_detector
from networks import write_distinct_people
from PIL import Image

from fr_edge.cli import benchmark
from fr_edge.cli.main import COMMANDS, root, run
from fr_edge.faces.synthetic.render import draw_face

Terminal = Callable[[], AbstractContextManager[list[str]]]

PEOPLE, IMAGES = 12, 3
JUDGED = 80  # people, whom the network tells apart: impostor pairs enough for FAR 1e-3


def examples(name: str) -> list[str]:
    """The example lines of a command, without their `fr-edge`."""
    command = root.get_command(click.Context(root), name)
    assert command is not None
    text = command.example.replace("\\\n", " ")
    return [line.removeprefix("fr-edge ") for line in text.splitlines()]


def write_people(folder: Path, seed: int) -> None:
    for person, image in product(range(PEOPLE), range(IMAGES)):
        path = folder / f"person{person}" / f"{image}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_face(seed + person, image)).save(path)


def write_pairs(file: Path, folder: str) -> None:
    lines = ["fold,path1,path2,same"]
    for person in range(JUDGED):
        other = (person + 1) % JUDGED
        first, fold = f"{folder}/person{person:03}/0.png", person % 3
        lines.append(f"{fold},{first},{folder}/person{person:03}/1.png,1")
        lines.append(f"{fold},{first},{folder}/person{other:03}/1.png,0")
    file.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def files(built: Path, network: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the examples name."""
    home = tmp_path_factory.mktemp("examples")
    shutil.copytree(built, home / "mine.bundle")
    assert run(["verify", str(home / "mine.bundle"), "--engine", "int8", "-q"]) == 0
    (home / "evidence" / "board-1").mkdir(parents=True)
    for report in (home / "mine.bundle" / "reports").glob("verify-*.json"):
        shutil.copy(report, home / "evidence" / "board-1")
    for name in ("other", "t"):
        shutil.copytree(home / "mine.bundle", home / f"{name}.bundle")
    shutil.copy(network, home / "backbone.onnx")
    write_people(home / "faces" / "calibration", 1000)
    write_distinct_people(home / "faces" / "judging", JUDGED, IMAGES)
    write_pairs(home / "faces" / "pairs.csv", "judging")
    write_bright_detector(home / "det_10g.onnx")
    photo = np.full((640, 640, 3), 60, np.uint8)
    photo[96:128, 160:192] = 255
    (home / "photos" / "ann").mkdir(parents=True)
    Image.fromarray(photo).save(home / "photos" / "ann" / "1.png")
    # The header of a plan of TensorRT 10.3, as tests/runtime/trt/test_plan_file.py has it.
    plan = b"ftrt" + bytes(20) + bytes((10, 3, 0, 26)) + bytes(36)
    (home / "mine.bundle" / "engines" / "tensorrt-int8.plan").write_bytes(plan)
    if SIGNS:
        maker = str(home / "maker")
        assert run(["keygen", maker, "-q"]) == 0
        packed = ["pack", str(home / "mine.bundle"), "--out", str(home / "mine.frb")]
        assert run([*packed, "--sign", f"{maker}.key", "-q"]) == 0
    return home


@pytest.fixture
def here(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder, which the example may change, as the working directory."""
    shutil.copytree(files, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def short_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped recipes with one epoch."""
    from fr_edge.distill import recipe

    recipes = tmp_path / "recipes"
    recipes.mkdir()
    for name in ("tiny", "tiny-teacher"):
        text = (recipe._SHIPPED / f"{name}.toml").read_text()
        text = re.sub(r"(?m)^epochs = .*", "epochs = 1", text)
        text = re.sub(r"(?m)^verify_identities = .*", "verify_identities = 4", text)
        (recipes / f"{name}.toml").write_text(text)
    monkeypatch.setattr(recipe, "_SHIPPED", recipes)


SIGNS = importlib.util.find_spec("cryptography") is not None


def codes(name: str) -> set[int]:
    """The exit codes that an example may have on this machine."""
    if name in ("keygen", "pack", "unpack") and not SIGNS:
        return {3, 4}
    if name == "benchmark":
        return {0, 1}  # INVALID on a busy machine
    return {0}


# `fr-edge demo` is run by test_demo.py, on a demo that it has prepared, and `fr-edge accept`, which
# takes minutes, by tests/runtime/acceptance in small.
ELSEWHERE = ("demo", "distill", "accept")


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ELSEWHERE])
@pytest.mark.usefixtures("here")
def test_an_example_runs_and_prints_lines_of_80_columns(
    name: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(benchmark._UNITS, "", 0.05)  # its five seconds are a quarter of one here
    for line in examples(name):
        with terminal():
            assert run(shlex.split(line)) in codes(name), line


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
@pytest.mark.usefixtures("here", "short_recipes")
def test_the_example_that_trains_runs(terminal: Terminal) -> None:
    for line in examples("distill"):
        with terminal():
            assert run(shlex.split(line)) == 0, line


@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_fits_on_a_line(name: str) -> None:
    command = root.get_command(click.Context(root), name)
    assert command is not None
    assert command.example.startswith(f"fr-edge {name} ")
    assert max(map(len, command.example.splitlines())) <= 78
