"""Equalization leaves a float network's embeddings unchanged, and brings INT8 closer to them."""

import numpy as np
import onnx
import pytest
from fitted import fit, run
from onnx import TensorProto, helper, numpy_helper

from fr_edge.calibration.equalization import channel_scales, equalize, quantized_inputs
from fr_edge.calibration.fitting import CalibrationSteps
from fr_edge.calibration.histogram import Histogram, add_values, empty_histogram
from fr_edge.calibration.scale_groups import scale_groups
from fr_edge.graph.layer_weights import add_to_bias, has_bias
from fr_edge.graph.layers import choose_int8_layers


def close(result: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=2e-4 * np.abs(expected).max())


def sizes(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = [*inferred.value_info, *inferred.output, *inferred.input]
    return {v.name: v.type.tensor_type.shape.dim[1].dim_value for v in values}


def anything(model: onnx.ModelProto, seed: int) -> dict[str, np.ndarray]:
    """Random scales for every tensor that may have one."""
    rng, width, by_group = np.random.default_rng(seed), sizes(model), {}
    groups = scale_groups(model)
    for tensor, group in groups.items():
        by_group.setdefault(group, np.exp(rng.normal(0, 1, width[tensor])))
    return {tensor: by_group[group] for tensor, group in groups.items()}


def test_any_scales_leave_the_embedding(model: onnx.ModelProto, inputs: np.ndarray) -> None:
    scales = anything(model, 1)
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
    assert group in scale_groups(model).values()
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
    assert groups["r"] == groups["p"]
    assert groups["c"] == groups["f"]
    assert (groups["a"] == groups["r"]) == (not norm)
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
    assert groups["p"] == groups["r"] == groups["a"]
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
    scales = {tensor: np.exp(rng.normal(0, 1, 6)) for tensor in groups}
    close(run(equalize(model, scales), x)[0], run(model, x)[0])


def ghosts(read_alone: bool, turned: bool = False) -> onnx.ModelProto:
    """Twice half of the channels by a depthwise convolution of the other half, and a skip."""
    rng = np.random.default_rng(3)
    shapes = {"w1": (4, 3, 1, 1), "d1": (4, 1, 3, 3), "w2": (4, 8, 1, 1), "d2": (4, 1, 3, 3)}
    shapes |= {"w3": (5, 8, 1, 1), "w4": (5, 4, 1, 1)}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "c1"),
        helper.make_node("Conv", ["a", "d1"], ["b"], "c2", pads=[1] * 4, group=4),
        helper.make_node("Relu", ["b"], ["r"], "relu"),
        helper.make_node("Concat", ["a", "r"], ["ar"], "first", axis=1),
        helper.make_node("Conv", ["ar", "w2"], ["c"], "c3"),
        helper.make_node("Conv", ["c", "d2"], ["d"], "c4", pads=[1] * 4, group=4),
        helper.make_node("Concat", ["c", "d"], ["cd"], "second", axis=-3),
        helper.make_node("Add", ["ar", "cd"], ["sum"], "sum"),
        helper.make_node("Conv", ["sum", "w3"], ["y"], "c5"),
    ]
    if turned:  # as TensorFlow has it: channels last between the layers
        before = [
            helper.make_node(
                "Transpose", [name], [f"{name}_last"], f"turn_{name}", perm=[0, 2, 3, 1]
            )
            for name in ("a", "r")
        ]
        joined = helper.make_node("Concat", ["a_last", "r_last"], ["ar_last"], "first", axis=3)
        back = helper.make_node("Transpose", ["ar_last"], ["ar"], "back", perm=[0, 3, 1, 2])
        nodes[3:4] = [*before, joined, back]
    if read_alone:
        nodes.append(helper.make_node("Conv", ["r", "w4"], ["z"], "c6"))
        nodes.append(helper.make_node("Add", ["y", "z"], ["out"], "ends"))
    else:
        nodes[-1].output[0] = "out"
    arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    arrays["w1"][0] *= 8
    weights = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (2, channels, 6, 6))
        for name, channels in (("x", 3), ("out", 5))
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("read_alone", "turned"), [(False, False), (True, False), (False, True)])
def test_a_concatenation_has_the_scales_of_its_parts(read_alone: bool, turned: bool) -> None:
    """Ghost modules. A part that an INT8 layer reads by itself too would want a scale of its own."""
    model = ghosts(read_alone, turned)
    choice = choose_int8_layers(model)
    x = np.random.default_rng(1).standard_normal((2, 3, 6, 6)).astype(np.float32)
    inner = [tensor for tensor in choice.tensors if tensor != "x"]
    values = {"x": x, **dict(zip(inner, run(model, x, *inner), strict=True))}
    histograms = {name: add_values(empty_histogram(v.shape[1]), v) for name, v in values.items()}
    inputs = quantized_inputs(model, choice, histograms, {})
    scales = channel_scales(model, choice, inputs)
    last = {"a_last", "r_last", "ar_last"} if turned else set()
    every = {"a", "b", "r", "ar", "c", "d", "cd", "sum"} | last
    assert set(scales) == (set() if read_alone else every)
    for first, second, whole in (("a", "r", "ar"), ("c", "d", "cd")) if scales else ():
        np.testing.assert_array_equal(
            np.concatenate([scales[first], scales[second]]), scales[whole]
        )
        np.testing.assert_array_equal(scales[whole], scales["sum"])
        assert scales[whole].max() > 1.5 * scales[whole].min()
    equal = equalize(model, scales)
    close(run(equal, x)[0], run(model, x)[0])
    assert bool(scales) == (not np.array_equal(run(equal, x, "ar")[0], run(model, x, "ar")[0]))


@pytest.mark.parametrize("twice", ["other place", "other axis", "output"])
def test_a_concatenation_that_cannot_have_its_parts_scales(twice: str) -> None:
    model = ghosts(False)
    second = model.graph.node[6]
    if twice == "other place":  # `a` would be first and last among channels that share a scale
        second.input[:] = ["d", "a"]
    elif twice == "other axis":
        second.attribute[0].i = 2
        second.input[:] = ["ar", "ar"]
    else:
        model.graph.output.append(onnx.ValueInfoProto(name="r"))
    assert not {"a", "b", "r", "ar", "c", "cd", "sum"} & set(scale_groups(model)) - {"c"}
