"""Which channels share a scale through concatenations, splits and shuffles, and which have none."""

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from fitted import alike, any_scales, close, fit, run
from onnx import TensorProto, helper, numpy_helper
from random_graphs import random_model

from fr_edge.calibration.equalization import channel_scales, equalize, quantized_inputs
from fr_edge.calibration.fitting import CalibrationSteps
from fr_edge.calibration.histogram import Histogram, add_values, empty_histogram
from fr_edge.calibration.qdq import quantize_onnx
from fr_edge.calibration.scale_groups import scale_groups
from fr_edge.graph.layers import choose_int8_layers


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


def drawn(model: onnx.ModelProto) -> np.ndarray:
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    shape = shape or [2, 3, 4, 4]
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def measured(model: onnx.ModelProto) -> dict[str, Histogram]:
    """What INT8 layers read, of noise."""
    inner = [tensor for tensor in choose_int8_layers(model).tensors if tensor != "x"]
    values = {"x": drawn(model), **dict(zip(inner, run(model, drawn(model), *inner), strict=True))}
    return {name: add_values(empty_histogram(v.shape[1]), v) for name, v in values.items()}


def measured_scales(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The scales that calibration on noise chooses."""
    choice = choose_int8_layers(model)
    return channel_scales(model, choice, quantized_inputs(model, choice, measured(model), {}))


@pytest.mark.parametrize(("read_alone", "turned"), [(False, False), (True, False), (False, True)])
def test_a_concatenation_has_the_scales_of_its_parts(read_alone: bool, turned: bool) -> None:
    """Ghost modules; also where an INT8 layer reads a part by itself."""
    model = ghosts(read_alone, turned)
    scales = measured_scales(model)
    last = {"a_last", "r_last", "ar_last"} if turned else set()
    assert set(scales) == {"a", "b", "r", "ar", "c", "d", "cd", "sum"} | last
    for first, second, whole in (("a", "r", "ar"), ("c", "d", "cd")):
        np.testing.assert_array_equal(
            np.concatenate([scales[first], scales[second]]), scales[whole]
        )
        np.testing.assert_array_equal(scales[whole], scales["sum"])
        assert scales[whole].max() > 1.5 * scales[whole].min()
    x, equal = drawn(model), equalize(model, scales)
    close(run(equal, x)[0], run(model, x)[0])
    assert not np.array_equal(run(equal, x, "ar")[0], run(model, x, "ar")[0])


def exact_with(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The groups of a model, whose outputs are the same with any scales of them."""
    scales, x = any_scales(model, 3), drawn(model)
    for result, expected in zip(run(equalize(model, scales), x), run(model, x), strict=True):
        close(result, expected)
    return scale_groups(model)


def test_channels_that_come_twice_share_a_scale() -> None:
    """`a` is first and last among channels that are added."""
    model = ghosts(False)
    model.graph.node[6].input[:] = ["d", "a"]
    groups = exact_with(model)
    assert alike(groups, "a", "r", "d")
    assert groups["sum"].tolist() == [*groups["a"], *groups["a"]]


@pytest.mark.parametrize("fixed", ["r", "d"])
def test_channels_beside_those_of_an_output_are_scaled_alone(fixed: str) -> None:
    """`r` and `d` are added."""
    model = ghosts(False)
    model.graph.output.append(helper.make_tensor_value_info(fixed, TensorProto.FLOAT, (2, 4, 6, 6)))
    groups = exact_with(model)
    assert not {"b", "r", "d"} & groups.keys()
    assert groups["sum"].tolist() == [*groups["a"], -1, -1, -1, -1]
    loud = next(tensor for tensor in model.graph.initializer if tensor.name == "d1")
    loud.CopyFrom(numpy_helper.from_array(50 * numpy_helper.to_array(loud), "d1"))
    scales = measured_scales(model)
    assert scales["a"].max() < 1  # louder then, towards the others, whose scale is 1
    assert scales["a"].max() > 1.5 * scales["a"].min()
    assert scales["sum"].tolist() == [*scales["a"], 1, 1, 1, 1]


def test_a_concatenation_of_rows_has_no_scale() -> None:
    model = ghosts(False)
    second = model.graph.node[6]
    second.attribute[0].i = 2
    second.input[:] = ["ar", "ar"]
    assert not {"a", "b", "r", "ar", "cd", "sum"} & scale_groups(model).keys()


def shuffled(how: str) -> onnx.ModelProto:
    """ShuffleNet V2: half of the channels pass, the others go through two layers; then a shuffle."""
    rng = np.random.default_rng(3)
    arrays = {
        "w1": rng.standard_normal((8, 3, 1, 1)),
        "w2": rng.standard_normal((4, 4, 1, 1)),
        "d2": rng.standard_normal((4, 1, 3, 3)),
        "w3": rng.standard_normal((5, 8, 1, 1)),
    }
    arrays["w1"][:2] *= 8
    shapes = {"half": [4, 4], "apart": [2, 2, 4, 6, 6], "joined": [2, 8, 6, 6]}
    numbers = {
        "zero": [0],
        "one": [1],
        "four": [4],
        "eight": [8],
        "two": [2],
        "first": 0,
        "last": 1,
    }
    node = helper.make_node
    if how == "split":
        take = [node("Split", ["r", "half"], ["left", "right"], "split", axis=1)]
    elif how == "slice":
        take = [
            node("Slice", ["r", "zero", "four", "one"], ["left"], "left"),
            node("Slice", ["r", "four", "eight", "one"], ["right"], "right"),
        ]
    elif how == "every second":
        take = [
            node("Slice", ["r", "zero", "eight", "one", "two"], ["left"], "left"),
            node("Slice", ["r", "one", "eight", "one", "two"], ["right"], "right"),
        ]
    else:  # as the authors of ShuffleNet V2 wrote it: even and odd channels, through (2, N, C/2, H, W)
        shapes["pairs"], shapes["two_first"] = [8, 2, 36], [2, -1, 4, 6, 6]
        take = [
            node("Reshape", ["r", "pairs"], ["in_pairs"], "pairs"),
            node("Transpose", ["in_pairs"], ["turned"], "turn", perm=[1, 0, 2]),
            node("Reshape", ["turned", "two_first"], ["both"], "both"),
            node("Gather", ["both", "first"], ["left"], "left", axis=0),
            node("Gather", ["both", "last"], ["right"], "right", axis=0),
        ]
    nodes = [
        node("Conv", ["x", "w1"], ["a"], "c1"),
        node("Relu", ["a"], ["r"], "relu"),
        *take,
        node("Conv", ["right", "w2"], ["b"], "c2"),
        node("Conv", ["b", "d2"], ["d"], "c3", pads=[1] * 4, group=4),
        node("Concat", ["left", "d"], ["c"], "concat", axis=1),
        node("Reshape", ["c", "apart"], ["five"], "apart"),
        node("Transpose", ["five"], ["mixed"], "shuffle", perm=[0, 2, 1, 3, 4]),
        node("Reshape", ["mixed", "joined"], ["s"], "joined"),
        node("Conv", ["s", "w3"], ["y"], "c4"),
    ]
    weights = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    lists = shapes | numbers
    weights += [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in lists.items()]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (2, channels, 6, 6))
        for name, channels in (("x", 3), ("y", 5))
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("how", ["split", "slice", "every second", "authors"])
def test_channels_keep_their_scales_through_splits_and_shuffles(how: str) -> None:
    model = shuffled(how)
    groups = exact_with(model)
    left = [0, 1, 2, 3] if how in ("split", "slice") else [0, 2, 4, 6]
    assert groups["left"].tolist() == groups["r"][left].tolist()
    assert groups["s"].tolist() == [
        g for pair in zip(groups["left"], groups["d"], strict=True) for g in pair
    ]
    assert sorted(groups["right"]) == sorted(set(groups["r"]) - set(groups["left"]))
    scales = measured_scales(model)
    assert scales["a"].max() > 1.5 * scales["a"].min()
    close(run(equalize(model, scales), drawn(model))[0], run(model, drawn(model))[0])


