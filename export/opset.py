"""Brings a model to one opset of the ONNX standard, from 7 up to the newest.

ONNX's own converter goes upwards. Downwards it lacks adapters (Split 18, RMSNormalization 23), so
operators newer than OPSET are replaced by their definition and those whose form has changed since
are written in OPSET's form. `parity` measures whether the network still computes the same.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..errors import ModelError
from ..graph.shapes import tensor_types
from ..inference import first_line
from .decompositions import (
    attribute_value,
    constant_numbers,
    constant_tensors,
    decompose_blocks,
    decompose_resizes,
    remove_attribute,
    tensor_sizes,
)

OPSET = 17
IR_VERSION = 8  # the newest that TensorRT 8.6's parser and old onnxruntimes read

_REDUCTIONS = (  # axes are an input since opset 18
    *("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"),
    *("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
)

# Attributes that came after OPSET and the value at which they change nothing.
_NEWER_ATTRIBUTES: dict[str, dict[str, object]] = {
    "AveragePool": {"dilations": 1},
    "Resize": {"antialias": 0, "keep_aspect_ratio_policy": "stretch"},
    "ScatterElements": {"reduction": "none"},
    "ScatterND": {"reduction": "none"},
    "Cast": {"saturate": 1, "round_mode": "up"},
    "CastLike": {"saturate": 1, "round_mode": "up"},
    "Reshape": {"allowzero": 0},
}


def at_opset(model: ModelProto) -> ModelProto:
    """Bring a model to OPSET and IR_VERSION.

    Args:
        model: A model of the ONNX standard's operators.

    Returns:
        A copy at OPSET.

    Raises:
        ModelError: The model cannot be brought there; the message names the operator.
    """
    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = IR_VERSION
    del copy.opset_import[:]
    copy.opset_import.append(helper.make_opsetid("", version))
    if version == OPSET:
        return copy
    try:
        if version < OPSET or not _newer(copy):
            return _converted(copy)
    except ModelError as error:
        if version < OPSET:
            raise _cannot(version, error) from error
    try:
        return _downgraded(copy)
    except ModelError as error:
        raise _cannot(version, error) from error


def _cannot(version: int, error: ModelError) -> ModelError:
    return ModelError(
        f"the model has ONNX opset {version} and cannot be brought to {OPSET}: {error.message}",
        f"export it again with opset_version={OPSET}",
    )


def _newer(model: ModelProto) -> list[str]:
    """Operators that OPSET does not have."""
    return sorted({n.op_type for n in model.graph.node if not onnx.defs.has(n.op_type, OPSET)})


def _converted(model: ModelProto) -> ModelProto:
    try:
        result = onnx.version_converter.convert_version(model, OPSET)
        onnx.checker.check_model(result)  # a newer reduction keeps an attribute that OPSET lacks
        return result
    except (
        onnx.version_converter.ConvertError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        RuntimeError,
        ValueError,
    ) as error:
        raise ModelError(str(error).rsplit("failed: ", 1)[-1].strip()) from error


def _downgraded(model: ModelProto) -> ModelProto:
    """A model newer than OPSET in OPSET's operators and forms."""
    model = decompose_resizes(_expanded(decompose_blocks(model)))
    sizes, constants = tensor_sizes(model), constant_tensors(model)
    added: list[TensorProto] = []
    for node in model.graph.node:
        if node.op_type in _REDUCTIONS:
            _reduction(node, constants)
        elif node.op_type == "Split":
            _split(node, sizes, added)
        elif node.op_type == "Pad" and len(node.input) > 3 and node.input[3]:
            _pad(node, sizes, constants, added)
        elif node.op_type == "Resize":
            _resize(node, sizes, constants, added)
        elif node.op_type == "GridSample":
            _grid_sample(node)
        _drop_newer_attributes(node)
    model.graph.initializer.extend(added)
    model.opset_import[0].version = OPSET
    model.graph.ClearField("value_info")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(first_line(error)) from error
    return model


def _expanded(model: ModelProto) -> ModelProto:
    """Operators newer than OPSET, for example Gelu, replaced by their definition."""
    new = _newer(model)
    if not new:
        return model
    _declare_types(model)
    try:
        return onnx.inliner.inline_selected_functions(
            model, [("", name) for name in new], inline_schema_functions=True
        )
    except (TypeError, RuntimeError) as error:  # an onnx that cannot, or an operator without one
        raise ModelError(f"opset {OPSET} has no {', '.join(new)}") from error


def _declare_types(model: ModelProto) -> None:
    """Write down every tensor's type, in place: definitions such as GroupNormalization's need it."""
    graph = model.graph
    known = tensor_types(model)
    weights = {
        t.name: helper.make_tensor_type_proto(t.data_type, list(t.dims)).tensor_type
        for t in graph.initializer
    }
    ends = {value.name for value in (*graph.input, *graph.output)}
    graph.ClearField("value_info")
    for name, kind in {**known, **weights}.items():
        if name not in ends:
            graph.value_info.add(name=name).type.tensor_type.CopyFrom(kind)


