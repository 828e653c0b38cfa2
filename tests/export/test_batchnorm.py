"""BatchNormalization disappears into its neighbour without a change, or stays."""

from types import SimpleNamespace

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from fr_edge.export.batchnorm import fold_batchnorm

RANDOM = np.random.default_rng(3)


def norm(name: str, source: str, out: str, channels: int, weights: dict[str, np.ndarray]):
    parts = ("gamma", "beta", "mean", "var")
    for part in parts:
        low = 0.5 if part in ("gamma", "var") else -1
        weights[f"{name}_{part}"] = np.float32(RANDOM.uniform(low, 2, channels))
    inputs = [source, *(f"{name}_{part}" for part in parts)]
    return helper.make_node("BatchNormalization", inputs, [out], name, epsilon=1e-3)


def model(nodes: list, weights: dict[str, np.ndarray], shape: tuple[int, ...]) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def check(before: ModelProto, shape: tuple[int, ...], norms: int, tools: SimpleNamespace) -> dict:
    """Fold a copy; the function must be the same and `norms` BatchNormalizations be left."""
    given = before.SerializeToString()
    after, done = fold_batchnorm(before)
    assert before.SerializeToString() == given
    left = [node for node in after.graph.node if node.op_type == "BatchNormalization"]
    assert len(left) == norms
    inputs = tools.noise(5, *shape)
    np.testing.assert_allclose(
        tools.run(after, inputs), tools.run(before, inputs), rtol=1e-4, atol=1e-5
    )
    return done


