"""INT8 with FP16 around it keeps the INT8 model's numbers and its names."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

from fr_edge.graph.int8_fp16 import int8_fp16_model, wide_nodes
from fr_edge.graph.layers import layer_precisions

CLOSE = 0.03
"""Share of the largest number."""


def rounding(model: ModelProto) -> ModelProto:
    """A copy whose FP16 QuantizeLinear get the same numbers in FP32: onnxruntime 1.23.2, Python
    3.10's newest, truncates FP16 numbers where it should round them (1.32.0 rounds)."""
    copy = ModelProto()
    copy.CopyFrom(model)
    scales = {t.name: numpy_helper.to_array(t) for t in copy.graph.initializer}
    nodes = []
    for node in copy.graph.node:
        if node.op_type == "QuantizeLinear" and scales[node.input[1]].dtype == np.float16:
            for index, name in enumerate(node.input[:2]):
                nodes.append(helper.make_node("Cast", [name], [f"{node.name}_{index}"], to=1))
                node.input[index] = f"{node.name}_{index}"
        nodes.append(node)
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    copy.graph.ClearField("node")
    copy.graph.node.extend(nodes)
    return copy


def run(model: ModelProto, faces: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    # its optimiser breaks models with FP16 scales (WeightBiasQuantization)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        rounding(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"face": faces})[0]


@pytest.mark.parametrize("count", [1, 3])
def test_the_numbers_stay(tiny, faces, count):
    model = tiny(int8=True)
    mixed = int8_fp16_model(model)
    checker.check_model(mixed, full_check=True)
    result, expected = run(mixed, faces(count)), run(model, faces(count))
    assert result.dtype == np.float32
    assert np.abs(result - expected).max() <= CLOSE * np.abs(expected).max()


def test_what_is_not_int8_is_fp16_and_names_stay(tiny):
    model = tiny(int8=True)
    mixed = int8_fp16_model(model)
    assert layer_precisions(model) == {"int8": 4, "fp16": 0, "fp32": 3}
    assert layer_precisions(mixed) == {"int8": 4, "fp16": 3, "fp32": 0}
    floats = [t.name for t in mixed.graph.initializer if t.data_type == TensorProto.FLOAT]
    assert floats == ["face_scale_fp32"]  # the input is float32, and is quantised as it comes
    assert {n.name for n in mixed.graph.node if n.name} == {n.name for n in model.graph.node}


def test_scales_too_small_for_fp16_do_not_become_zero(tiny, faces):
    model = tiny(int8=True)
    weight, scale = (
        next(t for t in model.graph.initializer if t.name == name)
        for name in ("c2_w", "c2_w_scale")
    )
    values = numpy_helper.to_array(weight).copy()
    values[0] *= 1e-9
    weight.CopyFrom(numpy_helper.from_array(values, "c2_w"))
    scales = numpy_helper.to_array(scale).copy()
    scales[0] *= 1e-9
    scale.CopyFrom(numpy_helper.from_array(scales, "c2_w_scale"))
    mixed = int8_fp16_model(model)
    written = next(t for t in mixed.graph.initializer if t.name == "c2_w_scale_fp16")
    assert (numpy_helper.to_array(written) > 0).all()
    result, expected = run(mixed, faces(2)), run(model, faces(2))
    assert np.isfinite(result).all()
    assert np.abs(result - expected).max() <= CLOSE * np.abs(expected).max()


@pytest.mark.parametrize(
    "wide", [{"c3"}, {"c2", "c2_act", "c3"}, {"c4", "sum"}, {"c6", "embedding"}, {"c1"}]
)
def test_nodes_that_do_not_fit_stay_fp32(tiny, faces, wide):
    """Also INT8 convolutions, whose sums may leave FP16's range, and what stands between them."""
    model = tiny(int8=True)
    mixed = int8_fp16_model(model, wide)
    checker.check_model(mixed, full_check=True)
    assert wide_nodes(mixed) == wide
    result, expected = run(mixed, faces(2)), run(model, faces(2))
    assert np.abs(result - expected).max() <= CLOSE * np.abs(expected).max()


def test_an_overflow_between_nodes_that_stay_fp32_does_not_happen(tiny, faces):
    """The activation between c2 and its PReLU reaches 1e6 here, which FP16 cannot hold."""
    model = tiny(int8=True)
    bias = next(t for t in model.graph.initializer if t.name == "c2_b")
    bias.CopyFrom(numpy_helper.from_array(np.full(16, 1e6, np.float32), "c2_b"))
    slope = next(t for t in model.graph.initializer if t.name == "c3_w")
    slope.CopyFrom(numpy_helper.from_array(np.full((16, 1, 3, 3), 1e-7, np.float32), "c3_w"))
    expected = run(model, faces(2))
    assert np.abs(run(int8_fp16_model(model), faces(2)) - expected).max() > 0.01
    result = run(int8_fp16_model(model, {"c2", "c2_act", "c3"}), faces(2))
    assert np.abs(result - expected).max() <= CLOSE * np.abs(expected).max()


def test_a_whole_fp16_model_has_no_wide_node(tiny):
    assert wide_nodes(tiny(dtype=np.float16)) == set()


def test_reductions_keep_their_axes_in_the_newer_opset():
    """From opset 18 on axes are an input: as an attribute they are refused, or all axes are taken."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], "mean", axes=[2, 3], keepdims=0),
        helper.make_node("Split", ["mean"], ["a", "b"], "split", axis=1),
        helper.make_node("Sub", ["a", "b"], ["y"], "sub"),
    ]
    graph = helper.make_graph(
        nodes,
        "reduced",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4, 3, 5))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 2))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    mixed = int8_fp16_model(model)
    checker.check_model(mixed, full_check=True)
    x = np.random.default_rng(0).normal(size=(1, 4, 3, 5)).astype(np.float32)
    means = x.mean(axis=(2, 3))
    session = ort.InferenceSession(mixed.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(
        session.run(None, {"x": x})[0], means[:, :2] - means[:, 2:], atol=2e-3
    )
