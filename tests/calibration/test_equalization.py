"""Equalization leaves a float network's embeddings unchanged, and brings INT8 closer to them."""

import numpy as np
import onnx
import pytest
from fitted import alike, any_scales, close, fit, run
from onnx import TensorProto, helper, numpy_helper

from fr_edge.calibration.equalization import equalize
from fr_edge.calibration.fitting import CalibrationSteps
from fr_edge.calibration.histogram import Histogram
from fr_edge.calibration.scale_groups import scale_groups
from fr_edge.graph.layer_weights import add_to_bias, has_bias
from fr_edge.graph.layers import choose_int8_layers


def test_any_scales_leave_the_embedding(model: onnx.ModelProto, inputs: np.ndarray) -> None:
    scales = any_scales(model, 1)
    assert len(scales) >= len(choose_int8_layers(model).tensors) - 1  # all but the face itself
    changed = equalize(model, scales)
    close(run(changed, inputs[:4])[0], run(model, inputs[:4])[0])
    name = next(iter(scales))
    close(
        run(changed, inputs[:2], name)[0] * scales[name].reshape(-1, 1, 1),
        run(model, inputs[:2], name)[0],
    )


def test_what_other_operators_touch_is_left_alone(model: onnx.ModelProto) -> None:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    node = next(n for n in copy.graph.node if n.op_type == "PRelu")
    group = scale_groups(model)[node.output[0]]
    node.op_type = "Sigmoid"
    del node.input[1:]
    groups = scale_groups(copy)
    assert node.output[0] not in groups
    assert node.input[0] not in groups
    assert (group >= 0).all()
    assert not {v.name for v in (*copy.graph.input, *copy.graph.output)} & set(groups)


@pytest.mark.parametrize("norm", [False, True])
def test_norms_grouped_layers_and_flatten(norm: bool) -> None:
    """BatchNormalization, two channels to a group, pooling, an untransposed Gemm behind Flatten."""
    rng = np.random.default_rng(4)
    arrays = {
        "w1": rng.standard_normal((6, 3, 3, 3)),
        "g": rng.uniform(0.5, 2, 6),
        "b": rng.standard_normal(6),
        "m": rng.standard_normal(6),
        "v": rng.uniform(0.5, 2, 6),
        "w2": rng.standard_normal((9, 2, 3, 3)),
        "b2": rng.standard_normal(9),
        "w3": rng.standard_normal((81, 5)),
    }
    norms = [helper.make_node("BatchNormalization", ["a", "g", "b", "m", "v"], ["n"], "bn")]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "c1", pads=[1] * 4),
        *(norms if norm else []),
        helper.make_node("Relu", ["n" if norm else "a"], ["r"], "relu"),
        helper.make_node("MaxPool", ["r"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "w2", "b2"], ["c"], "c2", group=3),
        helper.make_node("Flatten", ["c"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w3"], ["y"], "gemm"),
    ]
    weights = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 10, 10))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 5))],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = rng.standard_normal((1, 3, 10, 10)).astype(np.float32)
    scales = {
        "a": np.exp(rng.normal(0, 1, 6)),
        "r": np.exp(rng.normal(0, 1, 6)),
        "c": np.exp(rng.normal(0, 1, 9)),
    }
    groups = scale_groups(model)
    assert alike(groups, "r", "p")
    assert alike(groups, "c", "f")
    assert alike(groups, "a", "r") == (not norm)
    scales["p"], scales["f"] = scales["r"], scales["c"]
    if norm:
        scales["n"] = scales["r"]
    else:
        scales["a"] = scales["r"]
    close(run(equalize(model, scales), x)[0], run(model, x)[0])


def test_each_method_brings_the_int8_model_closer(
    model: onnx.ModelProto, histograms: dict[str, Histogram], inputs: np.ndarray
) -> None:
    from fr_edge.calibration.qdq import quantize_onnx

    exact = run(model, inputs)[0]

    def loss(**steps: bool) -> float:
        table = fit(model, histograms, "auto", CalibrationSteps(**steps))
        embeddings = run(quantize_onnx(model, table), inputs)[0]
        return float(np.square(embeddings - exact).sum() / np.square(exact).sum())

    none = loss(equalization=False, activation_shift=False, bias_correction=False)
    assert loss() < 0.5 * none
    assert loss(activation_shift=False, bias_correction=False) < none
    assert loss(equalization=False, bias_correction=False) < none


