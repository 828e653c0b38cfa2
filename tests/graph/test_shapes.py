"""Shapes without the weights are those with them."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fr_edge.graph.shapes import tensor_types


def network(kernel: np.ndarray, reshape: np.ndarray) -> onnx.ModelProto:
    """A large kernel, a small constant that a shape depends on."""
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Conv", ["face", "w"], ["y"], strides=[2, 2]),
                helper.make_node("Reshape", ["y", "to"], ["z"]),
                helper.make_node("Relu", ["z"], ["embedding"]),
            ],
            "n",
            [helper.make_tensor_value_info("face", TensorProto.FLOAT, ["batch", 3, 11, 9])],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(kernel, "w"), numpy_helper.from_array(reshape, "to")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )


def shapes(values: list[onnx.ValueInfoProto]) -> dict[str, list[str]]:
    return {v.name: [str(d) for d in v.type.tensor_type.shape.dim] for v in values}


def test_as_with_the_weights() -> None:
    model = network(np.ones((16, 3, 5, 3), np.float32), np.array([0, -1]))
    whole = onnx.shape_inference.infer_shapes(model).graph
    result = tensor_types(model)
    expected = shapes([*whole.value_info, *whole.output, *whole.input])
    assert {n: [str(d) for d in t.shape.dim] for n, t in result.items()} == expected
    assert [d.dim_value for d in result["z"].shape.dim][1:] == [16 * 4 * 4]
    assert result["y"].elem_type == TensorProto.FLOAT


def test_weights_are_no_tensors_of_the_graph_and_stay_in_the_model() -> None:
    model = network(np.ones((16, 3, 5, 3), np.float32), np.array([0, -1]))
    before = model.SerializeToString()
    assert set(tensor_types(model)) == {"face", "y", "z", "embedding"}
    assert model.SerializeToString() == before


def test_weights_among_the_inputs_as_old_files_have_them() -> None:
    model = network(np.ones((16, 3, 5, 3), np.float32), np.array([0, -1]))
    old = onnx.ModelProto.FromString(model.SerializeToString())
    old.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [16, 3, 5, 3]))
    assert tensor_types(old)["z"] == tensor_types(model)["z"]
