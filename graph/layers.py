"""The layers of a network: parameters, multiply-adds and precision, and which of them become INT8.

Float, FP16 and Q/DQ models (INT8, FP8) are read. Multiply-adds are those of convolutions and matrix
products, which dominate: 221.2 M for the paper's MobileFaceNet. Products of two activations (attention),
transposed convolutions and recurrent layers count too; they never become 8 bits.

The rule for INT8 (docs/results/int8.md has the measurements behind it):

- Dense convolutions and matrix products are INT8, the first and the embedding layer too.
- Grouped and depthwise convolutions stay float, unless they are asked for. They cause most of INT8's
  loss in a face network: each channel has its own range, nothing is summed over channels, and one
  scale serves them all. INT8 gains nothing where it was compiled (docs/results/engines.md): they hold
  few multiply-adds, and TensorRT expands them (NVIDIA/TensorRT issue 4529).
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, TensorProto, TypeProto

from ..faces.contract import InputSpec
from ..onnx_file import read_onnx
from .edit import attribute
from .eight_bit import EIGHT_BIT
from .load import contract_of
from .shapes import tensor_types

GROUPED = "grouped convolution"  # why a layer stays float

_WEIGHTED = ("Conv", "Gemm", "MatMul")

_RECURRENT = ("LSTM", "GRU", "RNN")

_PRODUCTS = ("MatMul", "Einsum", "ConvTranspose", *_RECURRENT)  # besides weighted layers

_BETWEEN = ("QuantizeLinear", "DequantizeLinear", "Cast")

_PRECISIONS: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
    TensorProto.FLOAT8E4M3FN: "fp8",
}


@dataclass(frozen=True)
class Layer:
    """One operator.

    Attributes:
        name: The node's name.
        op: The operator.
        data: The tensor it reads first: a layer's activations.
        weight: The constant that it multiplies by; "" for other operators.
        groups: Of a convolution; 1 for other operators.
        shape: Shape of its output without the batch; () where it cannot be inferred.
        parameters: Constants that it reads.
        macs: Multiply-adds for one face; 0 for other operators than convolutions, matrix products and
            recurrent layers, and where the shape is not known.
        precision: Of a layer with weights or a MatMul, the numbers it multiplies; of others, its
            constants; "" where it has none.
    """

    name: str
    op: str
    data: str
    weight: str
    groups: int
    shape: tuple[int, ...]
    parameters: int
    macs: int
    precision: str


@dataclass(frozen=True)
class ModelSummary:
    """An ONNX file at a glance.

    Attributes:
        file: Its name.
        size: Bytes.
        opset: Version of the ONNX operators.
        ir_version: Version of the file format.
        producer: What wrote it.
        input: The input contract, if the file has one.
        parameters: Constants in all.
        macs: Multiply-adds for one face.
        macs_by_precision: Precision -> multiply-adds.
        operators: Operator -> how many.
        layers: The operators in order.
    """

    file: str
    size: int
    opset: int
    ir_version: int
    producer: str
    input: InputSpec | None
    parameters: int
    macs: int
    macs_by_precision: Mapping[str, int]
    operators: Mapping[str, int]
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Int8Choice:
    """Which layers become INT8.

    Attributes:
        int8: Names of the layers, in graph order.
        float_layers: Other layers with weights -> why they stay float.
        tensors: Activations that need a range.
        mac_share: Share of all multiply-adds in INT8, 0 to 1.
        dense_share: Share of the dense layers' multiply-adds in INT8.
    """

    int8: tuple[str, ...]
    float_layers: Mapping[str, str]
    tensors: tuple[str, ...]
    mac_share: float
    dense_share: float


def layers(model: ModelProto) -> list[Layer]:
    """List the operators of a model, quantization and casts left out.

    Args:
        model: A float, FP16 or Q/DQ model.

    Returns:
        The operators in graph order.
    """
    try:
        types = tensor_types(model, data_prop=True, batch=1)
    except onnx.shape_inference.InferenceError:
        types = dict[str, TypeProto.Tensor]()
    shapes = {name: [dim.dim_value for dim in t.shape.dim] for name, t in types.items()}
    constants = _constants(model)
    dequantized = _dequantized(model)
    table = []
    for node in model.graph.node:
        if node.op_type in _BETWEEN:
            continue
        shape = shapes.get(node.output[0], [])
        sizes = [prod(constants[name][0].dims) for name in node.input if name in constants]
        weight = _weight_of(node, constants)
        precision, macs = _precision(node, constants, dequantized), 0
        if weight:
            macs = _count_macs(node, shape, list(constants[weight][0].dims))
        elif node.op_type in _PRODUCTS:
            weights = {
                name: list(constants[name][0].dims) for name in node.input if name in constants
            }
            macs = _count_products(node, shape, {**shapes, **weights})
            precision = (
                precision or _PRECISIONS.get(types[node.output[0]].elem_type, "") if macs else ""
            )
        table.append(
            Layer(
                node.name,
                node.op_type,
                node.input[0] if node.input else "",
                weight,
                int(attribute(node, "group", 1)),
                tuple(shape[1:]),
                sum(sizes),
                macs,
                precision,
            )
        )
    return table


def weighted_layers(model: ModelProto) -> list[Layer]:
    """List the layers that multiply by constant weights.

    Args:
        model: A float, FP16 or Q/DQ model.

    Returns:
        The Conv, Gemm and MatMul layers with constant weights, in graph order.
    """
    return [layer for layer in layers(model) if layer.weight]


def weighted_nodes(model: ModelProto) -> list[NodeProto]:
    """List the nodes of `weighted_layers`, without inferring shapes.

    Args:
        model: A float, FP16 or Q/DQ model.

    Returns:
        The nodes in graph order.
    """
    constants = _constants(model)
    return [node for node in model.graph.node if _weight_of(node, constants)]


def layer_precisions(model: ModelProto) -> dict[str, int]:
    """Count the layers with weights by the numbers they multiply, according to the file.

    Args:
        model: A float, FP16 or Q/DQ model.

    Returns:
        Precision -> number of layers; "int8", "fp16" and "fp32" are always there, "fp8" where a
        layer has it.
    """
    counts = {"int8": 0, "fp16": 0, "fp32": 0}
    for precision in precisions_by_output(model).values():
        counts[precision] = counts.get(precision, 0) + 1
    return counts


def precisions_by_output(model: ModelProto) -> dict[str, str]:
    """The numbers that each layer with weights multiplies, according to the file.

    Args:
        model: A float, FP16 or Q/DQ model.

    Returns:
        Name of a layer's output -> "fp32", "fp16", "fp8" or "int8", in graph order.
    """
    constants, dequantized = _constants(model), _dequantized(model)
    return {
        node.output[0]: _precision(node, constants, dequantized)
        for node in model.graph.node
        if _weight_of(node, constants)
    }


def summarize_model(path: str | Path, *, side_files: bool = False) -> ModelSummary:
    """Summarize an ONNX file.

    Args:
        path: The file.
        side_files: As `onnx_file.read_onnx`.

    Returns:
        Size, contract, operators and their cost.

    Raises:
        ModelError: The file is not an ONNX model.
    """
    path = Path(path)
    model = read_onnx(path, side_files=side_files)
    table = layers(model)
    by_precision: Counter[str] = Counter()
    for layer in table:
        if layer.macs:
            by_precision[layer.precision] += layer.macs
    return ModelSummary(
        file=path.name,
        size=path.stat().st_size,
        opset=next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0),
        ir_version=model.ir_version,
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        input=contract_of(model),
        parameters=sum(layer.parameters for layer in table),
        macs=total_macs(table),
        macs_by_precision=dict(by_precision),
        operators=dict(Counter(layer.op for layer in table)),
        layers=tuple(table),
    )


def choose_int8_layers(
    model: ModelProto,
    float_layers: Mapping[str, str] | None = None,
    *,
    grouped: bool = False,
) -> Int8Choice:
    """Choose the layers that become INT8, by the rule at the head of this file.

    Args:
        model: A float model whose nodes are named.
        float_layers: Further layers that stay float -> the reason.
        grouped: Grouped and depthwise convolutions become INT8 too.

    Returns:
        The choice.
    """
    everything = layers(model)
    table = [layer for layer in everything if layer.weight]
    rule = {} if grouped else {layer.name: GROUPED for layer in table if layer.groups > 1}
    floats = {**rule, **(float_layers or {})}
    chosen = [layer for layer in table if layer.name not in floats]
    dense = [layer for layer in table if layer.groups == 1]
    return Int8Choice(
        tuple(layer.name for layer in chosen),
        floats,
        tuple(dict.fromkeys(layer.data for layer in chosen)),
        total_macs(chosen) / (total_macs(everything) or 1),
        total_macs([layer for layer in chosen if layer.groups == 1]) / (total_macs(dense) or 1),
    )


def total_macs(table: Collection[Layer]) -> int:
    """Add the multiply-adds of layers.

    Args:
        table: The layers.

    Returns:
        Multiply-adds for one face.
    """
    return sum(layer.macs for layer in table)


def _weight_of(node: NodeProto, constants: Mapping[str, object]) -> str:
    """The name of the constant that a node multiplies by, or ""."""
    if node.op_type not in _WEIGHTED or node.input[1] not in constants:
        return ""
    return node.input[1]


def _count_macs(node: NodeProto, shape: list[int], weight: list[int]) -> int:
    """For one face; `shape` is the output's for it, 0 where a size is not known."""
    if not shape:
        return 0
    if node.op_type == "Gemm":
        return prod(weight) * shape[0]
    if node.op_type == "Conv":  # (out, in / groups, kh, kw) at each place of the output
        return prod(weight) * prod(shape[2:]) * shape[0]
    return prod(shape) * weight[-2]


