"""Brings a network into fr-edge's form: `face (batch, 3, H, W)` -> `embedding (batch, D)`, opset 17.

`tidy` removes what exporters leave in a graph, `normal_form` sets names, opset and a free batch,
`finish` writes versions and the input contract. None of them measures whether the network still
computes the same: `parity` does.
"""

import json
import logging
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from .._version import __version__
from ..errors import ModelError
from ..faces.contract import InputSpec
from ..graph.edit import name_nodes
from ..graph.load import CONTRACT_KEY, image_input
from ..graph.shapes import ranks
from .batch import fix_batch, free_batch
from .graph_ir import (
    fold_constants_ir,
    ir,
    ir_passes,
    to_ir,
    to_proto,
)
from .one_face import InterfaceOptions, check_widened, one_embedding_out, one_image_in, to_float32
from .opset import IR_VERSION, OPSET, at_opset

logger = logging.getLogger(__name__)

INPUT, OUTPUT = "face", "embedding"

_RANDOM = ("Random", "Bernoulli", "Multinomial", "Dropout")  # prefixes of operators

_NO_LIMIT = 1 << 62  # numbers in a constant

Shape = tuple[int, ...]


def tidy(model: ModelProto, options: InterfaceOptions | None = None) -> ModelProto:
    """Remove what exporters leave in a graph, so that the rest reads one kind of model.

    What the network computes stays the same; the image becomes float32 and channels first.

    Args:
        model: A model as `onnx_file.read_onnx` gives it.
        options: What is declared of its inputs and outputs.

    Returns:
        A copy in float32 with sorted nodes, constants computed, PRelu slopes `(C, 1, 1)`, one image
        `(N, C, H, W)` and one output. Weights listed as inputs and inputs that nothing reads are
        dropped.

    Raises:
        ModelError: The graph has a cycle or is not valid otherwise, or it has several images or
            embeddings.
        UsageError: The options name what the graph does not have.
    """
    options = options or InterfaceOptions()
    tidied = to_ir(to_float32(model))
    graph = tidied.graph
    try:
        graph.sort()
    except ValueError as error:
        raise ModelError(
            f"the network is not valid ONNX, its graph has a cycle: {error}"
        ) from error
    ir_passes.RemoveInitializersFromInputsPass()(tidied)
    tidied.ir_version = max(tidied.ir_version, IR_VERSION)  # below 4 weights had to be inputs
    for value in [value for value in graph.inputs if not value.uses()]:
        if not value.is_graph_output():
            graph.inputs.remove(value)
    tidied = to_ir(one_image_in(to_proto(tidied), options))
    _forget_shapes(tidied.graph)
    fold_constants(tidied)
    _channels_first(tidied.graph)
    result = to_proto(tidied)
    _repair_norms(result)
    _shape_slopes(result)
    result = one_embedding_out(result, options)
    check_widened(model, result, options.size)
    return result


def normal_form(model: ModelProto, spec: InputSpec, *, one_face: bool = False) -> ModelProto:
    """Bring a network to fr-edge's names and opset, and let it take any number of faces.

    Args:
        model: A model from `tidy`.
        spec: The input contract; its size becomes the input's.
        one_face: Let it take one face at a time instead.

    Returns:
        A copy with input `face (batch, 3, H, W)` and output `embedding (batch, D)`; batch is 1 with
        `one_face`.

    Raises:
        ModelError: The model is not a float32 network from one image to one embedding, or cannot
            be brought to opset 17.
    """
    face = image_input(model)
    level = at_opset(model)
    if one_face and face.batch not in (None, 1):
        raise ModelError(f"the network takes {face.batch} faces at a time")
    # Two faces show best where the batch goes; one may be all that a graph survives.
    candidates = [1] if one_face else [2, 1] if face.batch is None else [face.batch]
    failures = []
    for batch in candidates:
        normal = to_ir(level)
        try:
            dim = _open(normal, spec, batch, one_face)
        except ModelError as error:
            failures.append(error)
            continue
        size: int | str = 1 if one_face else "batch"
        normal.graph.inputs[0].shape = ir.Shape([size, *spec.shape])
        normal.graph.outputs[0].shape = ir.Shape([size, dim])
        normal.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        ir_passes.RemoveUnusedNodesPass()(normal)
        return to_proto(normal)
    raise failures[-1]


def _open(normal: ir.Model, spec: InputSpec, batch: int, one_face: bool) -> int:
    """Set names and free the batch, in place, by a run on `batch` faces; returns D."""
    graph = normal.graph
    graph.inputs[0].name, graph.outputs[0].name = INPUT, OUTPUT
    # Declared shapes hold for one batch and one size.
    _forget_shapes(graph)
    graph.outputs[0].shape = None
    graph.inputs[0].shape = ir.Shape([batch, *spec.shape])
    fold_constants(normal)
    _dropouts_to_identities(graph)
    ir_passes.IdentityEliminationPass()(normal)
    if one_face:
        return fix_batch(normal, INPUT, OUTPUT)
    try:
        return free_batch(normal, INPUT, OUTPUT)
    except ModelError as error:
        if batch != 1:
            raise
        # A squeeze without axes also removes a batch of one; with two faces it does not.
        graph.inputs[0].shape = ir.Shape([2, *spec.shape])
        try:
            return free_batch(normal, INPUT, OUTPUT)
        except ModelError:
            raise error from None


