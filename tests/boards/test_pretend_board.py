"""The commands of a board within this process, on the doubles: which calls, which words.

Nothing here proves speed, fusion or numbers of a GPU.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pretend import BOARDS, H100, L4, PretendBoard

from fr_edge.bundle.bundle import open_bundle
from fr_edge.cli.main import run
from fr_edge.runtime import fingerprint, selftest
from fr_edge.runtime.fingerprint import find_engine
from fr_edge.runtime.machine.backends import lacking
from fr_edge.runtime.session import open_session


@pytest.fixture(params=BOARDS)
def board(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> PretendBoard:
    return PretendBoard(request.param, monkeypatch)


@pytest.mark.parametrize("board", ["jetpack6.2"], indirect=True)
def test_build_verify_and_benchmark(board: PretendBoard, mini: Path, capsys: Any) -> None:
    assert run(["build-engine", str(mini), "--int8", "--backend", "tensorrt", "--json"]) == 0
    built = json.loads(capsys.readouterr().out)
    assert built["layers"]["int8"] > 0
    assert run(["check-engine", str(mini / built["engine"]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loads"] is True
    board.replayed()
    with open_session(mini, "int8", "tensorrt") as session:
        images = np.random.default_rng(1).integers(0, 256, (3, 112, 112, 3), np.uint8)
        first, second = session.embed(images), session.embed(images[::-1].copy())
        assert np.abs(first - second[::-1]).max() <= 1e-4 * np.abs(first).max()
    assert board.replayed() == 2
    run(["verify", str(mini), "--engine", "int8", "--backend", "tensorrt", "--json"])
    verified = json.loads(capsys.readouterr().out)
    assert verified["cosine"]["min"] > 0.9
    assert verified["golden"]["repeat_min_cosine"] > 0.9999
    assert verified["artifact"]["execution"] == "CUDA graph"
    assert board.replayed() > 0
    line = ["benchmark", str(mini), "--engine", "int8", "--backend", "tensorrt", "--batch", "2"]
    assert run([*line, "--duration", "0.3", "--layers", "--allow-invalid", "--json"]) == 0
    timed = json.loads(capsys.readouterr().out)["runs"][0]
    assert {"h2d", "compute", "d2h", "enqueue"} <= set(timed["breakdown_ms"])
    assert timed["layers"][0]["ms"] > 0
    assert timed["min_cosine_during"] > 0.9999
    assert board.replayed() > 0


@pytest.mark.parametrize("board", ["jetpack6.2"], indirect=True)
def test_replays_that_compute_nothing_are_found(
    board: PretendBoard, mini: Path, capsys: Any
) -> None:
    """The first replays are right, later ones leave the embeddings of an earlier batch."""
    line = ["--backend", "tensorrt", "--json"]
    assert run(["build-engine", str(mini), "--fp32", "--batch", "1,8,8", *line]) == 0
    capsys.readouterr()
    for working in (1, 2, 3):
        board.replayed()
        board.cuda.working_replays = working
        assert run(["verify", str(mini), "--engine", "fp32", *line]) == 1
        verified = json.loads(capsys.readouterr().out)
        assert (verified["verdict"], verified["artifact"]["execution"]) == (
            "FAILED",
            "CUDA graph and queued calls",
        )
    board.replayed()
    assert run(["benchmark", str(mini), "--engine", "fp32", "--duration", "0.3", *line]) == 1
    timed = json.loads(capsys.readouterr().out)
    assert timed["verdict"] == "INVALID"
    assert any("cosine" in reason for reason in timed["runs"][0]["reasons"])


def test_one_bundle_serves_many_boards(board: PretendBoard, mini: Path, capsys: Any) -> None:
    def build() -> str:
        assert run(["build-engine", str(mini), "--fp32", "--backend", "tensorrt", "--json"]) == 0
        return str(json.loads(capsys.readouterr().out)["engine"])

    def opened() -> str:
        with open_session(mini, "fp32", "tensorrt") as session:
            return session.file

    orin, version = build(), board.trt.module.__version__
    assert orin == f"engines/tensorrt-{version}-orin-fp32.plan"
    (first,) = board.gpus.gpus
    board.have(L4)
    assert build() == f"engines/tensorrt-{version}-l4-fp32.plan" == opened()
    board.have(first)
    assert opened() == orin
    bundle = open_bundle(mini)
    assert find_engine(bundle, "tensorrt", "int8") is None
    assert find_engine(bundle, "tensorrt-rtx", "fp32") is None


def test_a_dla_engine_is_opened_on_its_core(board: PretendBoard, mini: Path) -> None:
    board.trt.dla_cores = 2
    line = ["build-engine", str(mini), "--fp16", "--backend", "tensorrt", "--dla", "1"]
    assert run([*line, "--batch", "2,2,2"]) == 0
    board.trt.transcript.clear()
    open_session(mini, "fp16", "tensorrt").close()
    assert board.trt.called("Runtime.DLA_core") == ["Runtime.DLA_core = 1"]


@pytest.mark.parametrize("board", ["jetpack6.2"], indirect=True)
def test_tensorrt_rtx_has_no_kernels_for_a_jetson(board: PretendBoard) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    assert lacking("tensorrt-rtx") == "TensorRT-RTX has no kernels for compute capability 8.7"
    assert lacking("tensorrt-rtx", build=True) == ""  # for other GPUs
    board.have(L4)
    assert lacking("tensorrt-rtx") == ""


def keep_fp16(node: str, precision: str, depthwise: bool) -> str | None:
    return "fp16" if precision == "int8" else None


def keep_all(node: str, precision: str, depthwise: bool) -> str | None:
    return None


@pytest.mark.parametrize("board", ["jetpack6.2", "datacenter11"], indirect=True)
def test_the_self_test_runs_and_replays(board: PretendBoard, monkeypatch: Any) -> None:
    monkeypatch.setattr(selftest, "BACKENDS", ("tensorrt",))
    tried = {result.backend: result for result in selftest.self_test()}
    assert tried["tensorrt"].outcome == "ran", tried["tensorrt"].detail
    assert "int8 deviates" in tried["tensorrt"].detail
    assert board.cuda.replays == 2 * 3  # each engine: the check of the graph, and two runs more


@pytest.mark.parametrize("board", ["jetpack6.2", "datacenter11"], indirect=True)
def test_the_self_test_finds_what_a_user_would_meet(board: PretendBoard, monkeypatch: Any) -> None:
    monkeypatch.setattr(selftest, "BACKENDS", ("tensorrt",))
    board.trt.keeps = keep_fp16
    (tried,) = (t for t in selftest.self_test() if t.backend == "tensorrt")
    assert (tried.outcome, "computes in INT8" in tried.detail) == ("failed", True)
    board.trt.keeps, board.trt.header = keep_all, (7, 1, 0, 0)
    (tried,) = (t for t in selftest.self_test() if t.backend == "tensorrt")
    assert (tried.outcome, "built with tensorrt 7.1.0.0" in tried.detail) == ("failed", True)


def test_an_engine_that_computes_no_int8_is_refused(
    board: PretendBoard, mini: Path, capsys: Any
) -> None:
    board.trt.keeps = keep_fp16
    assert run(["build-engine", str(mini), "--int8", "--backend", "tensorrt"]) == 1
    assert "computes in INT8" in capsys.readouterr().err


def test_a_plan_of_another_version_or_card_is_refused(
    board: PretendBoard, mini: Path, capsys: Any, monkeypatch: Any
) -> None:
    line = ["build-engine", str(mini), "--fp32", "--backend", "tensorrt", "--json"]
    assert run(line) == 0
    engine = str(mini / json.loads(capsys.readouterr().out)["engine"])
    version = board.trt.module.__version__
    board.trt.module.__version__ = "10.7.0"
    assert run(["verify", str(mini), "--engine", "fp32", "--backend", "tensorrt"]) == 3
    assert "10.7.0" in capsys.readouterr().err
    assert run(["check-engine", engine]) == 3
    board.trt.module.__version__ = version
    lone = mini.with_name("lone.plan")
    lone.write_bytes(Path(engine).read_bytes())
    capsys.readouterr()
    assert run(["check-engine", str(lone)]) == 0  # the header tells no GPU
    assert "its GPU is not known" in capsys.readouterr().out
    assert run(["check-engine", engine]) == 0
    assert "should load here" in capsys.readouterr().out
    board.have(H100)
    assert fingerprint.machine_fingerprint("tensorrt")["gpu"] == "H100"
    assert run(["verify", str(mini), "--engine", "fp32", "--backend", "tensorrt"]) == 3
    assert "'Orin', this machine has 'H100'" in capsys.readouterr().err
