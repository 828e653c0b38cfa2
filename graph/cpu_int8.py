"""The network written so that onnxruntime's CPU has fast kernels for it; weights and ranges stay.

Two operators are slow there. PReLU itself is slow and forces the convolutions beside it out of their
blocked layout: a sum of Mul and Relu replaces it. INT8 is fast in one form only: onnxruntime has no
integer convolution with a float result, but a product of uint8 and int8 matrices that gives float
(MatMulIntegerToFloat), which is what a 1x1 convolution is, or a layer behind Flatten.
"""

import platform
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, helper, numpy_helper

from ..errors import ModelError
from ..inference import first_line
from .edit import attribute, is_unpadded_conv
from .eight_bit import FP8
from .prelu import blend_nodes

Array = npt.NDArray[Any]

Weights = dict[str, Array]

Nodes = list[NodeProto]

_OPERATOR, _DOMAIN = "MatMulIntegerToFloat", "com.microsoft"

_ZERO = "fr_edge_zero_128"  # name of the zero point of uint8 activations

_BLOCK = 16  # channels per block of onnxruntime's widest blocked layout (AVX-512)

_X86 = platform.machine() in ("x86_64", "AMD64")


@dataclass(frozen=True)
class _Product:
    """A layer that can be an integer product.

    Attributes:
        source: The QuantizeLinear of its data.
        matrix: Its weights, `(K, N) int8`.
        scale: Name of the weights' scale.
    """

    source: NodeProto
    matrix: Array
    scale: str

    @property
    def intensity(self) -> float:
        """Multiplications per number read or written: the gain of INT8 over its conversions."""
        read, written = self.matrix.shape
        return float(read * written / (read + written))


def cpu_model(model: ModelProto, integer: Collection[str] | None = None) -> ModelProto:
    """Rewrite a model in operators that onnxruntime's CPU is fast at.

    Args:
        model: A float or Q/DQ model.
        integer: Names of the outputs of INT8 layers that become integer products. The others
            compute in float with the same INT8 weights, and what only they read is not rounded.
            None makes products of all that can be, and keeps every rounding of the Q/DQ model.

    Returns:
        A copy with the same weights and ranges; only the order of roundings differs.

    Raises:
        ModelError: The shapes of a layer's weights, scales and zero points contradict each other.
    """
    try:
        return _rewritten(model, integer)
    except (ValueError, LookupError, TypeError) as error:
        raise ModelError(
            f"the INT8 layers of the model do not fit their weights: {first_line(error)}",
            "calibrate again",
        ) from error


def _rewritten(model: ModelProto, integer: Collection[str] | None) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = _replace_each(list(graph.node), lambda node: _quantize_weight(node, weights))
    ends = {output.name for output in graph.output}
    products = _find_products(nodes, ends, weights)
    if integer is not None:
        products = {name: product for name, product in products.items() if name in integer}
    sources = {product.source.output[0] for product in products.values()}
    if integer is not None:
        _skip_rounding(nodes, sources, ends, weights)
    nodes = _replace_each(nodes, lambda node: _integer_product(node, products, weights))
    nodes = _replace_each(nodes, lambda node: _unsigned_pair(node, sources, weights))
    # onnxruntime has integer kernels for matrix products, and looks for the DQs before them.
    matrices = {name for n in nodes if n.op_type in ("Gemm", "MatMul") for name in n.input}
    quantized = matrices if integer is None else set()
    nodes = _replace_each(nodes, lambda node: _dequantize_weight(node, weights, quantized))
    if integer is not None:
        _fold_shifts(nodes, weights)
    nodes = _replace_each(nodes, lambda node: _replace_prelu(node, weights, products))
    nodes = _remove_dead(nodes, ends)
    read = {name for node in nodes for name in node.input}
    tensors = [numpy_helper.from_array(weights[name], name) for name in weights if name in read]
    for field in ("node", "initializer", "value_info"):
        graph.ClearField(field)
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
    if _DOMAIN not in {opset.domain for opset in copy.opset_import}:
        copy.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    return copy


def integer_layers(model: ModelProto) -> dict[str, float]:
    """Find the INT8 layers that can be integer products.

    Args:
        model: A Q/DQ model.

    Returns:
        Name of a layer's output -> multiplications per number that it reads or writes.
    """
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = _replace_each(list(model.graph.node), lambda node: _quantize_weight(node, weights))
    products = _find_products(nodes, {output.name for output in model.graph.output}, weights)
    return {name: product.intensity for name, product in products.items()}