def finish(model: ModelProto, spec: InputSpec) -> ModelProto:
    """Write fr-edge's versions, names and input contract, and infer the shapes.

    Args:
        model: A model in normal form.
        spec: The input contract.

    Returns:
        The final copy, whose weights are stored as raw bytes.

    Raises:
        ModelError: The ONNX checker does not accept the result.
    """
    final = helper.make_model(
        model.graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="fr-edge",
        producer_version=__version__,
    )
    helper.set_model_props(final, {CONTRACT_KEY: json.dumps(spec.to_json())})
    graph = final.graph
    graph.name = "face_embedding"
    for field in ("value_info", "metadata_props", "doc_string"):
        graph.ClearField(field)
    name_nodes(graph)
    for tensor in graph.initializer:
        if not tensor.raw_data:  # as lists of numbers they are larger, and slow to convert
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        # Exporters leave stack traces here, with paths of the machine they ran on.
        item.ClearField("doc_string")
        item.ClearField("metadata_props")
    try:
        final = onnx.shape_inference.infer_shapes(final, strict_mode=True, data_prop=True)
        onnx.checker.check_model(final, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"the network is not valid ONNX: {error}") from error
    return final


def _forget_shapes(graph: ir.Graph) -> None:
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = value.type = None


def fold_constants(model: ir.Model) -> None:
    """Compute what depends on no input, weights stored as integers or in half precision too.

    Args:
        model: Changed in place.
    """

    def is_computed(node: ir.Node) -> bool:
        return len(node.outputs) == 1 and not node.op_type.startswith(_RANDOM)

    try:
        fold_constants_ir(model, output_size_limit=_NO_LIMIT, should_fold=is_computed)
    except RuntimeError as error:  # the graph is as valid as before
        logger.warning("constants stay in the graph: %s", error)
    ir_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    ir_passes.RemoveUnusedNodesPass()(model)


def _repair_norms(model: ModelProto) -> None:
    """`spatial=0` (opsets up to 8) with a number per channel: MXNet writes it and means channels."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "BatchNormalization":
            continue
        for item in [item for item in node.attribute if item.name == "spatial" and not item.i]:
            scale = weights.get(node.input[1])
            if scale is not None and len(scale.dims) == 1:
                logger.info("%s normalizes per channel; its spatial=0 is dropped", node.name)
                node.attribute.remove(item)


def _shape_slopes(model: ModelProto) -> None:
    """PRelu slopes of images become `(C, 1, 1)`, in place; `(C)` is MXNet's, against the standard."""
    nodes = [node for node in model.graph.node if node.op_type == "PRelu"]
    if not nodes:
        return
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    slopes = {node.input[1]: weights[node.input[1]] for node in nodes if node.input[1] in weights}
    rank = _ranks_without(model, slopes)
    for node in nodes:
        slope = slopes.get(node.input[1])
        if slope is None or rank.get(node.input[0]) != 4:
            continue
        channels = max(slope.dims, default=1)
        if list(slope.dims) in ([channels], [1, channels, 1, 1]) and channels > 1:
            if len(slope.dims) == 1:
                logger.info("PRelu slope %s (%d) is taken per channel", slope.name, channels)
            array = numpy_helper.to_array(slope).reshape(channels, 1, 1)
            slope.CopyFrom(numpy_helper.from_array(array, slope.name))


def _ranks_without(model: ModelProto, slopes: Mapping[str, TensorProto]) -> dict[str, int]:
    """Ranks, as if each slope were one number: slopes that do not broadcast end the inference."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in slopes:
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(1, np.float32), tensor.name))
    return ranks(copy)


def _channels_first(graph: ir.Graph) -> None:
    """An image `(N, H, W, C)` becomes `(N, C, H, W)` with a Transpose behind it."""
    if len(graph.inputs) != 1:
        return
    face = graph.inputs[0]
    dims = list(face.shape or ())
    if len(dims) != 4 or dims[3] not in (1, 3) or dims[1] in (1, 3):
        return
    transpose = ir.node("Transpose", [face], {"perm": [0, 2, 3, 1]})
    transposed = transpose.outputs[0]
    transposed.name = f"{face.name}_channels_last"
    for reader, index in [(use.node, use.idx) for use in face.uses()]:
        if reader is not transpose:
            reader.replace_input_with(index, transposed)
    face.shape = ir.Shape([dims[0], dims[3], *dims[1:3]])
    graph.insert_before(graph[0], transpose)


def _dropouts_to_identities(graph: ir.Graph) -> None:
    """Dropout does nothing outside training."""
    for node in graph:
        if node.op_type != "Dropout":
            continue
        trains = len(node.inputs) > 2 and node.inputs[2] is not None
        if trains or any(mask.uses() or mask.is_graph_output() for mask in node.outputs[1:]):
            continue
        node.op_type = "Identity"
        node.attributes.clear()
        node.resize_inputs(1)
        node.resize_outputs(1)
