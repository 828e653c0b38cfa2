"""Activation shift: subtract each channel's midpoint before quantizing, which halves the range.

The output of PReLU or ReLU lies mostly on one side of zero, so half of a symmetric range stays
unused. The layer that reads the shifted tensor adds the midpoint back through its bias, which is
exact only without zero padding. TensorRT computes the subtraction in the kernel that does PReLU
and requantizes anyway.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from ..arrays import F64
from ..graph.edit import is_unpadded_conv, only_read_by
from ..graph.layer_weights import add_to_bias, groups_of, has_bias, layer_columns, store_weight
from ..graph.layers import Int8Choice
from .histogram import Histogram, channel_midpoints

# Activations; a product makes SiLU, GELU, hard-swish and what a gate scales.
_ONE_SIDED = ("PRelu", "Relu", "LeakyRelu", "Clip", "Mul", "HardSwish", "Gelu")


def shiftable_tensors(model: onnx.ModelProto, choice: Int8Choice) -> list[str]:
    """Tensors that may be shifted: one-sided, and read by INT8 layers only, which have biases.

    Convolutions among them are unpadded.

    Args:
        model: A float model whose nodes are named.
        choice: Which of its layers become INT8.
    """
    makers = {name: node for node in model.graph.node for name in node.output}

    def maker(tensor: str) -> str:
        """The operator that makes a tensor's values, which a Reshape only arranges."""
        while tensor in makers and makers[tensor].op_type == "Reshape":
            tensor = makers[tensor].input[0]
        return makers[tensor].op_type if tensor in makers else ""

    return [
        tensor
        for tensor in choice.tensors
        if maker(tensor) in _ONE_SIDED
        and only_read_by(model.graph, tensor, choice.int8)
        and all(
            is_unpadded_conv(node) or (_is_matrix(node) and has_bias(model.graph, node))
            for node in model.graph.node
            if tensor in node.input
        )
    ]


def channel_shifts(
    model: onnx.ModelProto, choice: Int8Choice, histograms: Mapping[str, Histogram]
) -> dict[str, F64]:
    """The shift of each tensor that may have one.

    Args:
        model: A float model whose nodes are named.
        choice: Which of its layers become INT8.
        histograms: Tensor -> its values, for `choice.tensors`.

    Returns:
        Tensor -> `(C,) float64`, whole numbers of the histogram's bin widths.
    """
    return {name: channel_midpoints(histograms[name]) for name in shiftable_tensors(model, choice)}


def snap_to_grid(shift: F64, amax: float) -> F64:
    """Shifts as whole INT8 steps, so that a value of exactly zero stays exact.

    Args:
        shift: `(C,) float64`, of the scaled tensor.
        amax: The range of the shifted tensor.

    Returns:
        `(C,) float64`.
    """
    step = amax / 127.0
    return np.rint(shift / step) * step


def shift_activations(
    model: onnx.ModelProto, choice: Int8Choice, shifts: Mapping[str, F64]
) -> dict[str, str]:
    """Subtract shifts in front of the INT8 layers and add them back in their biases, in place.

    Args:
        model: A float model; changed by the call.
        choice: Which of its layers become INT8.
        shifts: Tensor -> `(C,) float64`.

    Returns:
        Shifted tensor -> the name of the tensor that the INT8 layers read instead.
    """
    graph = model.graph
    constants = {t.name: t for t in graph.initializer}
    int8 = set(choice.int8)
    renamed: dict[str, str] = {}
    trailing = {n.input[0]: () if _is_matrix(n) else (1, 1) for n in graph.node if n.name in int8}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.name in int8 and node.input[0] in renamed:
            weight = numpy_helper.to_array(constants[node.input[1]])
            sums = layer_columns(node, weight).sum(axis=2)
            groups = groups_of(node)
            parts = sums.reshape(groups, -1, sums.shape[1])
            lost = parts @ shifts[node.input[0]].reshape(groups, -1, 1)
            node.input[0] = renamed[node.input[0]]
            add_to_bias(graph, node, lost.ravel())
        nodes.append(node)
        for name in set(node.output) & set(shifts) & set(choice.tensors):
            array = shifts[name].astype(np.float32).reshape(-1, *trailing[name])
            offset = store_weight(graph, f"{name}/offset", array)
            renamed[name] = f"{name}/shifted"
            nodes.append(helper.make_node("Sub", [name, offset], [renamed[name]], renamed[name]))
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    graph.ClearField("node")
    graph.node.extend(copies)
    return renamed


def _is_matrix(node: NodeProto) -> bool:
    return node.op_type in ("Gemm", "MatMul")
