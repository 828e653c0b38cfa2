"""README's and docs/jetson.md's commands, as they stand there, on each pretend board.

The blocks are run by bash. What the boards are made of: shell.py. Exit code 0 means that the
commands and texts fit together; speed, fusion and numbers of a GPU are not shown.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from board_trees import BOARDS, Board
from networks import write_network
from shell import Shell, private

ROOT = Path(__file__).parents[2]
JETSONS = [name for name, board in BOARDS.items() if board.model]
CARDS = [name for name, board in BOARDS.items() if not board.model]
ACCEPT = "## Everything in one command"
THREE = "## The three commands"
Open = Callable[..., Shell]


def blocks(page: str, heading: str = "") -> list[str]:
    """The bash blocks and commands of a page, below a heading up to the next one of its kind."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if heading:
        text = re.split(r"(?m)^## ", text.split(f"\n{heading}\n", 1)[1])[0]
    blocks = re.findall(r"```(bash|console)\n(.*?)```", text, re.DOTALL)
    return [
        body if kind == "bash" else "\n".join(re.findall(r"(?m)^\$ (.*)", body))
        for kind, body in blocks
    ]


def for_board(block: str, board: Board) -> str:
    """The two lines that the page says to take from a table, of this board."""
    row = next(
        line for line in (ROOT / "docs/jetson.md").read_text().splitlines()
        if line.startswith("| ") and board.jetpack in line.split("|")[1].replace(" ", "").split(",")
    )  # fmt: skip
    install = re.search(r"`(pip install .*?)`", row)
    assert install is not None
    block = re.sub(r'(?m)^pip install "cuda-python[^#\n]*', f"{install[1]} ", block)
    fastest = next(number for number, name in board.modes.items() if "MAXN" in name)
    return block.replace("nvpmodel -m 2", f"nvpmodel -m {fastest}")


def proven_int8(bundle: Path, version: str) -> None:
    """The engine's sidecar has INT8 layers, as TensorRT reported them; its figures are VALID."""
    (sidecar,) = bundle.glob(f"engines/tensorrt-{version}-*-int8.plan.json")
    facts = json.loads(sidecar.read_text())
    assert facts["layers"]["int8"] == 4
    assert facts["tensorrt"] == version
    for path in bundle.glob("reports/benchmark-int8-tensorrt-*.json"):
        assert json.loads(path.read_text())["verdict"] == "VALID"


def accepted(shell: Shell, version: str) -> None:
    """The board passed; its file has all engines, needed less than ten minutes, and tells no names."""
    (file,) = shell.work.glob("accept-*.json")
    text = file.read_text()
    told = json.loads(text)
    assert (told["verdict"], told["reasons"], told["left"]) == ("PASSED", [], [])
    kinds = [(check["bundle"], check["precision"]) for check in told["engines"]]
    assert kinds == [(b, p) for b in ("sample", "yours") for p in ("int8", "fp16", "fp32")]
    assert {choice["bundle"] for choice in told["choices"]} == {"sample", "yours"}
    assert told["machine"]["libraries"]["tensorrt"] == version
    assert told["seconds"] < 600
    for check in told["engines"]:
        assert set(check["replay"]["replayed"].values()) == {True}
        ratio = check["trtexec"]["compute_ratio"]
        assert (ratio is not None) is bool(shell.board.trtexec), check["trtexec"]
    assert private(text, shell) == []


@pytest.mark.parametrize("name", JETSONS)
def test_a_jetson(open_board: Open, calibrated_mini: Path, judging: Path, name: str) -> None:
    shell, board = open_board(name, sample=str(calibrated_mini)), BOARDS[name]
    for bundle in ("mine.bundle", "student.bundle"):
        shutil.copytree(calibrated_mini, shell.work / bundle)
    (shell.work / "faces").mkdir()
    (shell.work / "faces" / "judging").symlink_to(judging)
    for page, heading in (("docs/jetson.md", ""), ("README.md", "## On a Jetson")):
        (shell.home / "installed").write_text("")
        text = "\n".join(blocks(page, heading))
        done = shell.run(for_board(text, board))
        assert done.code == 0, f"{done.out[-3000:]}\n{done.err[-3000:]}\n{shell.log()}"
        assert re.search(r"^tensorrt +ran ", done.out, re.MULTILINE)
        assert "CUDA graph of batch" not in done.err
    proven_int8(shell.work / "mine.bundle", board.tensorrt)
    accepted(shell, board.tensorrt)
    assert len((shell.work / "soak.jsonl").read_text().splitlines()) > 300  # in an hour


def write_pairs(folder: Path, faces: Path) -> None:
    """Every person's faces with each other and with those of the next ten people."""
    people = sorted(path.name for path in faces.iterdir())
    rows = ["fold,path1,path2,same"]
    for index, person in enumerate(people):
        fold = index % 10
        files = [f"judging/{person}/{n}.png" for n in range(3)]
        rows += [f"{fold},{a},{b},1" for a in files for b in files if a < b]
        for step in range(1, 11):
            other = people[(index + step) % len(people)]
            rows += [f"{fold},{a},judging/{other}/{n}.png,0" for a in files for n in range(2)]
    (folder / "pairs.csv").write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize("name", CARDS)
def test_a_card(open_board: Open, calibrated_mini: Path, judging: Path, name: str) -> None:
    shell, board = open_board(name, sample=str(calibrated_mini)), BOARDS[name]
    shell.ready()
    faces = shell.work / "faces"
    faces.mkdir()
    (faces / "judging").symlink_to(judging)
    (faces / "calibration").symlink_to(judging)
    write_pairs(faces, judging)
    write_network(shell.work / "backbone.onnx")
    first, *rest = blocks("README.md")
    text = "\n".join([first, *(b for b in rest if "--protocol" in b)])
    three, _ = blocks("docs/jetson.md", THREE)  # and the hour that boards run
    done = shell.run("\n".join([text, three, *blocks("docs/jetson.md", ACCEPT)]))
    assert done.code == 0, f"{done.out[-3000:]}\n{done.err[-3000:]}\n{shell.log()}"
    assert "CUDA graph of batch" not in done.err
    assert (shell.work / "mine.bundle" / "report.html").stat().st_size > 100_000
    proven_int8(shell.work / "mine.bundle", board.tensorrt)
    accepted(shell, board.tensorrt)
