"""The Q/DQ graph is what TensorRT takes and fuses, and follows the table."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from fitted import fit, run
from onnx import TensorProto, helper, numpy_helper

from fr_edge.calibration.gptq import correct_biases
from fr_edge.calibration.histogram import Histogram, add_values, empty_histogram
from fr_edge.calibration.qdq import quantize_onnx
from fr_edge.errors import BundleError
from fr_edge.graph.layer_weights import output_axis, weight_scales
from fr_edge.graph.layers import choose_int8_layers


@pytest.fixture(scope="module")
def quantized(model: onnx.ModelProto, histograms: dict[str, Histogram]) -> onnx.ModelProto:
    return quantize_onnx(model, fit(model, histograms))


def makers_of(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


def test_symmetric_per_channel_and_without_quantized_bias(quantized: onnx.ModelProto) -> None:
    constants = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer}
    makers = makers_of(quantized)
    chosen = set(choose_int8_layers(quantized).int8) | {
        n.name for n in quantized.graph.node if n.op_type in ("Conv", "Gemm")
    }
    dense = 0
    for node in quantized.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert constants[node.input[1]].dtype == np.float32
            assert (constants[node.input[1]] > 0).all()
            assert constants[node.input[2]].dtype == np.int8
            assert not constants[node.input[2]].any()
        if node.name in chosen and node.op_type in ("Conv", "Gemm"):
            assert all(name in constants for name in node.input[2:])
            pair = [makers.get(name) for name in node.input[:2]]
            assert all(pair) or not any(p and p.op_type == "DequantizeLinear" for p in pair)
            dense += bool(pair[1])
            if pair[1]:
                quantize = makers[pair[1].input[0]]
                weight = constants[quantize.input[0]]
                axis = next(a.i for a in quantize.attribute if a.name == "axis")
                assert constants[quantize.input[1]].shape == (weight.shape[axis],)
                others = tuple(i for i in range(weight.ndim) if i != axis)
                steps = np.abs(weight).max(axis=others) / 127
                np.testing.assert_allclose(constants[quantize.input[1]], steps, rtol=1e-5)
    assert dense == len(choose_int8_layers(quantized_source(quantized)).int8)


def quantized_source(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph as it would be without Q and DQ."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    makers = makers_of(model)
    for node in copy.graph.node:
        for index, name in enumerate(node.input):
            if name in makers and makers[name].op_type == "DequantizeLinear":
                node.input[index] = makers[makers[name].input[0]].input[0]
    floats = [n for n in copy.graph.node if n.op_type not in ("QuantizeLinear", "DequantizeLinear")]
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in floats]
    del copy.graph.node[:]
    copy.graph.node.extend(copies)
    return copy


def test_nothing_stands_between_a_layer_and_what_it_fuses_with(quantized: onnx.ModelProto) -> None:
    makers = makers_of(quantized)
    for node in quantized.graph.node:
        if node.op_type in ("PRelu", "Flatten"):
            assert makers[node.input[0]].op_type in ("Conv", "Add")
        if node.op_type == "Add":
            assert "Conv" in {makers[name].op_type for name in node.input}
        if node.op_type == "QuantizeLinear" and node.input[0] in makers:
            assert makers[node.input[0]].op_type in ("PRelu", "Sub", "Add", "Flatten", "Conv")


def test_without_a_scale_the_graph_is_the_float_one(
    quantized: onnx.ModelProto, model: onnx.ModelProto, inputs: np.ndarray
) -> None:
    """All that INT8 changes lies between Q and DQ, apart from biases that take rounding back."""
    bare = quantized_source(quantized)
    embedding, exact = run(bare, inputs[:4])[0], run(model, inputs[:4])[0]
    assert np.abs(embedding - exact).max() < 0.05 * np.abs(exact).max()


def test_the_same_table_gives_the_same_bytes(
    model: onnx.ModelProto, histograms: dict[str, Histogram], quantized: onnx.ModelProto
) -> None:
    again = quantize_onnx(model, fit(model, histograms))
    assert again.SerializeToString() == quantized.SerializeToString()


def test_at_a_residual_addition_the_skip_alone_is_quantized() -> None:
    rng = np.random.default_rng(0)
    names = ("w1", "w2", "w3")
    weights = [
        numpy_helper.from_array(rng.standard_normal((3, 3, 1, 1)).astype(np.float32), name)
        for name in names
    ]
    nodes = [
        helper.make_node("Conv", ["face", "w1"], ["x"], "c1"),
        helper.make_node("Conv", ["x", "w2"], ["y"], "c2"),
        helper.make_node("Add", ["y", "x"], ["z"], "add"),
        helper.make_node("Conv", ["z", "w3"], ["embedding"], "c3"),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 3, 4, 4))
        for name in ("face", "embedding")
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    small = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = rng.standard_normal((9, 3, 4, 4)).astype(np.float32)
    counted = {
        name: add_values(empty_histogram(3), np.concatenate([values]))
        for name, values in {
            "face": x,
            **{n: np.concatenate([run(small, i[None], n)[0] for i in x]) for n in ("x", "z")},
        }.items()
    }
    result = quantize_onnx(small, fit(small, counted))
    makers = makers_of(result)
    addition = next(n for n in result.graph.node if n.op_type == "Add")
    assert [makers[name].op_type for name in addition.input] == ["Conv", "DequantizeLinear"]
    exact, embedding = run(small, x[:1])[0], run(result, x[:1])[0]
    assert np.abs(embedding - exact).max() < 0.05 * np.abs(exact).max()


def test_bias_correction_meets_the_mean(
    model: onnx.ModelProto, histograms: dict[str, Histogram], inputs: np.ndarray
) -> None:
    """With a layer's weights rounded, its mean output stays that of the float model."""
    choice = choose_int8_layers(model)
    exact = run(model, inputs)[0].mean(axis=0)

    def shift(correct: bool) -> float:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        gemm = next(n for n in copy.graph.node if n.op_type == "Gemm")
        means = {gemm.input[0]: histograms[gemm.input[0]].mean} if correct else {}
        correct_biases(copy, choice, means)
        tensor = next(t for t in copy.graph.initializer if t.name == gemm.input[1])
        array = numpy_helper.to_array(tensor)
        step = weight_scales(gemm, array)
        step = step if output_axis(gemm, 2) else step[:, None]
        rounded = (np.rint(array / step) * step).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
        return float(np.abs(run(copy, inputs)[0].mean(axis=0) - exact).mean())

    assert shift(True) < 0.05 * shift(False)


def test_a_table_that_does_not_fit(
    model: onnx.ModelProto, histograms: dict[str, Histogram]
) -> None:
    table = fit(model, histograms)
    with pytest.raises(BundleError, match="no range for"):
        quantize_onnx(model, replace(table, ranges={}))
    broken = {name: scale[:-1] for name, scale in table.scales.items()}
    with pytest.raises(BundleError, match="does not fit"):
        quantize_onnx(model, replace(table, scales=broken))