def test_one_side_of_a_product_is_scaled_and_a_matmul_has_the_bias_behind_it() -> None:
    """Of a tensor and its gate, both free, the tensor alone; a bias is a constant added behind."""
    rng = np.random.default_rng(6)
    arrays = {
        "w1": rng.standard_normal((6, 3, 1, 1)),
        "w2": rng.standard_normal((6, 6, 1, 1)),
        "w3": rng.standard_normal((4, 6, 1, 1)),
        "w4": rng.standard_normal((10, 5)),
        "b4": rng.standard_normal(5),
        "w5": rng.standard_normal((10, 5)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "c1"),
        helper.make_node("Relu", ["a"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "w2"], ["g"], "c2"),
        helper.make_node("Mul", ["g", "r"], ["p"], "product"),
        helper.make_node("Conv", ["p", "w3"], ["y"], "c3"),
        helper.make_node("MatMul", ["y", "w4"], ["m"], "biased"),
        helper.make_node("Add", ["m", "b4"], ["z"], "bias"),
        helper.make_node("MatMul", ["y", "w5"], ["n"], "unbiased"),
        helper.make_node("Add", ["z", "n"], ["e"], "sum"),
    ]
    weights = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 10, 10))],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, (1, 4, 10, 5))],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = rng.standard_normal((1, 3, 10, 10)).astype(np.float32)
    groups = scale_groups(model)
    assert alike(groups, "p", "r", "a")
    assert "g" not in groups
    scale = np.exp(rng.normal(0, 1, 6))
    close(run(equalize(model, dict.fromkeys("arp", scale)), x)[0], run(model, x)[0])
    biased, unbiased = (
        next(n for n in model.graph.node if n.name == m) for m in ("biased", "unbiased")
    )
    assert has_bias(model.graph, biased)
    assert not has_bias(model.graph, unbiased)
    before, shift = run(model, x)[0], rng.standard_normal(5)
    add_to_bias(model.graph, biased, shift)
    np.testing.assert_allclose(run(model, x)[0], before + shift, atol=1e-4)
    with pytest.raises(ValueError, match="unbiased has no bias"):
        add_to_bias(model.graph, unbiased, shift)


@pytest.mark.parametrize("head", ["flatten", "pool", "tokens"])
def test_columns_are_no_channels_where_they_are_joined_or_averaged(head: str) -> None:
    """A MatMul makes numbers along the last axis; Flatten mixes them, and pooling averages them. Six
    channels, six columns: sizes alone do not tell."""
    rng = np.random.default_rng(4)
    arrays = {
        "w1": rng.standard_normal((6, 3, 3, 3)),
        "columns": rng.standard_normal((10, 6)),
        "rows": np.array([0, 6, 10]),
        "w3": rng.standard_normal((90 if head == "pool" else 360, 5)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "c1", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"], "relu"),
    ]
    if head == "tokens":  # (N, 6, 10, 10) -> (N, 100, 6)
        arrays["columns"], arrays["w3"] = rng.standard_normal((6, 6)), rng.standard_normal((600, 5))
        arrays["rows"] = np.array([0, 6, 100])
        nodes += [
            helper.make_node("Reshape", ["r", "rows"], ["t"], "reshape"),
            helper.make_node("Transpose", ["t"], ["k"], "transpose", perm=[0, 2, 1]),
        ]
    nodes.append(
        helper.make_node("MatMul", ["k" if head == "tokens" else "r", "columns"], ["m"], "matmul")
    )
    if head == "pool":
        pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
        nodes.append(helper.make_node("AveragePool", ["m"], ["p"], "pool", **pool))
    nodes += [
        helper.make_node("Flatten", ["p" if head == "pool" else "m"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w3"], ["y"], "gemm"),
    ]
    weights = [
        numpy_helper.from_array(a if a.dtype == np.int64 else a.astype(np.float32), n)
        for n, a in arrays.items()
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 10, 10))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 5))],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    groups = scale_groups(model)
    assert not {"m", "p", "f"} & set(groups)
    x = rng.standard_normal((1, 3, 10, 10)).astype(np.float32)
    scales = any_scales(model, 5)
    close(run(equalize(model, scales), x)[0], run(model, x)[0])
