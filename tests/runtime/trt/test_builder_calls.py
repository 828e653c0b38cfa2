"""Every call that decides an engine's types, and how its layers are asked for, on a double."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from onnx import ModelProto
from tensorrt_builder_double import LibraryDouble

from fr_edge.errors import GateFailed
from fr_edge.runtime.build import build_engine
from fr_edge.runtime.machine import backends
from fr_edge.runtime.machine.device import GpuList
from fr_edge.runtime.trt import builder, bundle_plan
from fr_edge.runtime.trt.builder import Compiled, compile_plan
from fr_edge.runtime.trt.calibrator import make_calibrator
from fr_edge.runtime.trt.config import EngineOptions
from fr_edge.runtime.trt.layers import node_precisions

SHAPE = (3, 16, 16)
UNTOLD = "N/A due to dynamic shapes"


def built(
    trt: LibraryDouble, model: ModelProto, precision: str, *args: Any, **options: Any
) -> Compiled:
    data = model.SerializeToString()
    return compile_plan(trt, data, SHAPE, precision, EngineOptions(**options), *args)


def flags(trt: LibraryDouble) -> set[str]:
    assert trt.calls[-1] is not None
    order = [name for name, *_ in trt.calls]
    assert "set_flag" not in order[order.index("build_serialized_network") :]
    return {flag.name for (flag,) in trt.called("set_flag")}


@pytest.mark.parametrize(
    ("precision", "expected"),
    [("fp32", set()), ("fp16", {"FP16"}), ("int8", {"FP16", "INT8"})],
)
@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "11.4.0.106"])
def test_types_come_by_flags_in_8_6_and_by_the_file_later(tiny, version, precision, expected):
    trt = LibraryDouble(version)
    built(trt, tiny(int8=precision == "int8"), precision)
    strong = version != "8.6.1"
    assert trt.called("create_network") == [[{"STRONGLY_TYPED" if strong else "EXPLICIT_BATCH"}]]
    assert flags(trt) == (set() if strong else expected)
    assert trt.called("clear_flag") == [[trt.BuilderFlag.TF32]]
    assert trt.called("int8_calibrator") == []
    assert trt.called("default_device_type") == []


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0"])
def test_implicit_int8_has_flags_and_the_calibrator(tiny, version):
    trt = LibraryDouble(version)
    calibrator = make_calibrator(trt.IInt8EntropyCalibrator2, b"TRT-")
    built(trt, tiny(), "int8", None, calibrator, implicit=True)
    assert trt.called("create_network") == [[{"EXPLICIT_BATCH"}]]
    assert flags(trt) == {"FP16", "INT8"}
    assert trt.called("int8_calibrator") == [[calibrator]]
    assert trt.called("clear_flag") == [[trt.BuilderFlag.TF32]]


@pytest.mark.parametrize(
    ("version", "core", "weak"), [("8.6.1", 0, True), ("10.3.0", 1, True), ("11.4.1", 1, False)]
)
def test_a_dla_core_is_chosen_with_the_gpu_beside_it(tiny, version, core, weak):
    trt = LibraryDouble(version, dla_cores=2)
    built(trt, tiny(), "fp16", dla=core, batch=(2, 2, 2))
    assert trt.called("default_device_type") == [["DLA"]]
    assert trt.called("DLA_core") == [[core], [core]]  # the builder's, and the runtime's
    assert flags(trt) == ({"FP16", "GPU_FALLBACK"} if weak else {"GPU_FALLBACK"})
    creation = "EXPLICIT_BATCH" if weak else "STRONGLY_TYPED"
    assert trt.called("create_network") == [[{creation}]]


def test_the_other_options_reach_the_builder(tiny):
    trt = LibraryDouble("10.3.0")
    built(
        trt, tiny(), "fp32", b"", batch=(1, 4, 8), workspace_mb=64, level=2,
        version_compatible=True, hardware_compatible=True,
    )  # fmt: skip
    assert trt.called("set_memory_pool_limit") == [["WORKSPACE", 64 << 20]]
    assert trt.called("builder_optimization_level") == [[2]]
    assert trt.called("profiling_verbosity") == [["DETAILED"]]
    assert trt.called("hardware_compatibility_level") == [["AMPERE_PLUS"]]
    assert flags(trt) == {"VERSION_COMPATIBLE"}
    assert trt.called("set_timing_cache") == [[b"", False]]
    assert trt.called("set_shape") == [["face", *((n, *SHAPE) for n in (1, 4, 8))]]
    assert len(trt.called("add_optimization_profile")) == 1
    # The builder's own plan is trusted: it carries NVIDIA's lean runtime.
    assert trt.called("engine_host_code_allowed") == [[True]]


def test_host_code_stays_forbidden_without_version_compatibility(tiny):
    trt = LibraryDouble("10.3.0")
    built(trt, tiny(), "fp32")
    assert trt.called("engine_host_code_allowed") == []


def row(node: Any, shaped: bool, kind: str = "Int8") -> dict[str, Any]:
    """A convolution as inspectors of 8.6 to 10.x give it: types only with shapes."""
    form = f"Thirty-two wide channel vectorized row major {kind} format" if shaped else UNTOLD
    return {
        "Name": node.name,
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "x", "Format/Datatype": form}],
        "Outputs": [{"Name": "y", "Format/Datatype": form}],
        "Weights": {"Type": kind, "Count": 1} if shaped else {},
    }


def test_the_inspector_is_asked_with_a_context_that_has_shapes(tiny):
    trt = LibraryDouble("10.3.0")
    trt.row = row
    model = tiny(int8=True)
    precisions = node_precisions(model, built(trt, model, "int8").layers)
    assert trt.called("set_input_shape") == [["face", (8, *SHAPE)]]
    assert [precisions[f"c{i}"] for i in range(1, 7)] == ["int8"] * 6


def test_a_log_without_types_gives_way_to_the_inspector(tiny):
    trt = LibraryDouble("10.3.0")
    trt.row = row
    trt.table = (
        "Layers:\nName: c1, LayerType: CaskConvolution, Inputs: [ { Name: face, Location: Device,"
        f" Dimensions: [-1,3,16,16], Format/Datatype: {UNTOLD} }}], Outputs: [ {{ Name: c1,"
        f" Location: Device, Dimensions: [-1,8,8,8], Format/Datatype: {UNTOLD} }}],"
        ' ParameterType: Convolution, TacticName: none, StreamId: 0, Metadata: [ONNX Layer: c1]\n'
    )  # fmt: skip
    model = tiny(int8=True)
    assert node_precisions(model, built(trt, model, "int8").layers)["c2"] == "int8"


@pytest.fixture
def library(monkeypatch) -> LibraryDouble:
    trt = LibraryDouble("10.3.0")
    monkeypatch.setattr(bundle_plan, "load_library", lambda backend: trt)
    monkeypatch.setattr(backends, "find_gpus", lambda: GpuList((), "12.6", ""))
    monkeypatch.setattr(backends, "find_spec", lambda name: object())
    return trt


def test_an_int8_engine_is_proven(library, bundle, caplog):
    library.row = row
    assert build_engine(bundle, "int8", "tensorrt").layers["int8"] == 6
    assert "computes in" not in caplog.text


def test_not_int8_is_told_apart_from_not_reported(library, bundle):
    library.row = lambda node, shaped: row(node, shaped, "FP16")
    with pytest.raises(GateFailed, match="none of the engine's 6 Conv layers .*: 6 FP16"):
        build_engine(bundle, "int8", "tensorrt")
    library.row, library.room = row, False  # no memory for the inspector's context
    with pytest.raises(GateFailed, match="not known: TensorRT reports .* of 0 of its 6 Conv") as e:
        build_engine(bundle, "int8", "tensorrt")
    assert "--batch" in e.value.hint


def test_layers_that_were_to_be_int8_are_named(library, bundle, caplog):
    library.row = lambda node, shaped: row(node, shaped, "FP16" if node.name == "c2" else "Int8")
    assert build_engine(bundle, "int8", "tensorrt").layers == {"int8": 5, "fp16": 1, "fp32": 0}
    assert "c2 was to be INT8 and computes in FP16" in caplog.text
    assert "c1 was" not in caplog.text


def test_the_build_runs_on_the_selected_gpu(tiny, monkeypatch):
    trt, order = LibraryDouble("10.3.0"), []

    @contextmanager
    def on_selected_gpu() -> Iterator[None]:
        order.append("in")
        yield
        order.append([name for name, *_ in trt.calls][-1])

    monkeypatch.setattr(builder, "on_selected_gpu", on_selected_gpu)
    built(trt, tiny(), "fp32")
    assert order[0] == "in"
    assert trt.called("build_serialized_network") == [[]]
    assert len(order) == 2
