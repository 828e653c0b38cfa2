"""The CPU flavour: the same network, written so that onnxruntime has fast kernels for it.

onnxruntime's PRelu is slow and forces the convolutions beside it out of their blocked layout, and
it has no integer convolution with a float result. Both have an equal in operators it is good at.
No weight and no range changes; only the order of roundings does.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import AttributeProto, ModelProto, NodeProto, helper, numpy_helper

Array = npt.NDArray[Any]
Weights = dict[str, Array]
Nodes = list[NodeProto]

INTEGER_PRODUCT = "MatMulIntegerToFloat"
_MICROSOFT = "com.microsoft"
_ZERO = "fr_edge_zero_128"


def cpu_flavour(model: ModelProto) -> ModelProto:
    """A copy of a float or Q/DQ model that computes the same on onnxruntime's CPU, faster."""
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = _each(list(graph.node), lambda node: _rounded(node, weights))
    ends = {output.name for output in graph.output}
    products = _products(nodes, ends, weights)
    sources = {source.output[0] for source in products.values()}
    makers = {name: node for node in nodes for name in node.output}
    nodes = _each(nodes, lambda node: _integer_product(node, products, makers, weights))
    nodes = _each(nodes, lambda node: _unsigned(node, sources, weights))
    # onnxruntime has integer kernels for products of matrices, and looks for the DQs before them.
    matrices = {name for n in nodes if n.op_type in ("Gemm", "MatMul") for name in n.input}
    nodes = _each(nodes, lambda node: _valued(node, weights, matrices))
    nodes = _each(nodes, lambda node: _plain_prelu(node, weights))
    nodes = _used(nodes, ends)
    read = {name for node in nodes for name in node.input}
    tensors = [numpy_helper.from_array(weights[name], name) for name in weights if name in read]
    for field in ("node", "initializer", "value_info"):
        graph.ClearField(field)
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
    if _MICROSOFT not in {opset.domain for opset in copy.opset_import}:
        copy.opset_import.append(helper.make_opsetid(_MICROSOFT, 1))
    return copy


def _rounded(node: NodeProto, weights: Weights) -> Nodes | None:
    """Weights -> QuantizeLinear: the integers it yields become the weights."""
    if node.op_type != "QuantizeLinear" or not weights.keys() >= set(node.input):
        return None
    values, scale = weights[node.input[0]], weights[node.input[1]]
    zero = weights[node.input[2]] if len(node.input) > 2 else np.zeros_like(scale, np.uint8)
    steps = np.rint(values / _along(scale, node, values.ndim)) + _along(zero, node, values.ndim)
    if not np.isfinite(steps).all():
        return None  # left to the engine, whose embedding then is refused
    limits = np.iinfo(zero.dtype)
    weights[node.output[0]] = np.clip(steps, limits.min, limits.max).astype(zero.dtype)
    return []


def _valued(node: NodeProto, weights: Weights, matrices: set[str]) -> Nodes | None:
    """Weights -> DequantizeLinear: onnxruntime would compute it anew in every run."""
    if node.op_type != "DequantizeLinear" or not weights.keys() >= set(node.input):
        return None
    if node.output[0] in matrices:
        return None
    steps, scale = weights[node.input[0]].astype(np.float32), weights[node.input[1]]
    if len(node.input) > 2:
        steps = steps - _along(weights[node.input[2]], node, steps.ndim).astype(np.float32)
    weights[node.output[0]] = (steps * _along(scale, node, steps.ndim)).astype(scale.dtype)
    return []


def _products(nodes: Nodes, ends: set[str], weights: Weights) -> dict[str, NodeProto]:
    """The 1x1 convolutions of two DQs, by name of their output, with the Q before their data."""
    makers = {name: node for node in nodes for name in node.output}
    others = {n for node in nodes if node.op_type != "DequantizeLinear" for n in node.input}
    others |= ends
    found = {}
    for node in nodes:
        pair = [makers.get(name) for name in node.input[:2]] if _is_pointwise(node) else []
        if len(pair) < 2 or any(n is None or n.op_type != "DequantizeLinear" for n in pair):
            continue
        data, weight = (n for n in pair if n is not None)
        source = makers.get(data.input[0])
        if source is None or source.op_type != "QuantizeLinear" or weight.input[0] not in weights:
            continue
        if source.output[0] in others:  # somebody wants the int8 itself
            continue
        if _is_int8(source, weights) and _is_int8(data, weights) and _is_int8(weight, weights):
            found[node.output[0]] = source
    return found


