"""Brings a model to the opset that fr-edge writes, newer and older ones alike.

ONNX's own converter does the work. Where it gives up, operators that are newer than OPSET are
replaced by their definition, and operators that it merely has no adapter for (Split) are taken to
mean what they did; check.py measures whether that was right.
"""

import json
from collections.abc import Iterable
from math import prod

import numpy as np
import onnx
import onnx.version_converter
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from .._version import __version__
from ..errors import ModelError
from ..faces.contract import InputSpec
from ..graph.edit import (
    add_weight,
    all_nodes,
    dependent,
    fresh,
    initializers,
    makers,
    name_nodes,
    prune,
    ranks,
    reads,
    rename,
    sort_nodes,
    uses,
)
from ..graph.load import CONTRACT_KEY, image_input
from ..graph.run import run_constants, run_once

OPSET = 17

IR_VERSION = 8  # the newest that TensorRT 8.6's parser and old onnxruntimes read


def at_opset(model: ModelProto) -> ModelProto:
    """A copy at OPSET and IR_VERSION; raises ModelError when it cannot be brought there."""
    found = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = IR_VERSION
    del copy.opset_import[:]
    copy.opset_import.append(helper.make_opsetid("", found))
    if found == OPSET:
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
            f"the model has ONNX opset {found} and cannot be brought to {OPSET}: {error.message}",
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
    """Operators that OPSET does not know, as what their definition says (Gelu, for example)."""
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
        kept = [item for item in node.attribute if item.name != "num_outputs"]  # Split 18
        del node.attribute[:]
        node.attribute.extend(kept)
    try:
        onnx.checker.check_model(copy, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(str(error)) from error
    return copy


# Computes the constant parts of a graph: nodes that no input reaches become weights.
#
# That also unfolds weights stored quantised (blocks of integers behind DequantizeLinear) or in half
# precision behind Cast. onnxruntime does the arithmetic.

_RANDOM = ("Random", "Bernoulli", "Multinomial", "Dropout")


def fold_constants(model: ModelProto) -> None:
    """Replace constant nodes by weights, in place; leaves them where onnxruntime cannot run them.

    Nodes are in topological order.
    """
    graph = model.graph
    moving = {value.name for value in graph.input}
    still = GraphProto()
    rest = GraphProto(output=graph.output)
    for node in graph.node:
        random = any(n.op_type.startswith(_RANDOM) for n in all_nodes(GraphProto(node=[node])))
        if random or reads(node) & moving:
            moving.update(node.output)
            rest.node.append(node)
        else:
            still.node.append(node)
    made = {name for node in still.node for name in node.output if name}
    ends = sorted(made & set(uses(rest)))
    if not ends:
        return
    part = ModelProto()
    part.CopyFrom(model)
    for field in ("node", "input", "output", "value_info"):
        part.graph.ClearField(field)
    part.graph.node.extend(still.node)
    part.graph.output.extend(ValueInfoProto(name=name) for name in ends)
    prune(part.graph)
    try:
        arrays = run_constants(part.SerializeToString())
    except ModelError:
        return
    del graph.node[:]
    graph.node.extend(rest.node)
    graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in zip(ends, arrays, strict=True)
    )
    prune(graph)


# Makes a network take any number of faces when it was exported for one.
#
# Such graphs hold reshapes with the batch written into them, or compute their flatten from Shape and
# Gather. Shapes are observed, not computed: the network runs once, and a reshape that keeps the first
# dimension keeps it open from now on. check.py proves the result with other batches.

Shape = tuple[int, ...]


def free_batch(model: ModelProto) -> int:
    """Rewrite, in place, the reshapes that fix the batch; returns D, the embedding's size.

    The model has one input, of fixed shape, and one output. Raises ModelError when it does not run
    or its output is not one embedding per face (`(N, D)`; `(N, D, 1, 1)` and `(N, 1, D)` are flattened).
    """
    dims = model.graph.input[0].type.tensor_type.shape.dim
    try:
        return _freed(model)
    except ModelError as error:
        if dims[0].dim_value != 1:
            raise
        # A squeeze that names no axes takes a batch of one along; of two it shows which are meant.
        dims[0].dim_value = 2
        try:
            return _freed(model)
        except ModelError:
            raise error from None