@pytest.mark.parametrize("spoilt", ["five", "mixed"])
def test_what_is_read_in_the_middle_of_a_shuffle_has_no_scale(spoilt: str) -> None:
    model = shuffled("split")
    model.graph.node.append(helper.make_node("Sigmoid", [spoilt], ["z"], "sigmoid"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    assert set(exact_with(model)) == {"a", "r", "right", "b"}


@pytest.mark.parametrize(
    "model", [ghosts(read_alone=True), shuffled("split")], ids=["ghosts", "shuffle"]
)
def test_int8_is_closer_where_channels_are_joined_and_shuffled(model: onnx.ModelProto) -> None:
    histograms, x = measured(model), drawn(model)
    exact = run(model, x)[0]

    def error(equalization: bool) -> float:
        steps = CalibrationSteps(equalization, activation_shift=False, bias_correction=False)
        table = fit(model, histograms, "auto", steps)
        return float(np.square(run(quantize_onnx(model, table), x)[0] - exact).sum())

    assert error(True) < 0.7 * error(False)


def test_columns_behind_a_reshape_are_no_channels() -> None:
    model = ghosts(False)
    columns = np.random.default_rng(0).standard_normal((288, 5)).astype(np.float32)
    arrays = {"rows": np.array([2, 288]), "columns": columns}
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in arrays.items())
    del model.graph.node[-1]
    model.graph.node.extend([
        helper.make_node("Reshape", ["sum", "rows"], ["flat"], "reshape"),
        helper.make_node("MatMul", ["flat", "columns"], ["out"], "product"),
    ])  # fmt: skip
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("out", TensorProto.FLOAT, (2, 5)))
    assert not {"flat", "sum", "ar", "a"} & exact_with(model).keys()


