"""INT8 layers as integer products, the one form in which onnxruntime's CPU gains from INT8.

It has no integer convolution with a float result. A product of uint8 and int8 matrices that yields
float it has, and that is what a 1x1 convolution is, or a layer behind Flatten. No weight and no
range changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, helper

from ...export.graph import attribute

Array = npt.NDArray[Any]
Weights = dict[str, Array]
Nodes = list[NodeProto]

OPERATOR, DOMAIN = "MatMulIntegerToFloat", "com.microsoft"
_ZERO = "fr_edge_zero_128"


@dataclass(frozen=True)
class Product:
    """A layer that can be one: `matrix (K, N) int8`, the Q before its data, its weights' scale."""

    source: NodeProto
    matrix: Array
    scale: str

    @property
    def intensity(self) -> float:
        """Multiplications per number that is read or written: what INT8 gains against what the
        changes of type and layout around it cost."""
        read, written = self.matrix.shape
        return float(read * written / (read + written))


def find_products(nodes: Nodes, ends: set[str], weights: Weights) -> dict[str, Product]:
    """The layers between two DQs that integer products can compute, by name of their output."""
    makers = {name: node for node in nodes for name in node.output}
    others = {n for node in nodes if node.op_type != "DequantizeLinear" for n in node.input}
    others |= ends
    found = {}
    for node in nodes:
        pair = [makers.get(name) for name in node.input[:2]]
        if len(pair) < 2 or any(n is None or n.op_type != "DequantizeLinear" for n in pair):
            continue
        data, weight = (n for n in pair if n is not None)
        source = makers.get(data.input[0])
        if source is None or source.op_type != "QuantizeLinear" or weight.input[0] not in weights:
            continue
        if source.output[0] in others:  # somebody wants the int8 itself
            continue
        steps = weights[weight.input[0]]
        matrix, axis = _matrix(node, steps)
        if matrix is None or not _plain_bias(node, weights, matrix.shape[1]):
            continue
        per_column = attribute(weight, "axis", 1) % steps.ndim == axis
        if (per_column or not _scales(weight, weights)) and all(
            _is_int8(n, weights) for n in (source, data, weight)
        ):
            found[node.output[0]] = Product(source, matrix, weight.input[1])
    return found


def unsigned(node: NodeProto, sources: set[str], weights: Weights) -> Nodes | None:
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


def integer_product(
    node: NodeProto, products: Mapping[str, Product], weights: Weights
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
    new = helper.make_node(OPERATOR, inputs, [last], node.name, domain=DOMAIN)
    if not convolution:
        return [new]
    return [new, helper.make_node("Transpose", [last], [out], perm=(0, 3, 1, 2))]


def is_unpadded(node: NodeProto) -> bool:
    """A convolution of one group over two dimensions that adds no zeros at the border."""
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return (
        node.op_type == "Conv"
        and len(found.get("kernel_shape", ())) == 2
        and found.get("group", 1) == 1
        and not any(found.get("pads", []))
        and found.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    )


def _matrix(node: NodeProto, weight: Array) -> tuple[Array | None, int]:
    """The weights as `(K, N)`, and the axis of theirs that is N; None for other layers."""
    if is_unpadded(node) and weight.shape[2:] == (1, 1):
        found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if all(step == 1 for step in found.get("strides", ())):
            return weight[:, :, 0, 0].T, 0
    if node.op_type == "MatMul" and weight.ndim == 2:
        return weight, 1
    factors = (attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0))
    if node.op_type == "Gemm" and factors == (1, 1) and not attribute(node, "transA", 0):
        return (weight.T, 0) if attribute(node, "transB", 0) else (weight, 1)
    return None, 0


def _plain_bias(node: NodeProto, weights: Weights, width: int) -> bool:
    """No bias, or a constant number per column."""
    names = [name for name in node.input[2:] if name]
    return all(name in weights and weights[name].shape == (width,) for name in names)


def _is_int8(node: NodeProto, weights: Weights) -> bool:
    """Q or DQ with zero point 0, float32; a Q, which has data before it, with one scale."""
    if len(node.input) < 3 or not weights.keys() >= set(node.input[1:]):
        return False
    if _scales(node, weights) and node.input[0] not in weights:
        return False
    scale, zero = weights[node.input[1]], weights[node.input[2]]
    return scale.dtype == np.float32 and zero.dtype == np.int8 and not zero.any()


def _scales(node: NodeProto, weights: Weights) -> bool:
    """Whether there is more than one scale, along an axis."""
    return node.input[1] not in weights or weights[node.input[1]].ndim > 0