def _freed(model: ModelProto) -> int:
    graph = model.graph
    face = graph.input[0]
    shape = tuple(dim.dim_value for dim in face.type.tensor_type.shape.dim)
    moving = dependent(graph, face.name)
    shapers = [
        node
        for node in graph.node
        if node.op_type in ("Reshape", "Flatten", "Squeeze") and node.input[0] in moving
    ]
    end = graph.output[0].name
    seen = _observe(model, shape, [n for s in shapers for n in (s.input[0], s.output[0])])
    for node in shapers:
        before, after = seen[node.input[0]], seen[node.output[0]]
        if before[:1] == after[:1] == shape[:1]:
            _open(graph, node, after)
    return _flat_output(graph, end, seen[end], shape[0])


def _open(graph: GraphProto, node: NodeProto, after: Shape) -> None:
    source, result = node.input[0], node.output[0]
    if len(after) == 2:
        other = helper.make_node("Flatten", [source], [result], node.name, axis=1)
    elif node.op_type == "Reshape":
        target = add_weight(graph, f"{result}_shape", np.array([-1, *after[1:]], np.int64))
        other = helper.make_node("Reshape", [source, target], [result], node.name)
    else:
        return
    node.CopyFrom(other)


def _flat_output(graph: GraphProto, end: str, shape: Shape, batch: int) -> int:
    if len(shape) > 2 and prod(shape[1:]) == max(shape[1:]):
        inner = fresh(graph, f"{end}_inner")
        makers(graph)[end].output[0] = inner
        graph.node.append(helper.make_node("Flatten", [inner], [end], axis=1))
        shape = (shape[0], max(shape[1:]))
    if len(shape) != 2 or shape[0] != batch or shape[1] < 2:
        raise ModelError(
            f"the network gives {'x'.join(map(str, shape)) or 'one number'} for {batch} face(s);"
            f" expected an embedding each, {batch}xD"
        )
    return shape[1]


def _observe(model: ModelProto, shape: Shape, names: list[str]) -> dict[str, Shape]:
    """Shapes of the named tensors and of the output, for an input of this shape."""
    probe = ModelProto()
    probe.CopyFrom(model)
    face, end = probe.graph.input[0].name, probe.graph.output[0].name
    for name in sorted(set(names) - {face, end}):
        probe.graph.output.append(ValueInfoProto(name=name))
    order = [output.name for output in probe.graph.output]
    arrays = run_once(probe.SerializeToString(), np.zeros(shape, np.float32))
    shapes = [tuple(array.shape) for array in arrays]
    return {face: shape, **dict(zip(order, shapes, strict=True))}


# Clears away what exporters leave in a graph, so that the rest reads one kind of model.
#
# Nothing here changes what the network computes; only the image's layout becomes channels first.


def tidy(model: ModelProto) -> ModelProto:
    """A copy with sorted nodes, constants folded, and the image `(N, 3, H, W)` as its one input.

    Inputs that nothing reads, and weights listed as inputs, are dropped; other inputs stay. Raises
    ModelError for a graph with a cycle.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    try:
        sort_nodes(graph)
    except ValueError as error:
        raise ModelError(f"the network is no valid ONNX: {error}") from error
    name_nodes(graph)
    # Shapes as the exporter saw them: for its one batch, and of slopes that change below.
    del graph.value_info[:]
    constants, read = initializers(graph), uses(graph)
    kept = [v for v in graph.input if v.name not in constants and read[v.name]]
    del graph.input[:]
    graph.input.extend(kept)
    fold_constants(copy)
    _shape_slopes(copy)
    _channels_first(copy)
    return copy


def _shape_slopes(model: ModelProto) -> None:
    """PRelu slopes of images become `(C, 1, 1)`: `(C)` is MXNet's, and against the standard."""
    graph = model.graph
    nodes = [node for node in graph.node if node.op_type == "PRelu"]
    if not nodes:
        return
    rank, constants = ranks(model), initializers(graph)
    for node in nodes:
        slope = constants.get(node.input[1])
        if slope is None or rank.get(node.input[0]) != 4:
            continue
        channels = max(slope.dims, default=1)
        if list(slope.dims) in ([channels], [1, channels, 1, 1]) and channels > 1:
            array = numpy_helper.to_array(slope).reshape(channels, 1, 1)
            slope.CopyFrom(numpy_helper.from_array(array, slope.name))


