"""Blocks of README and docs that no other test runs, literally and one after another.

tests/test_code_blocks.py lists for each block of each page who runs it. Those that take minutes run where FR_EDGE_SLOW
is set, as .ci/run does.
"""

import os
import re
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from bright_detector import draw_bright_cell, write_conv_detector
from PIL import Image

from fr_edge.bundle.bundle import open_bundle
from fr_edge.bundle.trust import list_signatures
from fr_edge.cli import benchmark
from fr_edge.cli.main import run

ROOT = Path(__file__).parents[2]

slow = pytest.mark.skipif(
    not os.environ.get("FR_EDGE_SLOW"), reason="takes minutes: FR_EDGE_SLOW is not set"
)


def block(page: str, start: str) -> list[str]:
    """The lines of the one block of a page that begins so; continued lines are joined."""
    blocks = re.findall(r"```(?:bash|python)\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    (text,) = [text for text in blocks if text.startswith(start)]
    return text.replace("\\\n", " ").splitlines()


def run_lines(lines: list[str], *changes: tuple[str, str]) -> None:
    """Run commands; judgements may fail, for the tests' network and detector know no faces."""
    for line in lines:
        for old, new in changes:
            line = line.replace(old, new)
        words = shlex.split(line, comments=True)
        if words[0] == "export":  # the variables are the test's
            continue
        assert words[0] == "fr-edge"
        judges = words[1] in ("verify", "benchmark", "run")
        assert run([*words[1:], "-q"]) in ((0, 1) if judges else (0,)), line


@pytest.fixture
def home(
    built: Path, network: Path, distinct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The files that the pages name, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(benchmark._UNITS, "", 0.02)  # seconds of a benchmark
    shutil.copytree(built, "mine.bundle")
    shutil.copy(network, "backbone.onnx")
    write_conv_detector(Path("det_10g.onnx"))
    Path("people").symlink_to(distinct)
    for number in range(12):
        for part, person in (("calibration", 0), ("judging", number // 4)):
            file = Path("photographs", part, f"{person}", f"{number:02}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw_bright_cell(number + 9, number)).save(file)
    return tmp_path


@slow
def test_detectors_and_photographs(home: Path) -> None:
    run_lines(block("README.md", "fr-edge export det_10g.onnx"))
    run_lines(block("docs/frame-engine.md", "fr-edge build-engine"))
    run_lines(block("docs/recognition.md", "fr-edge export det_10g.onnx"))
    code = "\n".join(block("docs/frame-engine.md", "from fr_edge import open_session"))
    frame = draw_bright_cell(9, 1)
    landmarks = np.array([[[38, 52], [74, 52], [56, 72], [41, 92], [71, 92]]], np.float32)
    names = {"frame": frame, "landmarks": landmarks}
    exec(compile(code, "frame-engine.md", "exec"), names)
    assert names["embeddings"].shape[0] == 1


def test_signed_packs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With onnxruntime in TensorRT's place."""
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    run_lines(block("docs/packs.md", "fr-edge keygen maker"))
    assert Path("fresh.bundle/bundle.json").is_file()
    run_lines(["fr-edge keygen board"])
    Path("trusted").mkdir()
    for key in ("maker.pub", "board.pub"):
        shutil.copy(key, "trusted")
    shutil.rmtree("mine.bundle")
    monkeypatch.setenv("FR_EDGE_REQUIRE_SIGNATURE", "1")
    monkeypatch.setenv("FR_EDGE_TRUSTED_KEYS", str(home / "trusted"))
    run_lines(block("docs/packs.md", "export FR_EDGE_REQUIRE"), ("tensorrt", "onnxruntime"))
    rows = [row for row in list_signatures(open_bundle("mine.bundle")) if row.trusted]
    assert {row.name for row in rows} == {"maker", "board"}
    assert sum(row.files for row in rows if row.name == "board") >= 2  # the engine and the report


@slow
@pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
def test_a_network_of_your_own(home: Path) -> None:
    import torch

    Path("network.py").write_text(
        "from torch import nn\n\n\ndef make_network():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3, 16), nn.Flatten(), nn.Linear(392, 16))\n"
    )
    names: dict[str, object] = {}
    exec(Path("network.py").read_text(), names)
    torch.save(names["make_network"]().state_dict(), "weights.pth")  # type: ignore[operator]
    shutil.rmtree("mine.bundle")
    run_lines(block("docs/own-network.md", "fr-edge export weights.pth"))
    assert Path("mine.bundle/model.onnx").is_file()