def _find_products(nodes: Nodes, ends: set[str], weights: Weights) -> dict[str, _Product]:
    """The layers between two DQs that integer products can compute, by name of their output."""
    makers = {name: node for node in nodes for name in node.output}
    others = {n for node in nodes if node.op_type != "DequantizeLinear" for n in node.input}
    others |= ends
    products = {}
    for node in nodes:
        pair = [makers.get(name) for name in node.input[:2]]
        if len(pair) < 2 or any(n is None or n.op_type != "DequantizeLinear" for n in pair):
            continue
        data, weight = (n for n in pair if n is not None)
        source = makers.get(data.input[0])
        if source is None or source.op_type != "QuantizeLinear" or weight.input[0] not in weights:
            continue
        if source.output[0] in others:  # another node reads the int8 numbers themselves
            continue
        if not _round_trip(source, data, weights):
            continue
        steps = weights[weight.input[0]]
        matrix, axis = _as_matrix(node, steps)
        if matrix is None or not _has_plain_bias(node, weights, matrix.shape[1]):
            continue
        per_column = attribute(weight, "axis", 1) % steps.ndim == axis
        if (per_column or not _is_per_axis(weight, weights)) and all(
            _is_symmetric_int8(n, weights) for n in (source, data, weight)
        ):
            products[node.output[0]] = _Product(source, matrix, weight.input[1])
    return products


def _unsigned_pair(node: NodeProto, sources: set[str], weights: Weights) -> Nodes | None:
    """Q and DQ of `sources` in uint8 with zero point 128, which x86 multiplies fastest.

    The values are the same. Behind Q the channels go last, where a product over them wants them.
    """
    step = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or step not in sources:
        return None
    weights[_ZERO] = np.array(128, np.uint8)
    new = helper.make_node(node.op_type, [*node.input[:2], _ZERO], node.output, node.name)
    if node.op_type == "DequantizeLinear":
        return [new]
    return [new, helper.make_node("Transpose", [step], [f"{step}_last"], perm=(0, 2, 3, 1))]


def _integer_product(
    node: NodeProto, products: Mapping[str, _Product], weights: Weights
) -> Nodes | None:
    """The layer as uint8 x int8 -> float32; a convolution's product is over the channels."""
    out = node.output[0] if node.output else ""
    if out not in products:
        return None
    product = products[out]
    step, convolution = product.source.output[0], node.op_type == "Conv"
    weights[f"{out}_matrix"] = np.ascontiguousarray(product.matrix)
    inputs = [
        f"{step}_last" if convolution else step,
        f"{out}_matrix",
        product.source.input[1],
        product.scale,
        _ZERO,
        "",
        *node.input[2:],
    ]
    last = f"{out}_last" if convolution else out
    new = helper.make_node(_OPERATOR, inputs, [last], node.name, domain=_DOMAIN)
    if not convolution:
        return [new]
    return [new, helper.make_node("Transpose", [last], [out], perm=(0, 3, 1, 2))]


def _is_dense_unpadded(node: NodeProto, weight: Array) -> bool:
    """A convolution of one group over two dimensions that adds no zeros at the border."""
    return is_unpadded_conv(node) and weight.ndim == 4 and attribute(node, "group", 1) == 1


def _as_matrix(node: NodeProto, weight: Array) -> tuple[Array | None, int]:
    """The weights as `(K, N)`, and which of their axes is N; None for other layers."""
    if _is_dense_unpadded(node, weight) and weight.shape[2:] == (1, 1):
        strides = next((item.ints for item in node.attribute if item.name == "strides"), ())
        if all(stride == 1 for stride in strides):
            return weight[:, :, 0, 0].T, 0
    if node.op_type == "MatMul" and weight.ndim == 2:
        return weight, 1
    factors = (attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0))
    if node.op_type == "Gemm" and factors == (1, 1) and not attribute(node, "transA", 0):
        return (weight.T, 0) if attribute(node, "transB", 0) else (weight, 1)
    return None, 0


def _has_plain_bias(node: NodeProto, weights: Weights, width: int) -> bool:
    """No bias, or a constant number per column."""
    names = [name for name in node.input[2:] if name]
    return all(name in weights and weights[name].shape == (width,) for name in names)


def _is_symmetric_int8(node: NodeProto, weights: Weights) -> bool:
    """Q or DQ with zero point 0 and float32 scales; one scale only for activations."""
    if len(node.input) < 3 or not weights.keys() >= set(node.input[1:]):
        return False
    if _is_per_axis(node, weights) and node.input[0] not in weights:
        return False
    scale, zero = weights[node.input[1]], weights[node.input[2]]
    return scale.dtype == np.float32 and zero.dtype == np.int8 and not zero.any()


def _is_per_axis(node: NodeProto, weights: Weights) -> bool:
    return node.input[1] not in weights or weights[node.input[1]].ndim > 0


def _quantize_weight(node: NodeProto, weights: Weights) -> Nodes | None:
    """Weights -> QuantizeLinear: the integers, or FP8 numbers, become the weights."""
    if node.op_type != "QuantizeLinear" or not weights.keys() >= set(node.input):
        return None
    values, scale = weights[node.input[0]], weights[node.input[1]]
    zero = weights[node.input[2]] if len(node.input) > 2 else np.zeros_like(scale, np.uint8)
    if zero.dtype == FP8.dtype:
        steps = FP8.nearest(values / _along_axis(scale, node, values.ndim))
        weights[node.output[0]] = steps.astype(FP8.dtype)
        return []
    steps = np.rint(values / _along_axis(scale, node, values.ndim))
    steps = steps + _along_axis(zero, node, values.ndim)
    limits = np.iinfo(zero.dtype)
    weights[node.output[0]] = np.clip(steps, limits.min, limits.max).astype(zero.dtype)
    return []


