"""Float model and calibration table -> explicit Q/DQ model that TensorRT's parser takes and fuses.

Symmetric INT8 or FP8, zero points 0, per-channel weights, FP32 scales, float biases. A layer's output
passes its PReLU before it is quantized again, and at a residual addition only the skip branch is
quantized. docs/decisions/0002 explains why the nodes are inserted here and not by a library. An FP8
model is of opset 19, the first whose Q and DQ take the format; the type of the zero point names it.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from ..arrays import F32
from ..errors import BundleError
from ..graph.edit import prune, write_newer_forms
from ..graph.eight_bit import INT8, EightBit, eight_bit_format
from ..graph.layer_weights import add_to_bias, has_bias, output_axis, store_weight, weight_scales
from ..graph.layers import Int8Choice, choose_int8_layers
from ..graph.load import check_finite
from .activation_shift import shift_activations
from .equalization import equalize
from .gptq import RoundedWeight, correct_biases
from .table import CalibrationTable


def quantize_onnx(
    model: onnx.ModelProto,
    table: CalibrationTable,
    choice: Int8Choice | None = None,
    rounded: Mapping[str, RoundedWeight] | None = None,
) -> onnx.ModelProto:
    """A Q/DQ copy of a float model.

    Args:
        model: A float model whose nodes are named.
        table: The ranges of its tensors, with scales, shifts and means, and the 8-bit format.
        choice: Which layers are quantized; by default those of `choose_int8_layers`.
        rounded: Layer -> rounded weights; other weights are rounded to nearest.

    Raises:
        BundleError: The table lacks the range of a tensor that quantized layers read, or was made for a
            network of other shapes.
        ModelError: A weight is not finite.
    """
    check_finite(model)
    form = eight_bit_format(table.precision)
    choice = choice or choose_int8_layers(model)
    if missing := [name for name in choice.tensors if name not in table.ranges]:
        raise BundleError(f"the calibration table has no range for {missing[0]}", "calibrate again")
    try:
        result = equalize(model, table.scales)
        _use_rounded_weights(result.graph, choice, rounded or {})
        shifted = shift_activations(result, choice, table.shifts)
        choice = replace(choice, tensors=tuple(shifted.get(t, t) for t in choice.tensors))
        correct_biases(result, choice, {shifted.get(t, t): m for t, m in table.means.items()}, form)
    except ValueError as error:
        raise BundleError(
            f"the calibration table does not fit the model: {error}", "calibrate again"
        ) from error
    ranges = {shifted.get(t, t): amax for t, amax in table.ranges.items()}
    _insert_qdq(result.graph, choice, ranges, form)
    if form is not INT8:  # INT8 models keep the opset that the oldest TensorRT reads
        _raise_versions(result, form)
    result.graph.ClearField("value_info")
    prune(result.graph)
    onnx.checker.check_model(result)
    return result


def _use_rounded_weights(
    graph: onnx.GraphProto, choice: Int8Choice, rounded: Mapping[str, RoundedWeight]
) -> None:
    for node in graph.node:
        if node.name in choice.int8 and node.name in rounded:
            result = rounded[node.name]
            node.input[1] = store_weight(graph, f"{node.name}/rounded", result.weight)
            if has_bias(graph, node):
                add_to_bias(graph, node, result.shift)


def _raise_versions(model: onnx.ModelProto, form: EightBit) -> None:
    model.ir_version = max(model.ir_version, form.ir_version)
    opset = next(o for o in model.opset_import if o.domain in ("", "ai.onnx"))
    if opset.version < 18 <= form.opset:
        write_newer_forms(model.graph)
    opset.version = max(opset.version, form.opset)


def _insert_qdq(
    graph: onnx.GraphProto, choice: Int8Choice, ranges: Mapping[str, float], form: EightBit
) -> None:
    quantized = set(choice.int8)
    zero = store_weight(graph, f"{form.name}/zero", np.zeros((), form.dtype))
    pairs = {
        tensor: _activation_pair(graph, tensor, ranges[tensor] / form.largest, zero)
        for tensor in choice.tensors
    }
    constants = {t.name: t for t in graph.initializer}
    ordered: list[NodeProto] = [node for value in graph.input for node in pairs.get(value.name, ())]
    for node in graph.node:
        if node.name in quantized:
            node.input[0] = pairs[node.input[0]][1].output[0]
            weight = numpy_helper.to_array(constants[node.input[1]])
            weight_pair = _weight_pair(graph, node, weight, form)
            node.input[1] = weight_pair[1].output[0]
            ordered.extend(weight_pair)
        elif node.op_type == "Add":
            # The skip branch is the one that a quantized layer reads too. The other one comes from a
            # layer, and a node between that and the addition would keep TensorRT from fusing them.
            skips = [index for index, name in enumerate(node.input) if name in pairs]
            for index in skips[:1]:
                node.input[index] = pairs[node.input[index]][1].output[0]
        ordered.append(node)
        for name in node.output:
            ordered.extend(pairs.get(name, ()))
    copies = [NodeProto.FromString(node.SerializeToString()) for node in ordered]
    graph.ClearField("node")
    graph.node.extend(copies)


def _activation_pair(
    graph: onnx.GraphProto, tensor: str, scale: float, zero: str
) -> tuple[NodeProto, NodeProto]:
    name = store_weight(graph, f"{tensor}/scale", np.array(scale, np.float32))
    return _qdq_pair(tensor, name, zero, tensor)


def _weight_pair(
    graph: onnx.GraphProto, node: NodeProto, weight: F32, form: EightBit
) -> tuple[NodeProto, NodeProto]:
    """Float weights, quantized in the graph, as TensorRT 8.6 and later take them."""
    scales = weight_scales(node, weight, form)
    name = f"{node.name}/weight"
    scale = store_weight(graph, f"{name}/scale", scales)
    zeros = store_weight(graph, f"{name}/zero", np.zeros(len(scales), form.dtype))
    return _qdq_pair(node.input[1], scale, zeros, name, output_axis(node, weight.ndim))


def _qdq_pair(
    tensor: str, scale: str, zero: str, name: str, axis: int | None = None
) -> tuple[NodeProto, NodeProto]:
    quantized, result = f"{name}/q", f"{name}/dq"
    pair = (
        helper.make_node("QuantizeLinear", [tensor, scale, zero], [quantized], quantized),
        helper.make_node("DequantizeLinear", [quantized, scale, zero], [result], result),
    )
    if axis is not None:
        for node in pair:
            node.attribute.append(helper.make_attribute("axis", axis))
    return pair