def _unsigned(node: NodeProto, sources: set[str], weights: Weights) -> Nodes | None:
    """Q and DQ around those activations, with zero point 128: the same values in the type that x86
    multiplies fastest. After Q the channels go last, where a product over them wants them."""
    step = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or step not in sources:
        return None
    weights[_ZERO] = np.array(128, np.uint8)
    new = helper.make_node(node.op_type, [*node.input[:2], _ZERO], node.output, node.name)
    if node.op_type == "DequantizeLinear":
        return [new]
    return [new, helper.make_node("Transpose", [step], [f"{step}_last"], perm=(0, 2, 3, 1))]


def _integer_product(
    node: NodeProto,
    products: Mapping[str, NodeProto],
    makers: Mapping[str, NodeProto],
    weights: Weights,
) -> Nodes | None:
    """The convolution as uint8 x int8 -> float32, a product over the channels."""
    out = node.output[0] if node.output else ""
    if out not in products:
        return None
    source, weight = products[out], makers[node.input[1]]
    matrix = weights[weight.input[0]][:, :, 0, 0].T
    weights[f"{out}_matrix"] = np.ascontiguousarray(matrix)
    inputs = [
        f"{source.output[0]}_last",
        f"{out}_matrix",
        source.input[1],
        weight.input[1],
        _ZERO,
        "",
        *node.input[2:],
    ]
    return [
        helper.make_node(INTEGER_PRODUCT, inputs, [f"{out}_last"], node.name, domain=_MICROSOFT),
        helper.make_node("Transpose", [f"{out}_last"], [out], perm=(0, 3, 1, 2)),
    ]


def _plain_prelu(node: NodeProto, weights: Weights) -> Nodes | None:
    """PReLU(x) = slope x + (1 - slope) max(x, 0)."""
    if node.op_type != "PRelu" or node.input[1] not in weights:
        return None
    (x, slope), y = node.input, node.output[0]
    weights[f"{y}_rest"] = (1 - weights[slope]).astype(weights[slope].dtype)
    return [
        helper.make_node("Relu", [x], [f"{y}_relu"]),
        helper.make_node("Mul", [f"{y}_relu", f"{y}_rest"], [f"{y}_above"]),
        helper.make_node("Mul", [x, slope], [f"{y}_both"]),
        helper.make_node("Add", [f"{y}_above", f"{y}_both"], [y], node.name),
    ]


def _each(nodes: Nodes, rule: Callable[[NodeProto], Nodes | None]) -> Nodes:
    """Every node, or what `rule` puts in its place."""
    out: Nodes = []
    for node in nodes:
        new = rule(node)
        out.extend([node] if new is None else new)
    return out


def _used(nodes: Nodes, ends: set[str]) -> Nodes:
    kept, wanted = [], set(ends)
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted |= set(node.input)
            kept.append(node)
    return kept[::-1]


def _is_pointwise(node: NodeProto) -> bool:
    """A 1x1 convolution of stride 1 and one group, without padding, over two dimensions."""
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return (
        node.op_type == "Conv"
        and found.get("kernel_shape") == [1, 1]
        and found.get("strides", [1, 1]) == [1, 1]
        and found.get("group", 1) == 1
        and not any(found.get("pads", []))
    )


def _is_int8(node: NodeProto, weights: Weights) -> bool:
    """Q or DQ with zero point 0, one scale or, for weights, one per output channel; float32."""
    if len(node.input) < 3 or not weights.keys() >= set(node.input[1:]):
        return False
    scale, zero = weights[node.input[1]], weights[node.input[2]]
    if scale.ndim and (node.op_type == "QuantizeLinear" or _axis(node) != 0):
        return False
    return scale.dtype == np.float32 and zero.dtype == np.int8 and not zero.any()


def _along(values: Array, node: NodeProto, ndim: int) -> Array:
    """A scale or zero point, shaped so that it broadcasts along the node's axis."""
    if values.ndim == 0:
        return values
    return values.reshape([-1 if i == _axis(node) % ndim else 1 for i in range(ndim)])


def _axis(node: NodeProto) -> int:
    axis: AttributeProto | None = next((a for a in node.attribute if a.name == "axis"), None)
    return axis.i if axis else 1
