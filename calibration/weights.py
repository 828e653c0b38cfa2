"""The weights and biases of layers, whatever operator holds them."""

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, NodeProto, numpy_helper

from ..export.graph import add_weight, attribute
from .histogram import F32, F64

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


def weight_steps(node: NodeProto, weight: F32) -> F32:
    """`(O,) float32`, the INT8 step of each output channel: its largest weight over 127."""
    others = tuple(i for i in range(weight.ndim) if i != output_axis(node, weight.ndim))
    step: npt.NDArray[np.float32] = np.abs(weight).max(axis=others) / np.float32(127.0)
    return np.maximum(step, _TINY)


def add_to_bias(graph: GraphProto, node: NodeProto, shift: F64) -> None:
    """Add `(O,)` to what a Conv or Gemm gives, through its constant bias; it gets one if it has none."""
    old = node.input[2] if len(node.input) > 2 else ""
    bias = next((numpy_helper.to_array(t) for t in graph.initializer if t.name == old), None)
    if old and bias is None:
        raise ValueError(f"the bias of {node.name} is not constant")
    if node.op_type == "Gemm":  # alpha * a @ b + beta * c
        shift = shift * attribute(node, "alpha", 1.0) / (attribute(node, "beta", 1.0) or 1.0)
    array = (shift if bias is None else bias + shift).astype(np.float32)
    name = add_weight(graph, f"{node.name}_bias", array)
    del node.input[2:]
    node.input.append(name)
