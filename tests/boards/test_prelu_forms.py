"""Both forms of PReLU are built and timed, on doubles of TensorRT and CUDA: which is kept, which words.

The doubles compute with onnxruntime: that the forms agree is shown here, not which is faster.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from pretend import L4, PretendBoard
from tensorrt_double import HEAD

from fr_edge.bundle.bundle import open_bundle
from fr_edge.calibration.calibrate import calibrate
from fr_edge.errors import GateFailed, MachineError
from fr_edge.faces.sources import open_faces
from fr_edge.runtime import build
from fr_edge.runtime.build import build_engine
from fr_edge.runtime.evaluation import select_precision as select_module
from fr_edge.runtime.evaluation.select_precision import select_precision
from fr_edge.runtime.fingerprint import engine_name, read_fingerprint
from fr_edge.runtime.session import open_session
from fr_edge.runtime.trt import bundle_plan
from fr_edge.runtime.trt.config import EngineOptions


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> PretendBoard:
    pretend = PretendBoard("jetpack6.2", monkeypatch)
    pretend.trt.dla_cores = 2
    monkeypatch.setattr(build, "_PRELU_S", 0.1)
    return pretend


@pytest.fixture
def networks(board: PretendBoard, monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The operators of each network that the builder got, in order."""
    got: list[set[str]] = []
    compile_plan = bundle_plan.compile_plan

    def recorded(library: Any, model: bytes, *args: Any) -> Any:
        got.append({node.op_type for node in onnx.load_from_string(model).graph.node})
        return compile_plan(library, model, *args)

    monkeypatch.setattr(bundle_plan, "compile_plan", recorded)
    return got


