"""PReLU's other forms are PReLU, TensorRT's to the bit."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from fr_edge.graph.prelu import blended, fusible

SLOPES = {
    "usual": np.random.default_rng(0).uniform(0, 1, 5),
    "edges": [0, 1, 0.25, 1e-30, 0.5],
    "negative": [-0.3, 0.2, 0, 1, 0.1],
    "steep": [0.3, 4.0, 0.2, 0.1, 1],
}


def net(slopes: np.ndarray, dtype: type, shape: tuple[int, ...]) -> ModelProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [helper.make_node("PRelu", ["x", "a"], ["y"], "act")],
        "g",
        [helper.make_tensor_value_info("x", kind, ["N", 5, 3, 4])],
        [helper.make_tensor_value_info("y", kind, ["N", 5, 3, 4])],
        [numpy_helper.from_array(np.asarray(slopes, dtype).reshape(shape), "a")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("kind", SLOPES)
def test_bit_for_bit(kind: str, dtype: type, tools: SimpleNamespace) -> None:
    model = net(np.asarray(SLOPES[kind]), dtype, (5, 1, 1))
    other = fusible(model)
    onnx.checker.check_model(other, full_check=True)
    assert "PRelu" not in {node.op_type for node in other.graph.node}
    x = (np.random.default_rng(1).normal(size=(7, 5, 3, 4)) * 100).astype(dtype)
    x[0] = 0
    x[1] = np.finfo(dtype).max
    x[2] = -np.finfo(dtype).max / 8
    x[3] = np.finfo(dtype).smallest_normal
    np.testing.assert_array_equal(tools.run(other, x), tools.run(model, x))


def test_one_slope_for_all(tools: SimpleNamespace) -> None:
    model = net(np.array([0.1]), np.float32, (1, 1, 1))
    x = tools.noise(2, 5, 3, 4)
    np.testing.assert_array_equal(tools.run(fusible(model), x), tools.run(model, x))


def test_a_whole_network(tools: SimpleNamespace) -> None:
    model = tools.standard(tools.build())
    other = fusible(model)
    assert len({node.name for node in other.graph.node}) == len(other.graph.node)
    assert {n.name for n in model.graph.node} <= {n.name for n in other.graph.node}
    faces = tools.noise(3, 3, 112, 112)
    # onnxruntime fuses differently around the two: the sums, not the activation, may differ.
    assert tools.cosine(tools.run(other, faces), tools.run(model, faces)) > 1 - 1e-9
    assert TensorProto.FLOAT in {t.data_type for t in other.graph.initializer}


@pytest.mark.parametrize("kind", SLOPES)
def test_blended_but_for_a_rounding(kind: str, tools: SimpleNamespace) -> None:
    model = net(np.asarray(SLOPES[kind]), np.float32, (5, 1, 1))
    other = blended(model)
    onnx.checker.check_model(other, full_check=True)
    assert "PRelu" not in {node.op_type for node in other.graph.node}
    x = tools.noise(7, 5, 3, 4) * 100
    np.testing.assert_allclose(tools.run(other, x), tools.run(model, x), rtol=2e-6, atol=0)


def test_blended_leaves_slopes_that_are_computed(tools: SimpleNamespace) -> None:
    model = net(np.full(5, 0.1), np.float32, (5, 1, 1))
    model.graph.node[0].input[1] = "b"
    model.graph.node.insert(0, helper.make_node("Neg", ["a"], ["b"], "neg"))
    x = tools.noise(2, 5, 3, 4)
    np.testing.assert_array_equal(tools.run(blended(model), x), tools.run(model, x))
