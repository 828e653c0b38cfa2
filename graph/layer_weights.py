"""The weights and biases of layers, whatever operator holds them."""

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, NodeProto, numpy_helper

from ..arrays import F32, F64
from .edit import attribute
from .eight_bit import INT8, EightBit

_MIN_SCALE = np.float32(1e-12)  # of weights that are all zero


def output_axis(node: NodeProto, rank: int) -> int:
    """Tell which axis of a layer's weights is that of the output channels.

    Args:
        node: A Conv, Gemm or MatMul.
        rank: Number of axes of the weights.

    Returns:
        The axis.
    """
    rows = node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB", 0))
    return 0 if rows else rank - 1


def layer_columns(node: NodeProto, weight: F32) -> F32:
    """Reshape a layer's weights to output channels, input channels and kernel positions.

    Args:
        node: A Conv, Gemm or MatMul.
        weight: Its weights.

    Returns:
        `(O, C, K) float32`; K is 1 for matrices.
    """
    if node.op_type == "Conv":
        return weight.reshape(*weight.shape[:2], -1)
    return (weight if output_axis(node, 2) == 0 else weight.T)[:, :, None]


def weight_scales(node: NodeProto, weight: F32, form: EightBit = INT8) -> F32:
    """Compute the scale of each output channel: its largest weight over the format's largest number.

    Args:
        node: A Conv, Gemm or MatMul.
        weight: Its weights, float32.
        form: The 8-bit format.

    Returns:
        `(O,) float32`.
    """
    others = tuple(i for i in range(weight.ndim) if i != output_axis(node, weight.ndim))
    scales: F32 = np.abs(weight).max(axis=others) / np.float32(form.largest)
    return np.maximum(scales, _MIN_SCALE)


def store_weight(graph: GraphProto, name: str, array: npt.NDArray[Any]) -> str:
    """Store a constant in a graph; one of the same name is replaced.

    Args:
        graph: The graph.
        name: `OWNER/WHAT`; names with a slash and such an ending are fr-edge's.
        array: The numbers.

    Returns:
        The name.
    """
    tensor = numpy_helper.from_array(array, name)
    for old in graph.initializer:
        if old.name == name:
            old.CopyFrom(tensor)
            return name
    graph.initializer.append(tensor)
    return name


def add_to_bias(graph: GraphProto, node: NodeProto, shift: F64) -> None:
    """Add numbers to the output of a layer, through its bias, in place.

    Args:
        graph: The graph that holds the layer's constants.
        node: A Conv or Gemm; it gets a bias if it has none.
        shift: `(O,) float64`, one number per output channel; of a Gemm, before its factor alpha.

    Raises:
        ValueError: The bias is not constant.
    """
    old = node.input[2] if len(node.input) > 2 else ""
    bias = next((numpy_helper.to_array(t) for t in graph.initializer if t.name == old), None)
    if old and bias is None:
        raise ValueError(f"the bias of {node.name} is not constant")
    if node.op_type == "Gemm":  # alpha * a @ b + beta * c
        shift = shift * attribute(node, "alpha", 1.0) / (attribute(node, "beta", 1.0) or 1.0)
    array = (shift if bias is None else bias + shift).astype(np.float32)
    del node.input[2:]
    node.input.append(store_weight(graph, f"{node.name}/bias", array))
