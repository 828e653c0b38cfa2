"""FP16: what fits becomes half, what does not stays float, and the numbers tell which."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from fr_edge.export.fp16 import (
    HEADROOM,
    LARGEST,
    Fp16Model,
    convert_to_fp16,
    emulate_fp16,
    make_fp16_model,
)
from fr_edge.export.parity import probe_inputs
from fr_edge.faces.contract import PRESETS
from fr_edge.graph.run import activations, peaks
from fr_edge.inference import make_session

INPUTS = probe_inputs(PRESETS["insightface"])


def scaled(model: ModelProto, name: str, factor: float) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def types(model: ModelProto) -> dict[str, int]:
    """Node -> the element type of what it makes."""
    kinds = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    kinds |= {v.name: v.type.tensor_type.elem_type for v in model.graph.output}
    return {node.name: kinds[node.output[0]] for node in model.graph.node}


def fp16_of(model: ModelProto, tools: SimpleNamespace) -> Fp16Model | None:
    return make_fp16_model(model, INPUTS, tools.run(model, INPUTS))


def test_everything_is_half_but_the_ends(
    tools: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    model = tools.standard(tools.build())
    with caplog.at_level(logging.INFO, "fr_edge.export.fp16"):
        half = fp16_of(model, tools)
    assert not caplog.records
    assert half.result.kept_float == ()
    kinds = types(half.model)
    assert {kinds[node.name] for node in model.graph.node} == {TensorProto.FLOAT16}
    ends = (half.model.graph.input[0], half.model.graph.output[0])
    assert [v.type.tensor_type.elem_type for v in ends] == [TensorProto.FLOAT] * 2
    assert {t.data_type for t in half.model.graph.initializer} == {TensorProto.FLOAT16}
    assert half.result.check.min_cosine > 0.9999
    for count in (1, 7, 64):
        faces = tools.noise(count, 3, 112, 112)
        assert tools.cosine(tools.run(half.model, faces), tools.run(model, faces)) > 0.9999


def test_a_layer_that_overflows_stays_float(
    tools: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    """One tensor far above 65504; the weights around undo it, so the embedding is the same."""
    given = tools.build()
    model = tools.standard(given)
    top = max(peaks(model, INPUTS).values())
    loud = ModelProto()
    loud.CopyFrom(model)
    conv = next(n for n in loud.graph.node if n.name == "n_d")
    gemm = next(n for n in loud.graph.node if n.op_type == "Gemm")
    for name in conv.input[1:]:
        scaled(loud, name, 1e6 / top)
    scaled(loud, gemm.input[1], top / 1e6)
    with caplog.at_level(logging.INFO, "fr_edge.export.fp16"):
        half = fp16_of(loud, tools)
    assert {"n_d", gemm.name} <= set(half.result.kept_float)
    assert "n_a_conv" not in half.result.kept_float
    assert "stay FP32" in caplog.text
    assert half.result.check.min_cosine > 0.999
    kinds = types(half.model)
    assert kinds["n_d"] == TensorProto.FLOAT
    assert kinds["n_a_conv"] == TensorProto.FLOAT16
    # No half tensor lies between the float nodes: the overflow would happen there.
    outputs = activations(half.model, INPUTS[:2])
    assert all(np.isfinite(v).all() for v in outputs.values() if v.dtype.kind == "f")
    assert tools.cosine(tools.run(half.model, INPUTS), tools.run(loud, INPUTS)) > 0.999


def test_a_tensor_that_underflows_stays_float(tools: SimpleNamespace) -> None:
    model = tools.standard(tools.build())
    conv = next(n for n in model.graph.node if n.name == "n_d")
    gemm = next(n for n in model.graph.node if n.op_type == "Gemm")
    for name in conv.input[1:]:
        scaled(model, name, 1e-7)
    scaled(model, gemm.input[1], 1e4)
    scaled(model, gemm.input[2], 1e-3)
    half = fp16_of(model, tools)
    assert "n_d" in half.result.kept_float
    assert half.result.check.min_cosine > 0.999


def test_weights_beyond_half(tools: SimpleNamespace) -> None:
    model = tools.standard(tools.build())
    gemm = next(n for n in model.graph.node if n.op_type == "Gemm")
    for name in gemm.input[1:]:
        scaled(model, name, 1e6)
    half = fp16_of(model, tools)
    assert gemm.name in half.result.kept_float
    assert np.isfinite(tools.run(half.model, INPUTS)).all()


def test_nothing_fits(tools: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    model = tools.standard(tools.build())
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            scaled(model, node.input[1], 1e4)
    assert fp16_of(model, tools) is None
    assert "there is no FP16 model: no layer with weights fits" in caplog.text


def test_the_emulation_rounds_as_half_does(tools: SimpleNamespace) -> None:
    model = tools.standard(tools.build())
    rounded = emulate_fp16(model, set())
    for name, array in activations(rounded, INPUTS[:2]).items():
        if "exact" not in name and array.dtype == np.float32 and name != "embedding":
            assert (array == array.astype(np.float16)).all(), name
    exact = activations(model, INPUTS[:1])
    first = activations(rounded, INPUTS[:1])
    assert not np.array_equal(exact["a"], first["a"])


def test_peaks_are_the_largest_magnitudes(tools: SimpleNamespace) -> None:
    model = tools.standard(tools.build())
    tops, exact = peaks(model, INPUTS), activations(model, INPUTS)
    for name, array in exact.items():
        assert tops[name] == pytest.approx(np.abs(array).max(), rel=1e-5)
    assert LARGEST == 65504
    assert HEADROOM > 1


def test_converting_is_strongly_typed(tools: SimpleNamespace) -> None:
    """Casts stand where half and float meet, and nowhere else."""
    model = tools.standard(tools.build())
    half = convert_to_fp16(model, {"n_b_conv"})
    casts = [n for n in half.graph.node if n.op_type == "Cast"]
    assert len(casts) == 4


def test_fp16_attention_of_torch_does_not_crash_onnxruntime() -> None:
    """A Transpose, a MatMul and a Reshape in FP16: an optimizer of onnxruntime ends the process."""
    shape = numpy_helper.from_array(np.array([3, 1, 4], np.int64), "shape")
    weights = numpy_helper.from_array(np.ones((2, 4), np.float16), "w")
    nodes = [
        helper.make_node("Transpose", ["face"], ["turned"], "turn", perm=[1, 0, 2]),
        helper.make_node("MatMul", ["turned", "w"], ["product"], "product"),
        helper.make_node("Reshape", ["product", "shape"], ["out"], "shape"),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, dims)
        for name, dims in (("face", (1, 3, 2)), ("out", (3, 1, 4)))
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [shape, weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = make_session(model.SerializeToString())
    assert (session.run(None, {"face": np.ones((1, 3, 2), np.float16)})[0] == 2).all()
