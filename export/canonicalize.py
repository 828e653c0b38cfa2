"""Brings a network into fr-edge's form: `face (batch, 3, H, W)` -> `embedding (batch, D)`, opset 17.

`tidy` removes what exporters leave in a graph, `normal_form` sets names, opset and a free batch,
`finish` writes versions and the input contract. None of them measures whether the network still
computes the same: `parity` does.
"""

import json
import logging
from collections.abc import Sequence
from math import prod

import numpy as np
import onnx
from onnx import ModelProto, ValueInfoProto, helper, numpy_helper

from .._version import __version__
from ..errors import ModelError
from ..faces.contract import InputSpec
from ..graph.edit import name_nodes
from ..graph.load import CONTRACT_KEY, image_input
from ..graph.run import run_once
from ..graph.shapes import ranks
from .graph_ir import (
    IR_VERSION,
    OPSET,
    add_constant,
    at_opset,
    fold_constants_ir,
    input_of,
    ir,
    ir_passes,
    to_ir,
    to_proto,
)

logger = logging.getLogger(__name__)

INPUT, OUTPUT = "face", "embedding"

_RANDOM = ("Random", "Bernoulli", "Multinomial", "Dropout")  # prefixes of operators

_NO_LIMIT = 1 << 62  # numbers in a constant

Shape = tuple[int, ...]


def tidy(model: ModelProto) -> ModelProto:
    """Remove what exporters leave in a graph, so that the rest reads one kind of model.

    What the network computes stays the same; only the image's layout becomes channels first.

    Args:
        model: A model as `onnx_file.read_onnx` gives it.

    Returns:
        A copy with sorted nodes, constants computed, PRelu slopes `(C, 1, 1)` and the image
        `(N, 3, H, W)`. Weights listed as inputs and inputs that nothing reads are dropped.

    Raises:
        ModelError: The graph has a cycle or is not valid otherwise.
    """
    tidied = to_ir(model)
    graph = tidied.graph
    try:
        graph.sort()
    except ValueError as error:
        raise ModelError(
            f"the network is not valid ONNX, its graph has a cycle: {error}"
        ) from error
    ir_passes.RemoveInitializersFromInputsPass()(tidied)
    for value in [value for value in graph.inputs if not value.uses()]:
        if not value.is_graph_output():
            graph.inputs.remove(value)
    _forget_shapes(graph)
    _fold_constants(tidied)
    _channels_first(graph)
    result = to_proto(tidied)
    _shape_slopes(result)
    return result


def normal_form(model: ModelProto, spec: InputSpec) -> ModelProto:
    """Bring a network to fr-edge's names and opset, and let it take any number of faces.

    Args:
        model: A model from `tidy`.
        spec: The input contract; its size becomes the input's.

    Returns:
        A copy with input `face (batch, 3, H, W)` and output `embedding (batch, D)`.

    Raises:
        ModelError: The model is not a float32 network from one image to one embedding, or cannot
            be brought to opset 17.
    """
    face = image_input(model)
    normal = to_ir(at_opset(model))
    graph = normal.graph
    graph.inputs[0].name, graph.outputs[0].name = INPUT, OUTPUT
    # Declared shapes hold for one batch and one size.
    _forget_shapes(graph)
    graph.outputs[0].shape = None
    graph.inputs[0].shape = ir.Shape([face.batch or 1, *spec.shape])
    _fold_constants(normal)
    _dropouts_to_identities(graph)
    ir_passes.IdentityEliminationPass()(normal)
    dim = _free_batch(normal)
    graph.inputs[0].shape = ir.Shape(["batch", *spec.shape])
    graph.outputs[0].shape = ir.Shape(["batch", dim])
    graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    ir_passes.RemoveUnusedNodesPass()(normal)
    return to_proto(normal)


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


def _fold_constants(model: ir.Model) -> None:
    """Compute what depends on no input, weights stored as integers or in half precision too."""

    def is_computed(node: ir.Node) -> bool:
        return len(node.outputs) == 1 and not node.op_type.startswith(_RANDOM)

    try:
        fold_constants_ir(model, output_size_limit=_NO_LIMIT, should_fold=is_computed)
    except RuntimeError as error:  # the graph is as valid as before
        logger.warning("constants stay in the graph: %s", error)
    ir_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    ir_passes.RemoveUnusedNodesPass()(model)


def _shape_slopes(model: ModelProto) -> None:
    """PRelu slopes of images become `(C, 1, 1)`, in place; `(C)` is MXNet's, against the standard."""
    nodes = [node for node in model.graph.node if node.op_type == "PRelu"]
    if not nodes:
        return
    rank, weights = ranks(model), {tensor.name: tensor for tensor in model.graph.initializer}
    for node in nodes:
        slope = weights.get(node.input[1])
        if slope is None or rank.get(node.input[0]) != 4:
            continue
        channels = max(slope.dims, default=1)
        if list(slope.dims) in ([channels], [1, channels, 1, 1]) and channels > 1:
            array = numpy_helper.to_array(slope).reshape(channels, 1, 1)
            slope.CopyFrom(numpy_helper.from_array(array, slope.name))


