"""NVIDIA's own parser and compiler take what fr-edge writes, and refuse with a reason what not.

Compile-only: nothing here has run on a GPU.
"""

import json

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.errors import BundleError, GateFailed, MachineError, ModelError, UsageError
from fr_edge.graph.int8_fp16 import int8_fp16_model
from fr_edge.runtime.build import build_engine
from fr_edge.runtime.trt.builder import Compiled, compile_plan, load_library
from fr_edge.runtime.trt.config import EngineOptions
from fr_edge.runtime.trt.layers import node_precisions

rtx = pytest.importorskip(
    "tensorrt_rtx", reason="the compile check needs tensorrt-rtx (pip install 'fr-edge[rtx]')"
)
BACKEND = "tensorrt-rtx"
SHAPE = (3, 16, 16)


def compiled(model: ModelProto, precision: str = "int8", **options: object) -> Compiled:
    data = model.SerializeToString()
    return compile_plan(rtx, data, SHAPE, precision, EngineOptions(**options))


def weight(model: ModelProto, name: str) -> TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def replace(model: ModelProto, name: str, value: np.ndarray) -> None:
    weight(model, name).CopyFrom(numpy_helper.from_array(value, name))


def test_the_library_is_loaded_by_the_backends_name():
    assert load_library(BACKEND) is rtx


def test_every_flavour_compiles_in_the_precision_it_is_written_in(tiny):
    dense, depthwise = {"c1", "c2", "c4", "c5"}, {"c3", "c6"}
    for precision, model, other in (
        ("fp32", tiny(), "fp32"),
        ("fp16", tiny(dtype=np.float16), "fp16"),
        ("int8", tiny(int8=True), "fp32"),
        ("int8", int8_fp16_model(tiny(int8=True)), "fp16"),
    ):
        precisions = node_precisions(model, compiled(model, precision).layers)
        wanted = precision if precision == "int8" else other
        assert {precisions[name] for name in dense} == {wanted}
        assert {precisions[name] for name in depthwise} == {other}


@pytest.mark.parametrize("compute", ["8.0", "8.6", "8.9", "12.0"])
def test_several_compute_capabilities(tiny, compute):
    model = int8_fp16_model(tiny(int8=True))
    made = compiled(model, compute=(compute,))
    assert "int8" in node_precisions(model, made.layers).values()


def test_options_reach_the_builder(tiny):
    model = tiny()
    made = compiled(model, "fp32", batch=(2, 2, 2), workspace_mb=64, level=1)
    assert made.plan
    with pytest.raises(MachineError, match="a workspace of 1 MB does not suffice") as error:
        compiled(model, "fp32", batch=(512, 512, 512), workspace_mb=1)
    assert "--workspace" in error.value.hint


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"compute": ("9.0",)}, UsageError, "cannot compile for compute capability 9.0"),
        ({"dla": 0}, MachineError, "DLA core 0 was asked for; this TensorRT finds 0"),
        ({"version_compatible": True}, MachineError, "lean runtime"),
    ],
)
def test_options_that_this_library_has_not_are_named(tiny, options, error, says):
    with pytest.raises(error, match=says):
        compiled(tiny(), "fp32", **options)


@pytest.mark.parametrize(
    "wrong",
    [{"batch": (2, 1, 4)}, {"batch": (0, 1, 1)}, {"workspace_mb": 0}, {"level": 6}],
)
def test_options_that_make_no_sense(wrong):
    with pytest.raises(UsageError):
        EngineOptions(**wrong)


def quantised_bias(model: ModelProto) -> None:
    scale = numpy_helper.from_array(np.full(16, 1e-3, np.float32), "bias_scale")
    zero = numpy_helper.from_array(np.zeros(16, np.int32), "bias_zero")
    steps = numpy_helper.from_array(np.arange(16, dtype=np.int32), "bias_q")
    model.graph.initializer.extend([scale, zero, steps])
    inputs = ["bias_q", "bias_scale", "bias_zero"]
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", inputs, ["bias"], axis=0))
    next(n for n in model.graph.node if n.name == "c2").input[2] = "bias"


