"""What a network costs, layer by layer: parameters and multiply-accumulates for one face.

Reads float, FP16 and Q/DQ models. Multiply-accumulates are those of Conv, Gemm and MatMul, which
dominate; the paper's MobileFaceNet has 221.2 M.
"""

from dataclasses import dataclass
from math import prod

import onnx
from onnx import ModelProto, NodeProto, TensorProto, TypeProto

from .shapes import tensor_types

_NUMBERS: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
}
_BETWEEN = ("QuantizeLinear", "DequantizeLinear", "Cast")


@dataclass(frozen=True)
class Layer:
    """One operator. `shape` is its output's without the batch; `precision` that of its weights,
    or "" where it has none."""

    name: str
    op: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    precision: str


def layers(model: ModelProto) -> list[Layer]:
    """The operators in order, quantisation and casts left out."""
    try:
        types = tensor_types(model, data_prop=True)
    except onnx.shape_inference.InferenceError:
        types = dict[str, TypeProto.Tensor]()
    shapes = {name: [dim.dim_value for dim in t.shape.dim] for name, t in types.items()}
    constants = _constants(model)
    table = []
    for node in model.graph.node:
        if node.op_type in _BETWEEN:
            continue
        out = shapes.get(node.output[0], [])
        weights = [constants[name] for name in node.input if name in constants]
        table.append(
            Layer(
                node.name,
                node.op_type,
                tuple(out[1:]),
                sum(prod(tensor.dims) for tensor, _ in weights),
                _macs(node, out, [list(tensor.dims) for tensor, _ in weights]),
                weights[0][1] if weights else "",
            )
        )
    return table


def parameters(model: ModelProto) -> int:
    return sum(layer.parameters for layer in layers(model))


def macs(model: ModelProto) -> int:
    """Multiply-accumulates for one face; operators without static shapes count nothing."""
    return sum(layer.macs for layer in layers(model))


def _macs(node: NodeProto, out: list[int], weights: list[list[int]]) -> int:
    if node.op_type not in ("Conv", "Gemm", "MatMul") or not weights or not out:
        return 0
    kernel = weights[0]
    if node.op_type == "Conv":  # (out, in / groups, kh, kw) at each place of the output
        return prod(kernel) * prod(out[2:])
    if node.op_type == "Gemm":
        return prod(kernel)
    return prod(out[1:]) * kernel[0]


def _constants(model: ModelProto) -> dict[str, tuple[TensorProto, str]]:
    """Tensor -> the weights it holds and their precision, also behind Q, DQ and Cast."""
    found = {
        tensor.name: (tensor, _NUMBERS[tensor.data_type])
        for tensor in model.graph.initializer
        if tensor.data_type in _NUMBERS
    }
    for node in model.graph.node:
        if node.op_type in _BETWEEN and node.input[0] in found:
            tensor, precision = found[node.input[0]]
            quantised = node.op_type == "QuantizeLinear" or precision == "int8"
            found[node.output[0]] = (tensor, "int8" if quantised else precision)
    return found
