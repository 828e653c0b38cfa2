"""The weights and biases of layers, whatever operator holds them."""

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, NodeProto, numpy_helper

from ..arrays import F32, F64
from .edit import attribute, reads, uses
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


def groups_of(node: NodeProto) -> int:
    """Tell into how many groups a layer divides its channels.

    Args:
        node: A Conv, Gemm or MatMul.

    Returns:
        The groups of a convolution, 1 for other layers. Group i makes the i-th part of the output
        channels from the i-th part of the input channels.
    """
    return int(attribute(node, "group", 1))


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
        node: A Conv or Gemm, which gets a bias if it has none; or a MatMul with a constant added to
            its output.
        shift: `(O,) float64`, one number per output channel; of a Gemm, before its factor alpha.

    Raises:
        ValueError: The bias is not constant, or a MatMul has none.
    """
    place = (node, 2) if node.op_type != "MatMul" else _added_constant(graph, node)
    if place is None:
        raise ValueError(f"{node.name} has no bias")
    holder, index = place
    old = holder.input[index] if len(holder.input) > index else ""
    bias = next((numpy_helper.to_array(t) for t in graph.initializer if t.name == old), None)
    if old and bias is None:
        raise ValueError(f"the bias of {node.name} is not constant")
    if node.op_type == "Gemm":  # alpha * a @ b + beta * c
        shift = shift * attribute(node, "alpha", 1.0) / (attribute(node, "beta", 1.0) or 1.0)
    array = (shift if bias is None else bias + shift).astype(np.float32)
    name = store_weight(graph, f"{node.name}/bias", array)
    if index < len(holder.input):
        holder.input[index] = name
    else:
        holder.input.append(name)


def has_bias(graph: GraphProto, node: NodeProto) -> bool:
    """Tell whether `add_to_bias` can add to a layer's output.

    Args:
        graph: The graph that holds the layer.
        node: A Conv, Gemm or MatMul.

    Returns:
        True for a Conv or Gemm; for a MatMul, whether a constant is added to its output and to
        nothing else.
    """
    return node.op_type != "MatMul" or _added_constant(graph, node) is not None


def _added_constant(graph: GraphProto, node: NodeProto) -> tuple[NodeProto, int] | None:
    """The Add behind a MatMul, and which of its inputs is constant."""
    readers = [n for n in graph.node if node.output[0] in reads(n)]
    if len(readers) != 1 or readers[0].op_type != "Add" or uses(graph)[node.output[0]] != 1:
        return None
    constants = {tensor.name for tensor in graph.initializer}
    places = [i for i, name in enumerate(readers[0].input) if name in constants]
    return (readers[0], places[0]) if len(places) == 1 else None