def shifted(model: ModelProto) -> None:
    replace(model, "c1_act_zero", np.array(3, np.int8))


def flat_slope(model: ModelProto) -> None:
    replace(model, "c2_slope", numpy_helper.to_array(weight(model, "c2_slope")).ravel())


def unknown_operator(model: ModelProto) -> None:
    next(n for n in model.graph.node if n.op_type == "PRelu").op_type = "FaceMagic"


def mixed_types(model: ModelProto) -> None:
    replace(model, "c3_w", numpy_helper.to_array(weight(model, "c3_w")).astype(np.float16))


def free_height(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (quantised_bias, "a bias is quantised"),
        (shifted, "a zero point is not 0"),
        (flat_slope, r"expected \(C, 1, 1\)"),
        (unknown_operator, "TensorRT does not have one of the operators"),
        (mixed_types, "tensors of different types meet"),
        (free_height, r"expected one, \(batch, 3, 16, 16\)"),
    ],
)
def test_refusals_carry_our_reason_and_nvidias_words(tiny, fault, says):
    model = tiny(int8=True)
    fault(model)
    with pytest.raises(ModelError, match=says) as error:
        compiled(model)
    assert error.value.hint
    if fault is not free_height:
        assert "Its message: " in error.value.message


def test_bytes_that_are_no_network():
    with pytest.raises(ModelError, match="cannot parse the network"):
        compile_plan(rtx, b"nothing of the kind", SHAPE, "fp32", EngineOptions())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_bundle_gets_the_plan_and_its_fingerprint(bundle, precision, caplog):
    caplog.set_level("INFO")
    built = build_engine(bundle, precision, BACKEND)
    opened = open_bundle(bundle.root)
    assert built.engine == f"engines/tensorrt-rtx-{precision}.plan"
    assert opened.file(built.engine).stat().st_size == built.size > 0
    expected = {
        "fp32": {"int8": 0, "fp16": 0, "fp32": 7},
        "fp16": {"int8": 0, "fp16": 7, "fp32": 0},
        "int8": {"int8": 4, "fp16": 3, "fp32": 0},
    }
    assert built.layers == expected[precision]
    assert "not executed" in caplog.text
    sidecar = json.loads(opened.file(f"{built.engine}.json").read_text())
    assert sidecar["compile_only"] is True
    assert sidecar["tensorrt_rtx"] == rtx.__version__
    assert sidecar["source_sha256"]
    assert sidecar["layers"] == expected[precision]
    assert {"c1", "c2", "c3", "c4", "c5", "c6"} < set(sidecar["precisions"])


def test_an_int8_engine_without_int8_convolutions_fails_its_gate(bundle, tiny):
    with transaction(bundle.root, "test", {}) as draft:
        draft.path("model.int8.onnx", "model").write_bytes(tiny().SerializeToString())
    with pytest.raises(GateFailed, match="none of the engine's 6 Conv layers computes in INT8"):
        build_engine(bundle.root, "int8", BACKEND)
    assert "engines/tensorrt-rtx-int8.plan" not in open_bundle(bundle.root)


def test_weights_that_are_not_numbers(bundle, tiny):
    model = tiny()
    replace(model, "c3_w", np.full((16, 1, 3, 3), np.nan, np.float32))
    with transaction(bundle.root, "test", {}) as draft:
        draft.path("model.onnx", "model").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="c3_w holds NaN"):
        build_engine(bundle.root, "fp32", BACKEND)


def test_a_bundle_without_the_flavour(bundle, caplog):
    caplog.set_level("INFO")
    with transaction(bundle.root, "test", {}) as draft:
        draft.remove("model.fp16.onnx")
    for backend in (BACKEND, "onnxruntime"):
        with pytest.raises(BundleError, match="no FP16 flavour"):
            build_engine(bundle.root, "fp16", backend)
    built = build_engine(bundle.root, "int8", BACKEND)
    assert built.layers == {"int8": 4, "fp16": 0, "fp32": 3}
    assert "stays FP32" in caplog.text