def _count_products(node: NodeProto, shape: list[int], shapes: Mapping[str, Sequence[int]]) -> int:
    """For one face, of what no layer in 8 bits computes; `shape` is the output's."""
    if len(node.input) < 2:  # an Einsum of one matrix has no products
        return 0
    first, second = (list(shapes.get(name, ())) for name in node.input[:2])
    if not first or not second:
        return 0
    if node.op_type == "ConvTranspose":  # (in, out / groups, kh, kw) at each place of the input
        return prod(second) * prod(first[2:]) * first[0]
    if node.op_type == "Einsum":
        equation = next((a.s.decode() for a in node.attribute if a.name == "equation"), "")
        terms = equation.split("->")[0].replace(" ", "").split(",")
        if "." in equation or [len(term) for term in terms] != [len(first), len(second)]:
            return 0
        return prod(dict(zip("".join(terms), first + second, strict=True)).values())
    if (
        node.op_type in _RECURRENT
    ):  # (directions, gates * hidden, size) of the input and of the state
        state = shapes.get(node.input[2], ())
        return (prod(second) + prod(state)) * first[0] * first[1]
    return prod(shape) * first[-1]


def _constants(model: ModelProto) -> dict[str, tuple[TensorProto, str]]:
    """Tensor -> the constant that it holds and its precision, behind Q, DQ and Cast too."""
    constants = {
        tensor.name: (tensor, _PRECISIONS[tensor.data_type])
        for tensor in model.graph.initializer
        if tensor.data_type in _PRECISIONS
    }
    for node in model.graph.node:
        if node.op_type in _BETWEEN and node.input[0] in constants:
            tensor, precision = constants[node.input[0]]
            if node.op_type == "QuantizeLinear":  # its zero point names the type
                zero = node.input[2] if len(node.input) > 2 else ""
                precision = constants[zero][1] if zero in constants else "int8"
            constants[node.output[0]] = (tensor, precision)
    return constants


def _dequantized(model: ModelProto) -> set[str]:
    return {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}


def _precision(
    node: NodeProto, constants: Mapping[str, tuple[TensorProto, str]], dequantized: set[str]
) -> str:
    precision = next((constants[name][1] for name in node.input if name in constants), "")
    weight = _weight_of(node, constants)
    if not weight:
        return precision
    precision = constants[weight][1]
    if precision in EIGHT_BIT and node.input[0] not in dequantized:
        return "fp32"  # 8-bit weights, float arithmetic
    return precision
