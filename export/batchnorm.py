"""Folds BatchNormalization into the layer beside it, exactly, and writes `x @ W + row` as Gemm.

onnxscript's rules fold Conv -> BN and Gemm -> BN in float32, stop at shared weights and accept a
negative variance. These compute in float64 and also fold Conv -> Flatten -> BN (the last layer of
face networks), BN -> Gemm, BN -> Flatten -> Gemm and, where nothing is padded, BN -> Conv.
"""

from collections import Counter

import numpy as np
from onnx import ModelProto

from ..arrays import F64
from ..graph.edit import is_unpadded_conv
from ..graph.shapes import ranks
from .graph_ir import (
    add_constant,
    constant_of,
    input_of,
    ir,
    ir_passes,
    only_reader,
    replace_value,
    to_ir,
    to_proto,
)


def fold_batchnorm(
    model: ModelProto, *, into_readers: bool = True
) -> tuple[ModelProto, dict[str, int]]:
    """Fold every BatchNormalization that a layer before or behind it can take.

    A fold happens only where no other node reads the tensor in between. Time is linear in the
    number of nodes.

    Args:
        model: A float32 model of opset 14 or later whose nodes are sorted.
        into_readers: Whether to fold into the layer behind, too. A layer then reads other numbers
            than in training, which a network with trained ranges does not allow.

    Returns:
        The folded copy, and kind of fold (for example `Conv+BatchNormalization`) -> how often.
    """
    rank = ranks(model) if any(n.op_type == "MatMul" for n in model.graph.node) else {}
    folded = to_ir(model)
    graph = folded.graph
    for node in list(graph):
        if node.op_type == "MatMul" and rank.get(str(input_of(node).name)) == 2:
            _to_gemm(graph, node)
    count: Counter[str] = Counter()
    for norm in _norms(graph):
        count[_fold_into_producer(graph, norm)] += 1
    if into_readers:
        # Backwards: of two in a row, the second makes way for the first.
        for norm in reversed(_norms(graph)):
            count[_fold_into_reader(graph, norm)] += 1
    del count[""]
    ir_passes.RemoveUnusedNodesPass()(folded)
    return to_proto(folded), dict(count)


def _norms(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if node.op_type == "BatchNormalization"]


def _to_gemm(graph: ir.Graph, node: ir.Node) -> None:
    """MatMul by a constant matrix -> Gemm, with the Add of a constant row behind it."""
    data, weight = input_of(node, 0), input_of(node, 1)
    matrix = constant_of(weight)
    if matrix is None or matrix.ndim != 2:
        return
    inputs, last = [data, weight], node
    add = only_reader(node.outputs[0])
    if add is not None and add.op_type == "Add":
        other = input_of(add, 1 if add.inputs[0] is node.outputs[0] else 0)
        row = constant_of(other)
        width = matrix.shape[1]
        if row is not None and row.shape in ((), (1,), (1, 1), (width,), (1, width)):
            # A row of its own: Gemm's bias is (D,), the weight may be shared or (1, D).
            array = np.broadcast_to(row.reshape(-1), (width,)).astype(np.float32)
            inputs.append(add_constant(graph, f"{other.name}_row", array))
            last = add
    gemm = ir.node("Gemm", inputs, name=node.name)
    graph.insert_before(node, gemm)
    replace_value(last.outputs[0], gemm.outputs[0])
    graph.remove([last, node] if last is not node else node, safe=True)


def _affine(norm: ir.Node) -> tuple[F64, F64] | None:
    """Inference-time BatchNormalization as `scale * x + shift`, `(C,) float64` each."""
    gamma, beta, mean, var = (constant_of(value) for value in norm.inputs[1:5])
    if gamma is None or beta is None or mean is None or var is None:
        return None
    if norm.attributes.get_int("training_mode", 0) or any(out.name for out in norm.outputs[1:]):
        return None
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(var + norm.attributes.get_float("epsilon", 1e-5))
        shift = beta - mean * scale
    return (scale, shift) if np.isfinite([scale, shift]).all() else None


