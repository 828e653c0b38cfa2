"""The commands of a board, on doubles of TensorRT 8.6 to 11.4 and of CUDA: which calls, which words.

Nothing here proves speed, fusion or numbers of a GPU.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorrt_builder_double import CudaDouble, LibraryDouble

from fr_edge.bundle.bundle import open_bundle
from fr_edge.cli.main import run
from fr_edge.runtime import fingerprint, selftest, tensorrt_session
from fr_edge.runtime.cuda import interface
from fr_edge.runtime.fingerprint import find_engine
from fr_edge.runtime.machine import backends, device
from fr_edge.runtime.machine.device import Gpu, GpuList
from fr_edge.runtime.session import open_session
from fr_edge.runtime.trt import bundle_plan

UNTOLD = "N/A due to dynamic shapes"
BOARDS = {  # module's version, header's version, CUDA
    "jetpack6.0": ("8.6.2", (8, 6, 2, 3), "12.2"),
    "jetpack6.2": ("10.3.0", (10, 3, 0, 30), "12.6"),
    "jetpack7.0": ("10.13.3.9", (10, 13, 3, 9), "13.0"),
    "datacenter11": ("11.4.0.106", (11, 4, 0, 106), "13.2"),
}


def row(node: Any, shaped: bool, int8: bool) -> dict[str, Any]:
    """A convolution in the inspector's JSON: tensors have types only with shapes."""
    kind = "Int8" if int8 else "FP16"
    form = f"Thirty-two wide channel vectorized row major {kind} format" if shaped else UNTOLD
    return {
        "Name": node.name,
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "x", "Format/Datatype": form}],
        "Outputs": [{"Name": "y", "Format/Datatype": form}],
        "Weights": {"Type": kind} if shaped else {},
    }


class Board:
    """A pretend board: the module `tensorrt`, a GPU and the CUDA double that sessions open."""

    def __init__(self, name: str) -> None:
        version, header, cuda = BOARDS[name]
        self.trt = LibraryDouble(version)
        self.trt.header = header
        self.int8 = True
        self.trt.row = lambda node, shaped: row(node, shaped, self.int8)
        self.cuda = CudaDouble()
        gpu = Gpu("Orin", "8.7", 7620, integrated=True, bus_id="")
        self.gpus = GpuList((gpu,), cuda, "")