def _reduction(node: NodeProto, constants: Mapping[str, TensorProto]) -> None:
    if len(node.input) == 1 and attribute_value(node, "axes", None):
        return
    axes = constant_numbers(node, 1, constants) if len(node.input) > 1 and node.input[1] else []
    nothing = not axes and attribute_value(node, "noop_with_empty_axes", 0)
    if nothing and node.op_type not in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"):
        raise ModelError(f"{node.op_type} reduces no axis")
    del node.input[1:]
    remove_attribute(node, "noop_with_empty_axes")
    if nothing:
        node.op_type = "Identity"
        del node.attribute[:]
    elif axes:
        node.attribute.append(helper.make_attribute("axes", [int(axis) for axis in axes]))


def _split(
    node: NodeProto, sizes: Mapping[str, Sequence[int | None]], added: list[TensorProto]
) -> None:
    """`num_outputs` parts, the last one smaller, as explicit sizes."""
    parts = attribute_value(node, "num_outputs", 0)
    if not parts:
        return
    remove_attribute(node, "num_outputs")
    shape, axis = sizes.get(node.input[0]), attribute_value(node, "axis", 0)
    length = shape[axis] if shape else None
    if length is None:  # OPSET's form without sizes: equal parts
        return
    chunk = -(-length // parts)
    split = [min(chunk, length - chunk * part) for part in range(parts)]
    name = f"{node.output[0]}_split"
    added.append(numpy_helper.from_array(np.array(split, np.int64), name))
    node.input.append(name)


def _pad(
    node: NodeProto,
    sizes: Mapping[str, Sequence[int | None]],
    constants: Mapping[str, TensorProto],
    added: list[TensorProto],
) -> None:
    """Pads of some axes as pads of all."""
    axes = [int(axis) for axis in constant_numbers(node, 3, constants)]
    pads = [int(pad) for pad in constant_numbers(node, 1, constants)]
    rank = len(sizes.get(node.input[0], ()))
    if not rank:
        raise ModelError("a Pad's input has no shape")
    whole = [0] * (2 * rank)
    for place, axis in enumerate(axes):
        whole[axis % rank] = pads[place]
        whole[rank + axis % rank] = pads[len(axes) + place]
    node.input[1] = f"{node.output[0]}_pads"
    added.append(numpy_helper.from_array(np.array(whole, np.int64), node.input[1]))
    del node.input[3:]


def _resize(
    node: NodeProto,
    sizes: Mapping[str, Sequence[int | None]],
    constants: Mapping[str, TensorProto],
    added: list[TensorProto],
) -> None:
    """Scales or sizes of some axes as scales of all."""
    axes = [int(axis) for axis in attribute_value(node, "axes", ())]
    if not axes:
        return
    shape = list(sizes.get(node.input[0], ()))
    remove_attribute(node, "axes")
    if not shape:
        raise ModelError("a Resize's input has no shape")
    scales = [1.0] * len(shape)
    by_size = len(node.input) > 3 and node.input[3]
    values = constant_numbers(node, 3 if by_size else 2, constants)
    for axis, value in zip(axes, values, strict=True):
        length = shape[axis]
        if by_size and not length:
            raise ModelError("a Resize to a size reads a tensor whose size is open")
        scales[axis] = value / length if by_size and length else value
    del node.input[2:]
    node.input.append(f"{node.output[0]}_scales")
    added.append(numpy_helper.from_array(np.array(scales, np.float32), node.input[2]))


def _grid_sample(node: NodeProto) -> None:
    for item in node.attribute:
        if item.name == "mode" and item.s in (b"linear", b"cubic"):
            item.s = b"bi" + item.s


def _drop_newer_attributes(node: NodeProto) -> None:
    """Attributes that OPSET does not know go where they change nothing."""
    try:
        known = onnx.defs.get_schema(node.op_type, OPSET).attributes
    except onnx.defs.SchemaError as error:
        raise ModelError(f"opset {OPSET} has no {node.op_type}") from error
    for item in list(node.attribute):
        if item.name in known:
            continue
        harmless = _NEWER_ATTRIBUTES.get(node.op_type, {}).get(item.name)
        if harmless is None or not _is(item, harmless):
            raise ModelError(f"opset {OPSET} has no {node.op_type} with {item.name}")
        remove_attribute(node, item.name)


def _is(item: AttributeProto, value: object) -> bool:
    actual = helper.get_attribute_value(item)
    if isinstance(actual, bytes):
        return bool(actual.decode() == value)
    return all(x == value for x in actual) if isinstance(actual, list) else bool(actual == value)
