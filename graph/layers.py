"""What a network costs, layer by layer: parameters and multiply-accumulates for one face.

Reads float, FP16 and Q/DQ models. Multiply-accumulates are those of Conv, Gemm and MatMul, which
dominate; the paper's MobileFaceNet has 221.2 M.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, NodeProto, TensorProto, TypeProto

from ..faces.contract import InputSpec
from .edit import attribute
from .load import contract_of, read_onnx
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


# What a person asks of a model file: size, operators, cost, contract.


@dataclass(frozen=True)
class ModelSummary:
    """An ONNX file; `contract` is None where the file carries none. `size` in bytes."""

    file: str
    size: int
    opset: int
    ir_version: int
    producer: str
    contract: InputSpec | None
    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one face."""
        return sum(layer.macs for layer in self.layers)

    @property
    def macs_by_precision(self) -> dict[str, int]:
        count: Counter[str] = Counter()
        for layer in self.layers:
            if layer.macs:
                count[layer.precision] += layer.macs
        return dict(count)

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "size": self.size,
            "opset": self.opset,
            "ir_version": self.ir_version,
            "producer": self.producer,
            "input": self.contract.to_json() if self.contract else None,
            "parameters": self.parameters,
            "macs": self.macs,
            "macs_by_precision": self.macs_by_precision,
            "operators": dict(Counter(layer.op for layer in self.layers)),
            "layers": [asdict(layer) for layer in self.layers],
        }


def summarize_model(path: str | Path) -> ModelSummary:
    """The facts of an ONNX file, ours or somebody's; raises ModelError when it is none."""
    path = Path(path)
    model = read_onnx(path)
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    return ModelSummary(
        path.name,
        path.stat().st_size,
        opset,
        model.ir_version,
        f"{model.producer_name} {model.producer_version}".strip(),
        contract_of(model),
        tuple(layers(model)),
    )


# Which layers become INT8: one rule for every network, and the reason for each that does not.
#
# - Dense convolutions and matrix products: INT8, the first and the embedding layer too.
# - Grouped and depthwise convolutions: float. There sits what INT8 costs a face network: each
#   channel has its own range, nothing is summed over channels, and one scale must serve them all.
#   And they gain nothing: they hold few of the multiply-adds, and TensorRT expands them
#   (NVIDIA/TensorRT issue 4529).
#
# docs/results/int8.md has the measurements behind the rule.

COMPUTE = ("Conv", "Gemm", "MatMul")

GROUPED = "grouped convolution"


@dataclass(frozen=True)
class ComputeLayer:
    """A node that multiplies by constant weights; `macs` for one face."""

    name: str
    op: str
    data: str
    """The activation tensor it reads."""
    macs: int
    groups: int


@dataclass(frozen=True)
class Int8Choice:
    """`int8` layer names in graph order; `kept` maps the others to the reason."""

    int8: tuple[str, ...]
    kept: Mapping[str, str]
    tensors: tuple[str, ...]
    """Activations that need a range."""
    mac_share: float
    """Share of all multiply-adds that runs in INT8, 0..1."""
    dense_share: float
    """The same of those of the dense layers."""


def compute_layers(model: onnx.ModelProto) -> list[ComputeLayer]:
    """The layers with constant weights, in graph order; needs inferable shapes."""
    types = tensor_types(model)
    weights = {t.name: list(t.dims) for t in model.graph.initializer}
    layers = []
    for node in model.graph.node:
        if node.op_type not in COMPUTE or node.input[1] not in weights:
            continue
        shape = types[node.output[0]].shape if node.output[0] in types else None
        places = [dim.dim_value for dim in shape.dim] if shape else []
        places = places[2:] if node.op_type == "Conv" else places[1:-1]
        macs = prod(weights[node.input[1]]) * prod(max(1, d) for d in places)
        groups = int(attribute(node, "group", 1))
        layers.append(ComputeLayer(node.name, node.op_type, node.input[0], macs, groups))
    return layers


def choose_int8_layers(
    model: onnx.ModelProto, floats: Mapping[str, str] | None = None
) -> Int8Choice:
    """Apply the rule above to a float model whose nodes are named.

    `floats` maps further layers that stay float to the reason.
    """
    layers = compute_layers(model)
    kept = {layer.name: GROUPED for layer in layers if layer.groups > 1} | dict(floats or {})
    chosen = [layer for layer in layers if layer.name not in kept]
    dense = [layer for layer in layers if layer.groups == 1]
    return Int8Choice(
        tuple(layer.name for layer in chosen),
        kept,
        tuple(dict.fromkeys(layer.data for layer in chosen)),
        _total_macs(chosen) / (_total_macs(layers) or 1),
        _total_macs(chosen) / (_total_macs(dense) or 1),
    )


def _total_macs(layers: Collection[ComputeLayer]) -> int:
    return sum(layer.macs for layer in layers)


WEIGHTED_OPERATORS = ("Conv", "Gemm", "MatMul")
"""The operators with weights, in which nearly all time is spent."""


def layer_precisions(model: onnx.ModelProto) -> dict[str, int]:
    """How many operators with weights multiply INT8, FP16 and FP32 numbers, by the file."""
    makers = {out: node.op_type for node in model.graph.node for out in node.output}
    half = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16}
    counts = {"int8": 0, "fp16": 0, "fp32": 0}
    for node in model.graph.node:
        if node.op_type not in WEIGHTED_OPERATORS:
            continue
        if all(makers.get(name) == "DequantizeLinear" for name in node.input[:2]):
            counts["int8"] += 1
        elif node.input[1] in half:
            counts["fp16"] += 1
        else:
            counts["fp32"] += 1
    return counts