@pytest.fixture(params=BOARDS)
def board(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Board:
    made = Board(request.param)
    monkeypatch.setitem(sys.modules, "tensorrt", made.trt)
    for module in (backends, device, interface, bundle_plan):
        monkeypatch.setattr(module, "find_gpus", lambda: made.gpus)
    monkeypatch.setattr(tensorrt_session, "open_cuda", lambda: made.cuda)
    return made


def replayed(board: Board) -> int:
    before, board.cuda.replays = board.cuda.replays, 0
    return before


def test_build_verify_and_benchmark(board: Board, mini: Path, capsys: Any) -> None:
    assert run(["build-engine", str(mini), "--int8", "--backend", "tensorrt", "--json"]) == 0
    built = json.loads(capsys.readouterr().out)
    assert built["layers"]["int8"] > 0
    assert run(["check-engine", str(mini / built["engine"]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loads"] is True
    replayed(board)
    with open_session(mini, "int8", "tensorrt") as session:
        images = np.random.default_rng(1).integers(0, 256, (3, 112, 112, 3), np.uint8)
        first, second = session.embed(images), session.embed(images[::-1].copy())
        assert np.abs(first - second[::-1]).max() <= 1e-4 * np.abs(first).max()
    assert replayed(board) == 2
    run(["verify", str(mini), "--engine", "int8", "--backend", "tensorrt", "--json"])
    verified = json.loads(capsys.readouterr().out)
    assert verified["cosine"]["min"] > 0.9
    assert replayed(board) > 0
    line = ["benchmark", str(mini), "--engine", "int8", "--backend", "tensorrt", "--batch", "2"]
    assert run([*line, "--duration", "0.3", "--layers", "--allow-invalid", "--json"]) == 0
    timed = json.loads(capsys.readouterr().out)["runs"][0]
    assert {"h2d", "compute", "d2h", "enqueue"} <= set(timed["breakdown_ms"])
    assert timed["layers"][0]["name"] == "conv"
    assert replayed(board) > 0


def test_one_bundle_serves_many_boards(board: Board, mini: Path, capsys: Any) -> None:
    def build() -> str:
        assert run(["build-engine", str(mini), "--fp32", "--backend", "tensorrt", "--json"]) == 0
        return str(json.loads(capsys.readouterr().out)["engine"])

    def opened() -> str:
        with open_session(mini, "fp32", "tensorrt") as session:
            return session.file

    orin, version = build(), board.trt.__version__
    assert orin == f"engines/tensorrt-{version}-orin-fp32.plan"
    first, board.gpus = board.gpus, GpuList((Gpu("L4", "8.9", 23034, integrated=False),), "", "")
    assert build() == f"engines/tensorrt-{version}-l4-fp32.plan" == opened()
    board.gpus = first
    assert opened() == orin
    bundle = open_bundle(mini)
    assert find_engine(bundle, "tensorrt", "int8") is None
    assert find_engine(bundle, "tensorrt-rtx", "fp32") is None


def test_a_dla_engine_is_opened_on_its_core(board: Board, mini: Path) -> None:
    if board.trt.__version__.startswith("10.13"):
        pytest.skip("TensorRT 10.8 to 11.3 have no DLA")
    board.trt.dla_cores = 2
    line = ["build-engine", str(mini), "--fp16", "--backend", "tensorrt", "--dla", "1"]
    assert run([*line, "--batch", "2,2,2"]) == 0
    board.trt.calls.clear()
    board.trt.calls.append(("set_shape", "face", *[(2, 3, 112, 112)] * 3))
    open_session(mini, "fp16", "tensorrt").close()
    assert board.trt.called("DLA_core") == [[1]]


def test_the_self_test_runs_and_replays(board: Board) -> None:
    tried = {result.backend: result for result in selftest.self_test()}
    assert tried["tensorrt"].outcome == "ran", tried["tensorrt"].detail
    assert "int8 deviates" in tried["tensorrt"].detail
    assert board.cuda.replays > 0


def test_the_self_test_finds_what_a_user_would_meet(board: Board, monkeypatch: Any) -> None:
    board.int8 = False
    (tried,) = (t for t in selftest.self_test() if t.backend == "tensorrt")
    assert (tried.outcome, "computes in INT8" in tried.detail) == ("failed", True)
    board.int8, board.trt.header = True, (7, 1, 0, 0)
    (tried,) = (t for t in selftest.self_test() if t.backend == "tensorrt")
    assert (tried.outcome, "built with tensorrt 7.1.0.0" in tried.detail) == ("failed", True)


def test_an_engine_that_computes_no_int8_is_refused(board: Board, mini: Path, capsys: Any) -> None:
    board.int8 = False
    assert run(["build-engine", str(mini), "--int8", "--backend", "tensorrt"]) == 1
    assert "computes in INT8" in capsys.readouterr().err


def test_a_plan_of_another_version_or_card_is_refused(
    board: Board, mini: Path, capsys: Any, monkeypatch: Any
) -> None:
    line = ["build-engine", str(mini), "--fp32", "--backend", "tensorrt", "--json"]
    assert run(line) == 0
    engine = str(mini / json.loads(capsys.readouterr().out)["engine"])
    version = board.trt.__version__
    board.trt.__version__ = "10.7.0"
    assert run(["verify", str(mini), "--engine", "fp32", "--backend", "tensorrt"]) == 3
    assert "10.7.0" in capsys.readouterr().err
    assert run(["check-engine", engine]) == 3
    board.trt.__version__ = version
    other = Gpu("H100", "9.0", 81559, integrated=False, bus_id="")
    board.gpus = GpuList((other,), board.gpus.driver, "")
    assert fingerprint.machine_fingerprint("tensorrt")["gpu"] == "H100"
    assert run(["verify", str(mini), "--engine", "fp32", "--backend", "tensorrt"]) == 3
    assert "'Orin', this machine has 'H100'" in capsys.readouterr().err
