"""Cross-layer equalisation: one range fits a tensor whose channels are alike.

Dividing channel c of a tensor by s[c] changes nothing that the network says when its maker's rows
are divided by s and its readers' columns multiplied: convolutions and matrix products absorb a
scale, and ReLU, PReLU, pooling and additions let it pass, for they are positively homogeneous.
(M. Nagel et al., Data-free quantization through weight equalization and bias correction, 2019.)

This file knows what may be scaled and how; how much is in scales.py.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, helper, numpy_helper

from ..export.graph import attribute, uses

F64 = npt.NDArray[np.float64]

_ABSORBS = ("Conv", "Gemm", "BatchNormalization")
_PASSES = ("PRelu", "Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Flatten")


def scale_groups(model: onnx.ModelProto) -> dict[str, str]:
    """Tensors that share one scale per channel -> the name of their group.

    Tensors that cannot be scaled (the input, the embedding, what other operators touch) are absent.
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    parent: dict[str, str] = {}
    fixed = {value.name for value in (*graph.input, *graph.output)}

    def find(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for node in graph.node:
        data = [name for name in node.input if name and name not in constants]
        first = find(data[0]) if data else ""
        if node.op_type in _ABSORBS and data == [node.input[0]] and len(node.output) == 1:
            find(node.output[0])
        elif node.op_type in _PASSES and len(data) == len(node.output) == 1:
            parent[find(node.output[0])] = first
        elif node.op_type == "Add" and len(data) == 2:
            parent[find(data[1])] = first
            parent[find(node.output[0])] = find(first)
        else:
            fixed.update((*data, *node.output))
    roots = {find(name) for name in fixed}
    return {name: find(name) for name in list(parent) if find(name) not in roots}


def equalised(model: onnx.ModelProto, scales: Mapping[str, F64]) -> onnx.ModelProto:
    """The same network with channel c of tensor t divided by `scales[t][c]`, wherever it is named."""
    copy = _without_constants(model)
    arrays = {t.name: t for t in model.graph.initializer}
    made: dict[str, onnx.TensorProto] = {}

    def change(node: NodeProto, index: int, factor: F64) -> None:
        if index < len(node.input) and node.input[index]:
            array = numpy_helper.to_array(arrays[node.input[index]]) * factor
            name = f"{node.name}/equalised_{index}"
            made[name] = numpy_helper.from_array(array.astype(np.float32), name)
            node.input[index] = name

    for node in copy.graph.node:
        if node.op_type not in _ABSORBS:
            continue
        source, result = scales.get(node.input[0]), scales.get(node.output[0])
        if source is None and result is None:
            continue
        into = np.ones(1) if source is None else source
        out = np.ones(1) if result is None else 1.0 / result
        if node.op_type == "BatchNormalization":
            change(node, 1, into * out)
            change(node, 2, out)
            change(node, 3, 1.0 / into)
            continue
        shape = tuple(arrays[node.input[1]].dims)
        change(node, 1, _columns(node, shape, into) * _rows(node, len(shape), out))
        change(node, 2, out)
    read = uses(copy.graph)
    copy.graph.initializer.extend(t for t in (arrays | made).values() if t.name in read)
    return copy


def _without_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy but for the constants: a message never gives back the memory of what it loses."""
    graph = model.graph
    bare = helper.make_graph(
        graph.node, graph.name, graph.input, graph.output, value_info=graph.value_info
    )
    copy = helper.make_model(
        bare,
        ir_version=model.ir_version,
        opset_imports=model.opset_import,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
    )
    copy.metadata_props.extend(model.metadata_props)
    return copy


def _rows(node: NodeProto, rank: int, factor: F64) -> F64:
    """A factor per output channel, shaped to multiply the weights."""
    if node.op_type == "Gemm" and not attribute(node, "transB", 0):
        return factor
    return factor.reshape(-1, *[1] * (rank - 1))


def _columns(node: NodeProto, shape: tuple[int, ...], factor: F64) -> F64:
    """A factor per input channel, shaped to multiply the weights."""
    if factor.size == 1:
        return factor.reshape([1] * len(shape))
    if node.op_type == "Gemm":  # behind a Flatten a channel is a run of columns
        rows = bool(attribute(node, "transB", 0))
        wide = np.repeat(factor, shape[1 if rows else 0] // factor.size)
        return wide if rows else wide[:, None]
    groups = int(attribute(node, "group", 1))
    per_row = np.repeat(factor.reshape(groups, -1), shape[0] // groups, axis=0)
    return per_row.reshape(*per_row.shape, *[1] * (len(shape) - 2))