def _dequantize_weight(node: NodeProto, weights: Weights, quantized: set[str]) -> Nodes | None:
    """Weights -> DequantizeLinear, which onnxruntime would compute anew in every run.

    The outputs named in `quantized` stay as they are.
    """
    if node.op_type != "DequantizeLinear" or not weights.keys() >= set(node.input):
        return None
    if node.output[0] in quantized:
        return None
    steps, scale = weights[node.input[0]].astype(np.float32), weights[node.input[1]]
    if len(node.input) > 2:
        steps = steps - _along_axis(weights[node.input[2]], node, steps.ndim).astype(np.float32)
    values = steps * _along_axis(scale, node, steps.ndim)
    weights[node.output[0]] = values.astype(scale.dtype)
    return []


def _round_trip(quantize: NodeProto, dequantize: NodeProto, weights: Weights) -> bool:
    """Whether Q and DQ together only round: scales and zero points of both are the same."""
    return all(
        a == b or (a in weights and b in weights and np.array_equal(weights[a], weights[b]))
        for a, b in zip(quantize.input[1:], dequantize.input[1:], strict=False)
    )


def _skip_rounding(nodes: Nodes, sources: set[str], ends: set[str], weights: Weights) -> None:
    """Readers of an activation behind Q and DQ read it before them, in place.

    Except behind `sources`, whose integers are wanted.
    """
    quantized = {node.output[0]: node for node in nodes if node.op_type == "QuantizeLinear"}
    before = {
        node.output[0]: quantized[node.input[0]].input[0]
        for node in nodes
        if node.op_type == "DequantizeLinear"
        and node.input[0] in quantized.keys() - sources
        and node.output[0] not in ends
        and _round_trip(quantized[node.input[0]], node, weights)
    }
    for node in nodes:
        node.input[:] = [before.get(name, name) for name in node.input]


def _fold_shifts(nodes: Nodes, weights: Weights) -> None:
    """Sub -> unpadded convolution in float: the subtracted shift goes into the bias, in place."""
    makers = {name: node for node in nodes for name in node.output}
    for node in nodes:
        sub = makers.get(node.input[0]) if node.input else None
        if sub is None or sub.op_type != "Sub" or node.op_type != "Conv":
            continue
        shift, weight = weights.get(sub.input[1]), weights.get(node.input[1])
        if shift is None or weight is None or not _is_dense_unpadded(node, weight):
            continue
        bias = weights.get(node.input[2]) if len(node.input) > 2 else np.zeros(1, weight.dtype)
        if bias is None or shift.shape != (weight.shape[1], 1, 1):
            continue
        lost = weight.astype(np.float64).sum(axis=(2, 3)) @ shift.astype(np.float64).ravel()
        name = f"{node.output[0]}_bias"
        weights[name] = (bias - lost).astype(weight.dtype)
        node.input[:] = [sub.input[0], node.input[1], name]


def _replace_prelu(
    node: NodeProto, weights: Weights, products: Mapping[str, _Product]
) -> Nodes | None:
    """PReLU(x) = slope x + (1 - slope) relu(x).

    Behind an integer product a depthwise convolution by one goes first: it brings the tensor into
    the blocked layout, in which the rest is faster by more than that costs.
    """
    if node.op_type != "PRelu" or node.input[1] not in weights:
        return None
    (x, slope), y = node.input, node.output[0]
    values, out = weights[slope], list[NodeProto]()
    if _X86 and x in products and values.ndim == 3 and len(values) % _BLOCK == 0:
        width = len(values)
        weights[f"{y}_ones"] = np.ones((width, 1, 1, 1), values.dtype)
        one = helper.make_node(
            "Conv", [x, f"{y}_ones"], [f"{y}_blocked"], group=width, kernel_shape=[1, 1]
        )
        out, x = [one], f"{y}_blocked"
    weights[f"{y}_rest"] = (1 - values).astype(values.dtype)
    return [*out, *blend_nodes(node, x, slope, f"{y}_rest")]


def _replace_each(nodes: Nodes, rule: Callable[[NodeProto], Nodes | None]) -> Nodes:
    """Every node, or what `rule` puts in its place."""
    out: Nodes = []
    for node in nodes:
        new = rule(node)
        out.extend([node] if new is None else new)
    return out


def _remove_dead(nodes: Nodes, ends: set[str]) -> Nodes:
    used, needed = [], set(ends)
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= set(node.input)
            used.append(node)
    return used[::-1]


def _along_axis(values: Array, node: NodeProto, ndim: int) -> Array:
    """A scale or zero point, shaped so that it broadcasts along the node's axis."""
    if values.ndim == 0:
        return values
    axis = int(attribute(node, "axis", 1)) % ndim
    return values.reshape([-1 if i == axis else 1 for i in range(ndim)])
