"""Centring: symmetric INT8 without its wasted half.

What comes out of PReLU or ReLU lies mostly on one side of zero, and half of a symmetric range waits
for values that never come. Subtracting each channel's middle before quantising halves the range,
and the layer that reads it takes the middle back through its bias. TensorRT computes the
subtraction in the kernel that does PReLU and requantises anyway.

Exact only where nothing is padded with zeros: for 1x1 convolutions.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from ..arrays import F64
from ..graph.layer_weights import add_to_bias, layer_columns, store_weight
from ..graph.layers import Int8Choice
from .histogram import Histogram, middle

_ONE_SIDED = ("PRelu", "Relu", "LeakyRelu", "Clip")


def centred_tensors(model: onnx.ModelProto, choice: Int8Choice) -> list[str]:
    """Tensors that may be centred: one-sided, and read by unpadded INT8 layers alone."""
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
        and all(node.name in choice.int8 and _unpadded(node) for node in readers[tensor])
    ]


def channel_centres(
    model: onnx.ModelProto, choice: Int8Choice, seen: Mapping[str, Histogram]
) -> dict[str, F64]:
    """Tensor -> `(C,)`, the middle of each channel."""
    return {name: middle(seen[name]) for name in centred_tensors(model, choice)}


def snap_to_grid(centre: F64, amax: float) -> F64:
    """Scaled centres as whole INT8 steps: what is exactly zero stays so."""
    step = amax / 127.0
    return np.rint(centre / step) * step


def shift_activations(
    model: onnx.ModelProto, choice: Int8Choice, centres: Mapping[str, F64]
) -> dict[str, str]:
    """Subtract `centres` before the INT8 layers, in place, and add what is lost to their biases.

    Returns the tensors that were centred -> what the layers read now.
    """
    graph = model.graph
    constants = {t.name: t for t in graph.initializer}
    chosen = set(choice.int8)
    renamed: dict[str, str] = {}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.name in chosen and node.input[0] in renamed:
            weight = numpy_helper.to_array(constants[node.input[1]])
            lost = layer_columns(node, weight).sum(axis=2) @ centres[node.input[0]]
            node.input[0] = renamed[node.input[0]]
            add_to_bias(graph, node, lost)
        nodes.append(node)
        for name in set(node.output) & set(centres) & set(choice.tensors):
            array = centres[name].astype(np.float32).reshape(-1, 1, 1)
            offset = store_weight(graph, f"{name}/centre", array)
            renamed[name] = f"{name}/centred"
            nodes.append(helper.make_node("Sub", [name, offset], [renamed[name]], renamed[name]))
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    graph.ClearField("node")
    graph.node.extend(copies)
    return renamed


def _unpadded(node: NodeProto) -> bool:
    """A convolution over images that adds no zeros at the border."""
    if node.op_type != "Conv":
        return False
    given = {a.name: a for a in node.attribute}
    pads = list(given["pads"].ints) if "pads" in given else []
    padding = given["auto_pad"].s if "auto_pad" in given else b"NOTSET"
    return not any(pads) and padding in (b"NOTSET", b"VALID")