@pytest.mark.parametrize("groups", [1, 3, 6])
@pytest.mark.parametrize("bias", [False, True])
def test_conv_then_norm(groups: int, bias: bool, tools: SimpleNamespace) -> None:
    weights = {"w": np.float32(RANDOM.normal(size=(12, 6 // groups, 3, 3)))}
    inputs = ["x", "w"]
    if bias:
        weights["b"] = np.float32(RANDOM.normal(size=12))
        inputs.append("b")
    nodes = [
        helper.make_node("Conv", inputs, ["c"], group=groups, pads=[1] * 4),
        norm("n", "c", "y", 12, weights),
    ]
    check(model(nodes, weights, (6, 7, 5)), (6, 7, 5), 0, tools)


@pytest.mark.parametrize("groups", [1, 3, 6])
@pytest.mark.parametrize("pads", [0, 1])
def test_norm_then_conv_only_without_padding(
    groups: int, pads: int, tools: SimpleNamespace
) -> None:
    weights = {"w": np.float32(RANDOM.normal(size=(12, 6 // groups, 3, 3)))}
    nodes = [
        norm("n", "x", "m", 6, weights),
        helper.make_node("Conv", ["m", "w"], ["y"], group=groups, pads=[pads] * 4),
    ]
    check(model(nodes, weights, (6, 7, 5)), (6, 7, 5), pads, tools)


@pytest.mark.parametrize("trans", [0, 1])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("first", [True, False])
def test_gemm(trans: int, alpha: float, first: bool, tools: SimpleNamespace) -> None:
    """The last layer of face networks, before or behind its norm."""
    shape = (9, 6) if trans else (6, 9)
    weights = {
        "w": np.float32(RANDOM.normal(size=shape)),
        "b": np.float32(RANDOM.normal(size=9)),
    }
    attributes = {"transB": trans, "alpha": alpha, "beta": 0.25}
    if first:
        nodes = [
            helper.make_node("Gemm", ["x", "w", "b"], ["g"], **attributes),
            norm("n", "g", "y", 9, weights),
        ]
    else:
        nodes = [
            norm("n", "x", "m", 6, weights),
            helper.make_node("Gemm", ["m", "w", "b"], ["y"], **attributes),
        ]
    check(model(nodes, weights, (6,)), (6,), 0, tools)


def test_norm_flatten_gemm(tools: SimpleNamespace) -> None:
    """IResNet's tail: one factor per channel becomes one per flattened pixel."""
    weights = {"w": np.float32(RANDOM.normal(size=(4, 6 * 35)))}
    nodes = [
        norm("n", "x", "m", 6, weights),
        helper.make_node("Flatten", ["m"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["y"], transB=1),
    ]
    done = check(model(nodes, weights, (6, 7, 5)), (6, 7, 5), 0, tools)
    assert done == {"BatchNormalization+Flatten+Gemm": 1}


def test_conv_flatten_norm(tools: SimpleNamespace) -> None:
    """A global convolution's tail: one pixel, so the flattened channels are the channels."""
    weights = {"w": np.float32(RANDOM.normal(size=(8, 6, 7, 5)))}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Flatten", ["c"], ["f"]),
        norm("n", "f", "y", 8, weights),
    ]
    check(model(nodes, weights, (6, 7, 5)), (6, 7, 5), 0, tools)


def test_conv_flatten_norm_over_pixels_stays(tools: SimpleNamespace) -> None:
    weights = {"w": np.float32(RANDOM.normal(size=(8, 6, 6, 5)))}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Flatten", ["c"], ["f"]),
        norm("n", "f", "y", 16, weights),
    ]
    check(model(nodes, weights, (6, 7, 5)), (6, 7, 5), 1, tools)


def test_a_tensor_with_other_readers_stays(tools: SimpleNamespace) -> None:
    weights = {"w": np.float32(RANDOM.normal(size=(6, 6, 1, 1)))}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        norm("n", "c", "m", 6, weights),
        helper.make_node("Add", ["c", "m"], ["y"]),
    ]
    check(model(nodes, weights, (6, 7, 5)), (6, 7, 5), 1, tools)


def test_shared_weights_are_not_spoilt(tools: SimpleNamespace) -> None:
    """Two convolutions read one kernel; only one has a norm behind it."""
    weights = {"w": np.float32(RANDOM.normal(size=(6, 6, 1, 1)))}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        norm("n", "c", "m", 6, weights),
        helper.make_node("Conv", ["m", "w"], ["y"]),
    ]
    check(model(nodes, weights, (6, 7, 5)), (6, 7, 5), 0, tools)


def test_a_damaged_norm_stays() -> None:
    weights = {"w": np.float32(RANDOM.normal(size=(6, 6, 1, 1)))}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), norm("n", "c", "y", 6, weights)]
    weights["n_var"][2] = -1
    assert fold_batchnorm(model(nodes, weights, (6, 7, 5)))[1] == {}


def test_norms_in_a_row(tools: SimpleNamespace) -> None:
    """Behind a convolution the first goes first; before one, the last."""
    weights = {
        "w": np.float32(RANDOM.normal(size=(6, 6, 3, 3))),
        "v": np.float32(RANDOM.normal(size=(6, 6, 1, 1))),
    }
    nodes = [
        norm("a", "x", "a", 6, weights),
        norm("b", "a", "b", 6, weights),
        helper.make_node("Conv", ["b", "w"], ["c"]),
        norm("d", "c", "d", 6, weights),
        norm("e", "d", "e", 6, weights),
        helper.make_node("Conv", ["e", "v"], ["y"]),
    ]
    done = check(model(nodes, weights, (6, 7, 5)), (6, 7, 5), 0, tools)
    assert done == {"Conv+BatchNormalization": 2, "BatchNormalization+Conv": 2}


def test_only_into_producers(tools: SimpleNamespace) -> None:
    """Trained ranges are of what the layer behind reads now."""
    weights = {"w": np.float32(RANDOM.normal(size=(6, 6, 1, 1)))}
    nodes = [norm("n", "x", "m", 6, weights), helper.make_node("Conv", ["m", "w"], ["y"])]
    before = model(nodes, weights, (6, 7, 5))
    assert fold_batchnorm(before, into_readers=False)[1] == {}
    assert fold_batchnorm(before)[1] == {"BatchNormalization+Conv": 1}


def test_a_bias_left_empty(tools: SimpleNamespace) -> None:
    weights = {"w": np.float32(RANDOM.normal(size=(6, 6, 1, 1)))}
    nodes = [helper.make_node("Conv", ["x", "w", ""], ["c"]), norm("n", "c", "y", 6, weights)]
    check(model(nodes, weights, (6, 7, 5)), (6, 7, 5), 0, tools)


def test_the_rounding_is_that_of_one_weight(tools: SimpleNamespace) -> None:
    """Sums are made in float64: each folded weight is the float32 nearest to the exact one."""
    weights = {"w": np.float32(RANDOM.normal(size=(6, 6, 1, 1)))}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), norm("n", "c", "y", 6, weights)]
    after, _ = fold_batchnorm(model(nodes, weights, (6, 7, 5)))
    w, gamma, var = (weights[name].astype(np.float64) for name in ("w", "n_gamma", "n_var"))
    exact = w * (gamma / np.sqrt(var + np.float64(np.float32(1e-3)))).reshape(-1, 1, 1, 1)
    folded = {t.name: numpy_helper.to_array(t) for t in after.graph.initializer}
    np.testing.assert_array_equal(folded[after.graph.node[0].input[1]], exact.astype(np.float32))


@pytest.mark.parametrize("shape", [(), (1,), (9,), (1, 9)])
def test_matmul_and_a_row_become_gemm(shape: tuple[int, ...], tools: SimpleNamespace) -> None:
    weights = {
        "w": np.float32(RANDOM.normal(size=(6, 9))),
        "b": np.float32(RANDOM.normal(size=shape)),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], "product"),
        helper.make_node("Add", ["b", "p"], ["y"]),
    ]
    before = model(nodes, weights, (6,))
    after, _ = fold_batchnorm(before)
    assert [(node.op_type, node.name) for node in after.graph.node] == [("Gemm", "product")]
    x = tools.noise(5, 6)
    np.testing.assert_allclose(tools.run(after, x), tools.run(before, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 1), (5, 9), (1, 1, 9)])
def test_matmul_and_what_is_not_a_row(shape: tuple[int, ...], tools: SimpleNamespace) -> None:
    """A column broadcasts the other way, and a row of rank 3 changes the rank."""
    weights = {
        "w": np.float32(RANDOM.normal(size=(6, 9))),
        "b": np.float32(RANDOM.normal(size=shape)),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["y"]),
    ]
    before = model(nodes, weights, (6,))
    after, _ = fold_batchnorm(before)
    assert [node.op_type for node in after.graph.node] == ["Gemm", "Add"]
    x = tools.noise(5, 6)
    np.testing.assert_allclose(tools.run(after, x), tools.run(before, x), rtol=1e-4, atol=1e-5)
