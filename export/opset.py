"""Brings a model to the opset that fr-edge writes, from older and newer ones alike.

ONNX's own converter does it. Where it fails, operators newer than OPSET are replaced by their
definition, and operators for which it only lacks an adapter (Split 18) are taken to mean what they
did; `parity` measures whether that was right.
"""

import onnx
import onnx.inliner
import onnx.version_converter
from onnx import ModelProto, helper

from ..errors import ModelError

OPSET = 17

IR_VERSION = 8  # the newest that TensorRT 8.6's parser and old onnxruntimes read


def at_opset(model: ModelProto) -> ModelProto:
    """Bring a model to OPSET and IR_VERSION.

    Args:
        model: A model of the ONNX standard's operators.

    Returns:
        A copy at OPSET.

    Raises:
        ModelError: The model cannot be brought there.
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
        return _converted(copy)
    except ModelError as error:
        for attempt in (_converted, _relabelled):
            try:
                return attempt(_expanded(copy))
            except ModelError:
                continue
        raise ModelError(
            f"the model has ONNX opset {version} and cannot be brought to {OPSET}: {error.message}",
            f"export it again with opset_version={OPSET}",
        ) from error


def _converted(model: ModelProto) -> ModelProto:
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except (
        onnx.version_converter.ConvertError,
        onnx.shape_inference.InferenceError,
        RuntimeError,
        ValueError,
    ) as error:
        raise ModelError(str(error).rsplit("failed: ", 1)[-1].strip()) from error


def _expanded(model: ModelProto) -> ModelProto:
    """Operators newer than OPSET, for example Gelu, replaced by their definition."""
    new = sorted({n.op_type for n in model.graph.node if not onnx.defs.has(n.op_type, OPSET)})
    if not new:
        return model
    try:
        return onnx.inliner.inline_selected_functions(
            model, [("", name) for name in new], inline_schema_functions=True
        )
    except (TypeError, RuntimeError) as error:  # an onnx that cannot, or an operator without one
        raise ModelError(f"opset {OPSET} has no {', '.join(new)}") from error


def _relabelled(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.opset_import[0].version = OPSET
    for node in copy.graph.node:
        attributes = [item for item in node.attribute if item.name != "num_outputs"]  # Split 18
        del node.attribute[:]
        node.attribute.extend(attributes)
    try:
        onnx.checker.check_model(copy, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(str(error)) from error
    return copy
