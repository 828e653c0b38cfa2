"""Checks that fr-edge can take an ONNX model.

It takes one float32 face image `(N, 3, H, W)` in, one embedding out, operators of the ONNX standard,
and finite weights in float32. NaN is checked here because later stages hide it: QuantizeLinear makes
an integer of it, TensorRT builds an engine around it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto
from onnx.numpy_helper import to_array

from ..errors import ModelError
from ..faces.contract import InputSpec, spec_from_text
from .edit import all_nodes, attribute

CONTRACT_KEY = "fr_edge.input"  # metadata of model.onnx that holds the input contract as JSON

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)

_COMPARISONS = ("Clip", "Max", "Min", "Where")  # infinity is valid there: no bound, or a mask

_QUANTIZED = (
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
    *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"),
)


@dataclass(frozen=True)
class ImageInput:
    """The image input of a network.

    Attributes:
        name: The input's name.
        channels: 3, or 1 for a grey image.
        batch: Faces per run; None where the graph leaves it open, like the others.
        height: Pixels.
        width: Pixels.
    """

    name: str
    channels: int | None
    batch: int | None
    height: int | None
    width: int | None


def image_size(model: ModelProto) -> tuple[int | None, int | None]:
    """Height and width of the first input that looks like an image; None where they are open.

    Args:
        model: Any model; channels may come first or last.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        dims = [dim.dim_value or None for dim in value.type.tensor_type.shape.dim]
        if value.name not in weights and len(dims) == 4:
            last = dims[3] in (1, 3) and dims[1] not in (1, 3)
            return (dims[1], dims[2]) if last else (dims[2], dims[3])
    return None, None


def image_input(model: ModelProto) -> ImageInput:
    """Check that fr-edge can take a model.

    Args:
        model: A model from `export.canonicalize.tidy`.

    Returns:
        Its image input.

    Raises:
        ModelError: The model has other inputs, outputs, operators or types; the message names them.
    """
    _check_operators(model)
    graph = model.graph
    inputs = graph.input
    if len(inputs) != 1:
        raise ModelError(
            f"the network has {len(inputs)} inputs ({_names(inputs)}); expected one image"
        )
    if len(graph.output) != 1:
        raise ModelError(
            f"the network has {len(graph.output)} outputs ({_names(graph.output)}); expected one,"
            " the embedding",
            "cut the graph with onnx.utils.extract_model",
        )
    _check_weights(model)
    output = graph.output[0]
    kind = output.type.tensor_type.elem_type
    if kind not in (TensorProto.FLOAT, TensorProto.UNDEFINED):
        raise ModelError(
            f"output {output.name} is {_type(kind)}; expected the embedding in float32",
            "export it without the cast or the decision behind the embedding",
        )
    return _shape(inputs[0])


def _check_weights(model: ModelProto) -> None:
    if not model.graph.initializer:
        raise ModelError("the network holds no weights")
    for tensor in model.graph.initializer:
        if tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE):
            raise ModelError(
                f"weight {tensor.name} is {_type(tensor.data_type)}; expected float32",
                "export the float32 model; fr-edge makes the FP16 model itself",
            )
    check_finite(model)


def fixed_batch(model: ModelProto) -> int | None:
    """How many faces a network takes in a run; None where it takes any number.

    Args:
        model: A model.onnx of a bundle, or what was made of it.
    """
    return model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or None


def contract_of(model: ModelProto) -> InputSpec | None:
    """Read the input contract in a model's metadata.

    Args:
        model: Any model.

    Returns:
        The contract; None for models that fr-edge did not write.

    Raises:
        DataError: The contract cannot be read.
    """
    for item in model.metadata_props:
        if item.key == CONTRACT_KEY:
            return spec_from_text(item.value)
    return None


def check_finite(model: ModelProto) -> None:
    """Check that no weight holds NaN or infinity.

    Args:
        model: Any model.

    Raises:
        ModelError: A weight does; the message names the first.
    """
    computed = {
        name
        for node in all_nodes(model.graph)
        if node.op_type not in _COMPARISONS
        for name in node.input
    }
    for tensor in model.graph.initializer:
        if tensor.data_type not in _FLOATS:
            continue
        values = to_array(tensor)
        if np.isfinite(values).all():
            continue
        holds_nan = bool(np.isnan(values).any())
        if holds_nan or tensor.name in computed:
            raise ModelError(
                f"weight {tensor.name} holds {'NaN' if holds_nan else 'infinity'}:"
                f" {int((~np.isfinite(values)).sum())} of {values.size} numbers are not finite",
                "the training diverged or the file is damaged: export it again",
            )


def _check_operators(model: ModelProto) -> None:
    newest = onnx.defs.onnx_opset_version()
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version > newest:
            raise ModelError(
                f"the model has ONNX opset {opset.version}; this machine reads up to {newest}",
                "export it again with opset_version=17",
            )
    for node in all_nodes(model.graph):
        if node.op_type in ("Loop", "Scan"):
            raise ModelError(
                f"the model has the operator {node.op_type}: its time and memory depend on the face",
                "export it again without control flow",
            )
        if node.op_type in _QUANTIZED:
            raise ModelError(
                f"the model is already quantized (it has {node.op_type}); expected float32",
                "export the float32 model; `fr-edge calibrate` makes the INT8 one",
            )
        if node.op_type == "BatchNormalization" and (
            attribute(node, "training_mode", 0) or any(node.output[1:])
        ):
            raise ModelError(
                f"{node.name} normalizes over the batch, as in training: a face's embedding would"
                " depend on its neighbours",
                "export it again in inference mode (PyTorch: model.eval() first)",
            )
        if node.domain not in ("", "ai.onnx"):
            raise ModelError(
                f"the model uses {node.op_type} of {node.domain}, which TensorRT does not read",
                "export it again with operators of the ONNX standard only",
            )


def _shape(value: ValueInfoProto) -> ImageInput:
    tensor = value.type.tensor_type
    if tensor.elem_type != TensorProto.FLOAT:
        raise ModelError(
            f"input {value.name} is {_type(tensor.elem_type)}; expected float32",
            "export it with a float32 input; fr-edge makes the FP16 and INT8 models itself",
        )
    sizes = [dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim]
    shown = "x".join("?" if size is None else str(size) for size in sizes) or "without a shape"
    if len(sizes) != 4:
        raise ModelError(f"input {value.name} is {shown}; expected Nx3xHxW, rank 4")
    if sizes[1] not in (1, 3, None):
        raise ModelError(f"input {value.name} is {shown}; expected 3 channels or 1, Nx3xHxW")
    return ImageInput(value.name, sizes[1], sizes[0], sizes[2], sizes[3])


def _type(number: int) -> str:
    known = number in TensorProto.DataType.values()
    return TensorProto.DataType.Name(number).lower() if known else f"type {number}"


def _names(values: Iterable[ValueInfoProto]) -> str:
    return ", ".join(value.name for value in values) or "none"