def _channels_first(model: ModelProto) -> None:
    graph = model.graph
    if len(graph.input) != 1:
        return
    face = graph.input[0]
    dims = face.type.tensor_type.shape.dim
    if len(dims) != 4 or dims[3].dim_value != 3 or dims[1].dim_value == 3:
        return
    batch, height, width = (dim.dim_value or dim.dim_param or None for dim in dims[:3])
    name = face.name
    inner = fresh(graph, f"{name}_channels_last")
    rename(graph, name, inner)
    face.CopyFrom(
        helper.make_tensor_value_info(
            name, face.type.tensor_type.elem_type, (batch, 3, height, width)
        )
    )
    graph.node.insert(0, helper.make_node("Transpose", [name], [inner], perm=(0, 2, 3, 1)))


# Brings a network into fr-edge's form: `face (batch, 3, H, W)` -> `embedding (batch, D)`, opset 17.
#
# `normal_form` is for any network that foreign.py has accepted; `finish` writes what the file says of
# itself. Whether the network still computes the same is not known here: check.py measures it.

INPUT, OUTPUT = "face", "embedding"


def normal_form(model: ModelProto, spec: InputSpec) -> ModelProto:
    """A copy in fr-edge's form of a model that tidy.py has seen.

    Raises ModelError when the network cannot be brought into it.
    """
    face = image_input(model)
    model = at_opset(model)
    graph = model.graph
    _name(graph, face.name, INPUT)
    _name(graph, graph.output[0].name, OUTPUT)
    # Shapes declared for one batch and one size are not to be believed any more.
    del graph.value_info[:]
    graph.output[0].CopyFrom(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, None))
    graph.input[0].CopyFrom(_value(INPUT, (face.batch or 1, *spec.shape)))
    fold_constants(model)
    _drop_identities(graph)
    dim = free_batch(model)
    graph.input[0].CopyFrom(_value(INPUT, ("batch", *spec.shape)))
    graph.output[0].CopyFrom(_value(OUTPUT, ("batch", dim)))
    prune(graph)
    return model


def finish(model: ModelProto, spec: InputSpec) -> ModelProto:
    """A copy with fr-edge's versions, names and contract, and shapes inferred anew.

    Raises ModelError when the ONNX checker does not accept the result.
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
        raise ModelError(f"the network is no valid ONNX: {error}") from error
    return final


def _name(graph: GraphProto, old: str, new: str) -> None:
    if old == new:
        return
    if new in uses(graph) or new in makers(graph):
        rename(graph, new, fresh(graph, f"{new}_inner"))
    rename(graph, old, new)


def _value(name: str, shape: Iterable[int | str]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, tuple(shape))


def _drop_identities(graph: GraphProto) -> None:
    """Identity, and Dropout, which does nothing outside training."""
    for node in list(graph.node):
        if node.op_type == "Dropout":
            trains = len(node.input) > 2 and node.input[2]
            if trains or any(uses(graph)[name] for name in node.output[1:]):
                continue
        elif node.op_type != "Identity":
            continue
        source, result = node.input[0], node.output[0]
        ends = {output.name for output in graph.output}
        if result not in ends:
            graph.node.remove(node)
            rename(graph, result, source)
        elif source in makers(graph) and source not in ends:
            graph.node.remove(node)
            rename(graph, source, result)