def timed(times: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopwatch double: times of the forms in the order in which they are built."""

    def stopwatch(runs: list[Any], batch: Any, seconds: float) -> list[float]:
        first, second = (np.asarray(run(batch)) for run in runs)
        np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-3 * np.abs(first).max())
        return times

    monkeypatch.setattr(build, "interleaved_min_times", stopwatch)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize(("times", "kept"), [([1e-3, 2e-3], "split"), ([2e-3, 1e-3], "native")])
def test_both_forms_are_built_and_the_faster_one_is_kept(
    networks: list[set[str]], mini: Path, monkeypatch: Any, precision: str, times: Any, kept: str
) -> None:
    timed(times, monkeypatch)
    build_engine(mini, precision, "tensorrt", options=EngineOptions(prelu="fastest"))
    split, native = networks
    assert "PRelu" not in split
    assert "Neg" in split
    assert "PRelu" in native
    assert "Neg" not in native
    name = engine_name("tensorrt", precision)
    facts = read_fingerprint(open_bundle(mini), name)
    assert facts["prelu"] == kept
    assert facts["prelu_ms"] == dict(
        zip(("split", "native"), (1e3 * t for t in times), strict=True)
    )
    plan = onnx.load_from_string((mini / name).read_bytes()[HEAD:].split(b"\n", 1)[1])
    assert ("PRelu" in {node.op_type for node in plan.graph.node}) is (kept == "native")
    with open_session(mini, precision, "tensorrt") as session:
        assert session.embed(np.zeros((1, 112, 112, 3), np.uint8)).shape == (1, 32)


def test_the_choice_of_a_precision_times_both_forms(
    networks: list[set[str]], mini: Path, caplog: Any
) -> None:
    with caplog.at_level("INFO", "fr_edge"):
        select_precision(mini, "tensorrt", duration_s=0.1)
    assert ["PRelu" in ops for ops in networks] == [False, True] * 3
    assert len(re.findall(r"batch 1: .* is kept", caplog.text)) == 3
    facts = [
        read_fingerprint(open_bundle(mini), name.removesuffix(".json"))
        for name in open_bundle(mini).files
        if name.startswith("engines/tensorrt") and name.endswith(".plan.json")
    ]
    assert [set(f["prelu_ms"]) for f in facts] == [{"split", "native"}]


def test_a_gpu_without_fp8_leaves_the_choice_among_the_others(
    board: PretendBoard, mini: Path, monkeypatch: Any
) -> None:
    """The bundle is calibrated for FP8 too; Orin has none, and Ada has."""
    calibrate(open_bundle(mini), open_faces("synthetic:8x2@5"), precision="fp8")
    result = select_precision(mini, "tensorrt", duration_s=0.05)
    problems = {c.precision: c.problem for c in result.candidates}
    assert "compute capability 8.7 has no FP8" in problems.pop("fp8")
    assert set(problems.values()) == {""}
    board.have(L4)
    monkeypatch.setattr(
        select_module, "time_engines", lambda _, names, *__: {n: float(n != "fp8") for n in names}
    )
    result = select_precision(mini, "tensorrt")
    assert {c.precision: c.problem for c in result.candidates} == dict.fromkeys(
        ("fp32", "fp16", "fp8", "int8"), ""
    )
    assert result.engine == engine_name("tensorrt", "fp8") in open_bundle(mini)


def test_a_plain_build_has_one_form_and_names_it(networks: list[set[str]], mini: Path) -> None:
    build_engine(mini, "fp16", "tensorrt")
    assert ["PRelu" in ops for ops in networks] == [False]
    name = engine_name("tensorrt", "fp16")
    assert read_fingerprint(open_bundle(mini), name)["prelu"] == "split"


@pytest.mark.parametrize("prelu", ["split", "fastest"])
def test_a_dla_gets_prelu_as_it_is(networks: list[set[str]], mini: Path, prelu: Any) -> None:
    """PReLU is an operator of the DLA; Neg and Relu would be left to the GPU."""
    options = EngineOptions(batch=(1, 1, 1), dla=0, prelu=prelu)
    build_engine(mini, "fp16", "tensorrt", options=options)
    assert ["PRelu" in ops for ops in networks] == [True]
    assert read_fingerprint(open_bundle(mini), engine_name("tensorrt", "fp16"))["prelu"] == "native"


def test_a_network_without_prelu_is_built_once(
    networks: list[set[str]], bundle: Any, tiny: Any
) -> None:
    model = tiny()
    for node in model.graph.node:
        if node.op_type == "PRelu":
            node.op_type = "Relu"
            del node.input[1:]
    bundle.file("model.onnx").write_bytes(model.SerializeToString())
    plan = build.build_fastest_plan(
        open_unchecked(bundle), "fp32", "tensorrt", EngineOptions(prelu="fastest"), b""
    )
    assert len(networks) == 1
    assert plan[1].facts["prelu"] == "none"


def open_unchecked(bundle: Any) -> Any:
    return open_bundle(bundle.root, check="manifest")


def test_a_form_that_is_refused_or_not_timed_does_not_cost_the_engine(
    board: PretendBoard, mini: Path, monkeypatch: Any, caplog: Any
) -> None:
    build_plan, refused = build.build_plan, ["split"]

    def refusing(*args: Any) -> Any:
        if args[3].prelu in refused:
            raise GateFailed("no convolution computes in INT8")
        return build_plan(*args)

    monkeypatch.setattr(build, "build_plan", refusing)
    options = EngineOptions(prelu="fastest")
    build_engine(mini, "int8", "tensorrt", options=options)
    name = engine_name("tensorrt", "int8")
    assert read_fingerprint(open_bundle(mini), name)["prelu"] == "native"
    refused[:] = ["split", "native"]
    with pytest.raises(GateFailed, match="no convolution"):
        build_engine(mini, "int8", "tensorrt", options=options)
    refused.clear()

    def full(*args: Any, **keywords: Any) -> Any:
        raise MachineError("no memory for a second engine")

    monkeypatch.setattr(build, "GpuSession", full)
    build_engine(mini, "int8", "tensorrt", options=options)
    facts = read_fingerprint(open_bundle(mini), name)
    assert (facts["prelu"], facts["prelu_ms"]) == ("split", {})
    assert "not timed: no memory" in caplog.text
