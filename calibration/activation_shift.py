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
from ..graph.edit import is_unpadded_conv
from ..graph.layer_weights import add_to_bias, layer_columns, store_weight
from ..graph.layers import Int8Choice
from .histogram import Histogram, channel_midpoints

_ONE_SIDED = ("PRelu", "Relu", "LeakyRelu", "Clip")


def shiftable_tensors(model: onnx.ModelProto, choice: Int8Choice) -> list[str]:
    """Tensors that may be shifted: one-sided, and read by unpadded INT8 convolutions only.

    Args:
        model: A float model whose nodes are named.
        choice: Which of its layers become INT8.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return [
        tensor
        for tensor in choice.tensors
        if tensor in makers
        and makers[tensor].op_type in _ONE_SIDED
        and all(node.name in choice.int8 and is_unpadded_conv(node) for node in readers[tensor])
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
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.name in int8 and node.input[0] in renamed:
            weight = numpy_helper.to_array(constants[node.input[1]])
            lost = layer_columns(node, weight).sum(axis=2) @ shifts[node.input[0]]
            node.input[0] = renamed[node.input[0]]
            add_to_bias(graph, node, lost)
        nodes.append(node)
        for name in set(node.output) & set(shifts) & set(choice.tensors):
            array = shifts[name].astype(np.float32).reshape(-1, 1, 1)
            offset = store_weight(graph, f"{name}/offset", array)
            renamed[name] = f"{name}/shifted"
            nodes.append(helper.make_node("Sub", [name, offset], [renamed[name]], renamed[name]))
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    graph.ClearField("node")
    graph.node.extend(copies)
    return renamed