def _fold_into_producer(graph: ir.Graph, norm: ir.Node) -> str:
    """Conv -> BN, Gemm -> BN, and Conv -> Flatten -> BN over one pixel; the kind, or ""."""
    data = input_of(norm)
    layer = data.producer()
    affine = _affine(norm)
    if layer is None or affine is None or only_reader(data) is not norm:
        return ""
    scale, shift = affine
    flat = _is_flatten(layer)
    if flat:
        before, flatten = input_of(layer), layer
        layer = before.producer()
        if layer is None or layer.op_type != "Conv" or only_reader(before) is not flatten:
            return ""
    weights = _weights(layer)
    if weights is None or (flat and len(weights[0]) != len(scale)):
        return ""
    weight, bias = weights
    if layer.op_type == "Conv":
        _set_weight(graph, layer, 1, weight * scale.reshape(-1, *[1] * (weight.ndim - 1)))
        _set_weight(graph, layer, 2, bias * scale + shift)
    else:
        rows = layer.attributes.get_int("transB", 0)
        _set_weight(graph, layer, 1, weight * (scale[:, None] if rows else scale))
        _set_weight(graph, layer, 2, bias * scale + shift)
    replace_value(norm.outputs[0], data)
    graph.remove(norm, safe=True)
    return f"{layer.op_type}+{'Flatten+' if flat else ''}BatchNormalization"


def _fold_into_reader(graph: ir.Graph, norm: ir.Node) -> str:
    """BN -> Gemm, BN -> Flatten -> Gemm, and BN -> Conv without padding; the kind, or ""."""
    value = norm.outputs[0]
    layer = only_reader(value)
    affine = _affine(norm)
    flat = layer is not None and _is_flatten(layer)
    if layer is not None and flat:
        value = layer.outputs[0]
        layer = only_reader(value)
    if layer is None or affine is None or layer.inputs[0] is not value:
        return ""
    weights = _weights(layer)
    if weights is None:
        return ""
    (weight, bias), (scale, shift) = weights, affine
    if layer.op_type == "Gemm":
        rows = layer.attributes.get_int("transB", 0)
        matrix = weight if rows else weight.T  # (out, in)
        if matrix.shape[1] % len(scale):
            return ""
        pixels = matrix.shape[1] // len(scale)  # flattened, per channel
        folded = matrix * np.repeat(scale, pixels)
        _set_weight(graph, layer, 1, folded if rows else folded.T)
        _set_weight(graph, layer, 2, bias + matrix @ np.repeat(shift, pixels))
    elif not flat and is_unpadded_conv(ir.to_proto(layer)):
        groups = layer.attributes.get_int("group", 1)
        # Row o of the kernel reads only the channels of its group.
        row_groups = np.arange(len(weight)) // (len(weight) // groups)
        shape = (len(weight), -1, *[1] * (weight.ndim - 2))
        scales = scale.reshape(groups, -1)[row_groups].reshape(shape)
        shifts = shift.reshape(groups, -1)[row_groups].reshape(shape)
        _set_weight(graph, layer, 1, weight * scales)
        _set_weight(graph, layer, 2, bias + (weight * shifts).reshape(len(weight), -1).sum(1))
    else:
        return ""
    norm.outputs[0].replace_all_uses_with(input_of(norm))
    graph.remove(norm, safe=True)
    return f"BatchNormalization+{'Flatten+' if flat else ''}{layer.op_type}"


def _is_flatten(node: ir.Node) -> bool:
    return node.op_type == "Flatten" and node.attributes.get_int("axis", 1) == 1


def _weights(layer: ir.Node) -> tuple[F64, F64] | None:
    """Constant weights and bias of a Conv or of a Gemm `x @ W + row`, factors multiplied in.

    The bias is `(O,)`, or `(1,)` where one number serves all outputs or the bias is absent.
    """
    if layer.op_type not in ("Conv", "Gemm"):
        return None
    weight, bias = constant_of(layer.inputs[1]), np.zeros(1)
    if len(layer.inputs) > 2 and layer.inputs[2] is not None:
        constant = constant_of(layer.inputs[2])
        if constant is None or constant.size != (constant.shape or (1,))[-1]:
            return None  # not constant, or not a row
        bias = constant.reshape(-1)
    if weight is None or layer.attributes.get_int("transA", 0) != 0:
        return None
    alpha, beta = (layer.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    return alpha * weight, beta * bias


def _set_weight(graph: ir.Graph, layer: ir.Node, index: int, array: F64) -> None:
    """Give a layer a constant of its own (the old one may be shared); factors are in it."""
    layer.attributes.pop("alpha", None)
    layer.attributes.pop("beta", None)
    old = layer.inputs[index] if index < len(layer.inputs) else None
    name = old.name if old is not None else layer.outputs[0].name
    value = add_constant(graph, f"{name}_folded", array.astype(np.float32))
    layer.resize_inputs(max(len(layer.inputs), index + 1))
    layer.replace_input_with(index, value)