@pytest.mark.parametrize(("value", "passes"), [(0.0, True), (1.0, False)])
def test_maxima_share_a_scale_and_zeros_have_any(value: float, passes: bool) -> None:
    """LightCNN's layers, padded on two sides as TensorFlow does."""
    rng = np.random.default_rng(0)
    arrays = {
        "w1": rng.standard_normal((8, 3, 1, 1)),
        "w2": rng.standard_normal((5, 4, 2, 2)),
        "value": np.array(value),
    }
    lists = {"half": [4, 4], "pads": [0, 0, 0, 0, 0, 0, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "c1"),
        helper.make_node("Split", ["a", "half"], ["left", "right"], "split", axis=1),
        helper.make_node("Max", ["left", "right"], ["larger"], "max"),
        helper.make_node("Pad", ["larger", "pads", "value"], ["wide"], "pad"),
        helper.make_node("Conv", ["wide", "w2"], ["y"], "c2"),
    ]
    weights = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    weights += [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in lists.items()]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (2, channels, 6, 6))
        for name, channels in (("x", 3), ("y", 5))
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    opsets = [helper.make_opsetid("", 17)]
    groups = exact_with(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    assert set(groups) == ({"a", "left", "right", "larger", "wide"} if passes else set())
    if passes:
        assert alike(groups, "left", "right", "wide")
        assert groups["a"].tolist() == [*groups["left"], *groups["left"]]


def small(
    nodes: list[onnx.NodeProto], shapes: dict[str, tuple[int, ...]], **lists: object
) -> onnx.ModelProto:
    """From `x (2, 3, 4, 4)` to `y`, with random weights of the shapes and numbers as they are."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    weights += [numpy_helper.from_array(np.array(v), name) for name, v in lists.items()]
    for number, each in enumerate(nodes):
        each.name = f"node_{number}"
    face = helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 3, 4, 4))
    end = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "small", [face], [end], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def branch(name: str) -> onnx.GraphProto:
    """Of an If: it reads `a`, which is no input of the node."""
    value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node("Sigmoid", ["a"], [name])], name, [], [value])


def odd_networks() -> Iterator[tuple[str, onnx.ModelProto]]:
    node = helper.make_node
    conv, second = node("Conv", ["x", "w"], ["a"]), node("Conv", ["b", "v"], ["y"])
    four = {"w": (4, 3, 1, 1), "v": (5, 4, 1, 1)}
    ends = {
        "reshape": node("Reshape", ["a", "rows"], ["y"]),
        "transpose": node("Transpose", ["a"], ["y"], perm=[1, 0, 2, 3]),
        "gather twice": node("Gather", ["a", "twice"], ["y"], axis=1),
    }
    for name, end in ends.items():
        yield f"ends in {name}", small([conv, end], four, rows=[2, -1], twice=[0, 0, -1])
    for name, pads in {
        "pads": {"shift": [0, -1, 0, 0, 0, 1, 0, 0]},
        "pads and axes": {"shift": [1, -1], "one": [1]},
    }.items():
        inputs = ["a", "shift", "", "one"] if "one" in pads else ["a", "shift"]
        yield name, small([conv, node("Pad", inputs, ["b"]), second], four, **pads)
    unknown = small([conv, node("Pad", inputs, ["b"]), second], four, **pads)
    unknown.graph.input[0].type.tensor_type.ClearField("shape")
    yield f"{name} of unknown shapes", unknown
    wide = {"w": (1, 3, 1, 1), "u": (8, 3, 1, 1), "z": (3, 3, 1, 1), "m": (176, 5)}
    gate = [conv, node("Conv", ["x", "u"], ["g"]), node("Sigmoid", ["g"], ["s"])]
    gate += [node("Mul", ["a", "s"], ["p"]), node("Conv", ["x", "z"], ["q"])]
    gate += [node("Concat", ["p", "q"], ["c"], axis=1), node("Flatten", ["c"], ["f"])]
    yield "one channel, a gate of eight", small([*gate, node("Gemm", ["f", "m"], ["y"])], wide)
    rectified = [conv, node("Flatten", ["a"], ["f"]), node("Relu", ["f"], ["r"])]
    yield (
        "flatten, relu",
        small([*rectified, node("Gemm", ["r", "m"], ["y"])], four | {"m": (64, 5)}),
    )
    slope = [conv, node("PRelu", ["k", "a"], ["b"]), second]
    yield "a slope that is computed", small(slope, four | {"k": (2, 4, 4, 4)})
    choice = [node("ReduceSum", ["x"], ["t"], keepdims=0), node("Greater", ["t", "zero"], ["if"])]
    branches = {"then_branch": branch("p"), "else_branch": branch("q")}
    choice += [node("If", ["if"], ["d"], **branches), node("Conv", ["a", "u"], ["b"])]
    four |= {"u": (4, 4, 1, 1)}
    read = [conv, *choice, node("Add", ["b", "d"], ["y"])]
    yield "read by a branch", small(read, four, zero=np.float32(0))


ODD = dict(odd_networks())


@pytest.mark.parametrize("name", ODD)
def test_any_scales_leave_odd_networks(name: str) -> None:
    exact_with(ODD[name])


def test_detectors_of_any_image_size_have_scales() -> None:
    """As they are exported: height and width are open, and shapes known in part."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node("Transpose", ["a"], ["last"], perm=[0, 2, 3, 1]),
        node("MatMul", ["last", "m"], ["mixed"]),
        node("Transpose", ["mixed"], ["b"], perm=[0, 3, 1, 2]),
        node("Split", ["b", "half"], ["left", "right"], axis=1),
        node("Max", ["left", "right"], ["c"]),
        node("Conv", ["c", "v"], ["d"]),
        node("Reshape", ["d", "rows"], ["y"]),
    ]
    shapes = {"w": (4, 3, 1, 1), "m": (4, 4), "v": (5, 2, 1, 1)}
    model = small(nodes, shapes, half=[2, 2], rows=[0, 5, -1])
    dims = model.graph.input[0].type.tensor_type.shape.dim
    for dim, name in zip(dims, ("n", "", "height", "width"), strict=True):
        if name:
            dim.dim_param = name
    groups, x = scale_groups(model), np.ones((1, 3, 6, 8), np.float32)
    assert alike(groups, "a", "last")
    close(run(equalize(model, any_scales(model, 3)), x)[0], run(model, x)[0])


def test_any_scales_leave_random_networks() -> None:
    """Of what scales, moves, joins and gates channels, and now and then of what has no scale."""
    scaled = partly = 0
    for seed in range(60):
        model = random_model(seed)
        groups, x = scale_groups(model), drawn(model)
        scales = {name: np.clip(s, 0.25, 4) for name, s in any_scales(model, seed).items()}
        scaled += len(scales)
        partly += sum(channels.min() < 0 for channels in groups.values())
        result, expected = run(equalize(model, scales), x)[0], run(model, x)[0]
        close = np.allclose(result, expected, rtol=2e-3, atol=1e-3 * np.abs(expected).max())
        assert close, f"seed {seed}"
    assert scaled > 300
    assert partly > 3
