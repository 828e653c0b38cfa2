"""Models of newer opsets say the same in opset 17."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from fr_edge.errors import ModelError
from fr_edge.export.opset import OPSET, at_opset


def node(op: str, inputs: Sequence[str], out: str = "y", **attributes: Any) -> NodeProto:
    return helper.make_node(op, list(inputs), [out], **attributes)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


CASES: dict[str, tuple[int, list[int], list[NodeProto], dict[str, np.ndarray]]] = {
    "reduction with axes": (18, [2, 6, 5], [node("ReduceMean", ["x", "a"])], {"a": ints(1)}),
    "reduction as PyTorch writes it": (
        18, [2, 6, 5],
        [node("ReduceMean", ["x", "a"], noop_with_empty_axes=0, keepdims=1)], {"a": ints(-1)},
    ),
    "reduction of nothing": (
        18, [2, 6, 5], [node("ReduceMean", ["x", ""], noop_with_empty_axes=1)], {},
    ),
    "uneven split": (
        18, [2, 7, 5],
        [
            helper.make_node("Split", ["x"], ["p", "q", "r"], axis=1, num_outputs=3),
            node("Concat", ["r", "p", "q"], axis=1),
        ],
        {},
    ),
    "pad of one axis": (
        18, [2, 6, 5], [node("Pad", ["x", "p", "", "a"])], {"p": ints(1, 2), "a": ints(-1)},
    ),
    "resize of two axes": (
        18, [1, 3, 8, 6],
        [node("Resize", ["x", "", "", "s"], axes=[2, 3], mode="linear")], {"s": ints(12, 9)},
    ),
    "resize that averages": (
        18, [2, 3, 28, 20],
        [node("Resize", ["x", "", "", "s"], antialias=1, mode="linear", axes=[2, 3])],
        {"s": ints(12, 10)},
    ),
    "resize that averages, to the batch and fixed sizes": (
        18, [2, 3, 28, 20],
        [
            helper.make_node("Shape", ["x"], ["n"], start=0, end=1),
            helper.make_node("Concat", ["n", "c", "s"], ["to"], axis=0),
            node("Resize", ["x", "", "", "to"], antialias=1, mode="linear"),
        ],
        {"c": ints(3), "s": ints(12, 10)},
    ),
    "resize that averages, cubic": (
        19, [1, 3, 28, 28],
        [node("Resize", ["x", "", "f"], antialias=1, mode="cubic")],
        {"f": np.float32([1, 1, 0.5, 0.25])},
    ),
    "group norm": (
        21, [2, 6, 5, 4], [node("GroupNormalization", ["x", "g", "b"], num_groups=3)],
        {"g": floats(6), "b": floats(6)},
    ),
    "gelu": (20, [2, 6, 5], [node("Gelu", ["x"], approximate="tanh")], {}),
    "mish": (18, [2, 6, 5], [node("Mish", ["x"])], {}),
    "rms norm": (
        23, [2, 6, 5], [node("RMSNormalization", ["x", "g"], axis=-1, epsilon=1e-3)],
        {"g": floats(5)},
    ),
    "rms norm of two axes": (
        23, [2, 6, 5], [node("RMSNormalization", ["x", "g"], axis=1)], {"g": floats(6, 5)},
    ),
    "attention, rank 4": (23, [2, 3, 7, 8], [node("Attention", ["x", "x", "x"])], {}),
    "attention, rank 3": (
        23, [2, 7, 12],
        [node("Attention", ["x", "x", "x"], q_num_heads=3, kv_num_heads=3, scale=0.3)], {},
    ),
}  # fmt: skip


def model_of(name: str) -> onnx.ModelProto:
    opset, shape, nodes, constants = CASES[name]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape[1:]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list("abcd"[: len(shape)]))],
        [numpy_helper.from_array(array, key) for key, array in constants.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("name", CASES)
def test_the_same_at_opset_17(name: str) -> None:
    given = model_of(name)
    model = at_opset(given)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    assert all(onnx.defs.has(n.op_type, OPSET) for n in model.graph.node)
    onnx.checker.check_model(model, full_check=True)
    x = floats(*CASES[name][1])
    np.testing.assert_allclose(run(model, x), run(given, x), rtol=1e-4, atol=2e-5)


def test_attention_leaves_the_pattern_that_engines_fuse() -> None:
    for name in ("attention, rank 3", "attention, rank 4"):
        kinds = [n.op_type for n in at_opset(model_of(name)).graph.node]
        assert kinds.count("MatMul") == 2
        assert set(kinds) <= {"MatMul", "Mul", "Softmax", "Transpose", "Reshape"}


def test_what_cannot_be_said_is_named() -> None:
    given = model_of("resize of two axes")
    given.graph.node[0].attribute.append(
        helper.make_attribute("keep_aspect_ratio_policy", "not_larger")
    )
    with pytest.raises(ModelError, match="opset 18 and cannot be brought to 17.*keep_aspect_ratio"):
        at_opset(given)