def _channels_first(graph: ir.Graph) -> None:
    """An image `(N, H, W, 3)` becomes `(N, 3, H, W)` with a Transpose behind it."""
    if len(graph.inputs) != 1:
        return
    face = graph.inputs[0]
    dims = list(face.shape or ())
    if len(dims) != 4 or dims[3] != 3 or dims[1] == 3:
        return
    transpose = ir.node("Transpose", [face], {"perm": [0, 2, 3, 1]})
    transposed = transpose.outputs[0]
    transposed.name = f"{face.name}_channels_last"
    for reader, index in [(use.node, use.idx) for use in face.uses()]:
        if reader is not transpose:
            reader.replace_input_with(index, transposed)
    face.shape = ir.Shape([dims[0], 3, *dims[1:3]])
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


def _free_batch(model: ir.Model) -> int:
    """Rewrite, in place, the reshapes that fix the batch; returns D, the embedding's size.

    Exporters write the batch into reshapes, or compute their flatten from Shape and Gather. The
    shapes are observed in a run: a reshape that keeps the first dimension keeps it open from now
    on. The input has a fixed shape. Raises ModelError when the network does not run or its output
    is not one embedding per face (`(N, D)`; `(N, D, 1, 1)` and `(N, 1, D)` are flattened).
    """
    face = model.graph.inputs[0]
    try:
        return _open_reshapes(model)
    except ModelError as error:
        if face.shape is None or face.shape[0] != 1:
            raise
        # A squeeze without axes also removes a batch of one; with two faces it does not.
        face.shape = ir.Shape([2, *face.shape[1:]])
        try:
            return _open_reshapes(model)
        except ModelError:
            raise error from None


def _open_reshapes(model: ir.Model) -> int:
    graph = model.graph
    moving = _dependents(graph, graph.inputs[0])
    reshapes = [
        node
        for node in graph
        if node.op_type in ("Reshape", "Flatten", "Squeeze") and input_of(node) in moving
    ]
    shapes = _observe(model, [value for n in reshapes for value in (input_of(n), n.outputs[0])])
    batch = shapes[INPUT][0]
    for node in reshapes:
        before, after = (shapes[str(v.name)] for v in (input_of(node), node.outputs[0]))
        if before[:1] == after[:1] == (batch,):
            _keep_batch(graph, node, after)
    return _flatten_output(graph, shapes[OUTPUT], batch)


def _dependents(graph: ir.Graph, root: ir.Value) -> set[ir.Value]:
    """The tensors that depend on `root`; nodes are sorted."""
    dependents = {root}
    for node in graph:
        if not dependents.isdisjoint(_reads(node)):
            dependents.update(node.outputs)
    return dependents


def _reads(node: ir.Node) -> set[ir.Value | None]:
    """The tensors that a node needs, those that the bodies of If, Loop and Scan take too."""
    reads = set(node.inputs)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            body = attribute.as_graph()
            reads.update(body.outputs)
            for inner in body.all_nodes():
                reads.update(inner.inputs)
    return reads


def _observe(model: ir.Model, values: Sequence[ir.Value]) -> dict[str, Shape]:
    """Tensor -> its shape in a run on zeros, of `values`, the input and the output."""
    probe = to_proto(model)
    shape = tuple(dim.dim_value for dim in probe.graph.input[0].type.tensor_type.shape.dim)
    names = dict.fromkeys(str(value.name) for value in values)
    for name in names.keys() - {INPUT, OUTPUT}:
        probe.graph.output.append(ValueInfoProto(name=name))
    arrays = run_once(probe.SerializeToString(), np.zeros(shape, np.float32))
    order = [output.name for output in probe.graph.output]
    return {INPUT: shape, **{n: tuple(a.shape) for n, a in zip(order, arrays, strict=True)}}


def _keep_batch(graph: ir.Graph, node: ir.Node, shape: Shape) -> None:
    """Let a reshape to `shape` take any number of faces, in place."""
    if len(shape) == 2:
        node.op_type = "Flatten"
        node.attributes.clear()
        node.attributes.add(ir.AttrInt64("axis", 1))
        node.resize_inputs(1)
    elif node.op_type == "Reshape":
        node.attributes.clear()
        target = np.array([-1, *shape[1:]], np.int64)
        node.replace_input_with(1, add_constant(graph, f"{node.outputs[0].name}_shape", target))


def _flatten_output(graph: ir.Graph, shape: Shape, batch: int) -> int:
    """D of an output `(N, D)`; one of `(N, D, 1, 1)` or the like is flattened in place."""
    if len(shape) > 2 and prod(shape[1:]) == max(shape[1:]):
        end = graph.outputs[0]
        flatten = ir.node("Flatten", [end], {"axis": 1})
        graph.append(flatten)
        graph.outputs[0] = flatten.outputs[0]
        end.name, graph.outputs[0].name = f"{OUTPUT}_inner", OUTPUT
        shape = (shape[0], max(shape[1:]))
    if len(shape) != 2 or shape[0] != batch or shape[1] < 2:
        raise ModelError(
            f"the network gives {'x'.join(map(str, shape)) or 'one number'} for {batch} face(s);"
            f" expected an embedding each, {batch}xD"
        )
    return shape[1]
