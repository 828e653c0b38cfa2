"""The weights and biases of layers, whatever operator holds them."""

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, NodeProto, numpy_helper

from ..arrays import F32, F64
from .edit import attribute

_TINY = np.float32(1e-12)
"""The step of weights that are all zero."""


def output_axis(node: NodeProto, rank: int) -> int:
    """Which axis of the weights runs over output channels."""
    rows = node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB", 0))
    return 0 if rows else rank - 1


def layer_columns(node: NodeProto, weight: F32) -> F32:
    """A layer's weights as `(O, C, K)`: output channels, input channels, places of the kernel."""
    if node.op_type == "Conv":
        return weight.reshape(*weight.shape[:2], -1)
    return (weight if output_axis(node, 2) == 0 else weight.T)[:, :, None]


def weight_scales(node: NodeProto, weight: F32) -> F32:
    """`(O,) float32`, the INT8 step of each output channel: its largest weight over 127."""
    others = tuple(i for i in range(weight.ndim) if i != output_axis(node, weight.ndim))
    step: npt.NDArray[np.float32] = np.abs(weight).max(axis=others) / np.float32(127.0)
    return np.maximum(step, _TINY)


def store_weight(graph: GraphProto, name: str, array: npt.NDArray[Any]) -> str:
    """Keep a constant under `owner/what`, instead of what had that name; returns the name.

    The slash and what follows it are ours: no search for a free name, which takes long in graphs of
    hundreds of constants.
    """
    tensor = numpy_helper.from_array(array, name)
    for old in graph.initializer:
        if old.name == name:
            old.CopyFrom(tensor)
            return name
    graph.initializer.append(tensor)
    return name


def add_to_bias(graph: GraphProto, node: NodeProto, shift: F64) -> None:
    """Add `(O,)` to what a Conv or Gemm gives, through its constant bias; it gets one if it has none."""
    old = node.input[2] if len(node.input) > 2 else ""
    bias = next((numpy_helper.to_array(t) for t in graph.initializer if t.name == old), None)
    if old and bias is None:
        raise ValueError(f"the bias of {node.name} is not constant")
    if node.op_type == "Gemm":  # alpha * a @ b + beta * c
        shift = shift * attribute(node, "alpha", 1.0) / (attribute(node, "beta", 1.0) or 1.0)
    array = (shift if bias is None else bias + shift).astype(np.float32)
    del node.input[2:]
    node.input.append(store_weight(graph, f"{node.name}/bias", array))
