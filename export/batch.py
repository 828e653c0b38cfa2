"""Lets a graph that was exported for a fixed number of faces take any number.

Exporters write the batch into reshapes, slices and constants. The network runs once at its own batch;
from the shapes seen, the place of the batch is followed from the image through every tensor (a window
partition puts it into a longer axis, a transpose moves it), and what depends on its size is rewritten.
"""

from collections.abc import Sequence
from math import prod

import numpy as np
from onnx import ValueInfoProto

from ..arrays import I64
from ..errors import ModelError
from ..graph.run import run_once
from .batch_place import (
    BROADCASTING,
    Place,
    Shape,
    TracedBatch,
    axes_of,
    follow,
    next_place,
)
from .graph_ir import add_constant, input_of, ir, to_proto

_END = np.iinfo(np.int64).max

_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def free_batch(model: ir.Model, face: str, embedding: str) -> int:
    """Rewrite, in place, what fixes the batch.

    Args:
        model: A model whose input has a fixed shape and whose constants are folded.
        face: Name of the input.
        embedding: Name of the output.

    Returns:
        D, the embedding's size.

    Raises:
        ModelError: The network does not run, or its output is not one embedding per face: `(N, D)`,
            or `(N, D, 1, 1)` and the like, which is flattened.
    """
    graph = model.graph
    moving = _dependents(graph, graph.inputs[0])
    shapes = _observe(model, moving, face, embedding)
    batch = TracedBatch(graph, shapes[face][0], shapes)
    batch.places[face] = Place(0, 1, 1)
    for node in list(graph):
        if not moving.isdisjoint(node.outputs):
            _rewrite(node, batch, moving)
            follow(node, batch, moving)
    return _flatten_output(graph, embedding, shapes[embedding], batch.size)


def fix_batch(model: ir.Model, face: str, embedding: str) -> int:
    """Leave a graph as it is for the number of faces that its input has.

    Args:
        model: A model whose input has a fixed shape and whose constants are folded.
        face: Name of the input.
        embedding: Name of the output, which is flattened in place where it is `(N, D, 1, 1)`.

    Returns:
        D, the embedding's size.

    Raises:
        ModelError: The network does not run, or its output is not one embedding per face.
    """
    shapes = _observe(model, set(), face, embedding)
    return _flatten_output(model.graph, embedding, shapes[embedding], shapes[face][0])


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


def _observe(model: ir.Model, values: set[ir.Value], face: str, embedding: str) -> dict[str, Shape]:
    """Tensor -> its shape in a run on zeros, of `values`, the input and the output."""
    probe = to_proto(model)
    shape = tuple(dim.dim_value for dim in probe.graph.input[0].type.tensor_type.shape.dim)
    names = dict.fromkeys(
        str(value.name) for node in model.graph for value in node.outputs if value in values
    )
    ends = [name for name in names if name not in (face, embedding)]
    # The shapes alone are taken out: the tensors themselves would all stay in memory.
    for name in ends:
        node = probe.graph.node.add(op_type="Shape", input=[name], output=[f"{name}#shape"])
        node.name = f"{name}#shape"
        probe.graph.output.append(ValueInfoProto(name=f"{name}#shape"))
    arrays = run_once(probe.SerializeToString(), np.zeros(shape, np.float32))
    return {
        face: shape,
        embedding: tuple(arrays[0].shape),
        **{name: tuple(map(int, array)) for name, array in zip(ends, arrays[1:], strict=True)},
    }


def _rewrite(node: ir.Node, batch: TracedBatch, moving: set[ir.Value]) -> None:
    """Let a node take any number of faces, in place."""
    match node.op_type:
        case kind if kind in _RESHAPES:
            _open_reshape(node, batch)
        case "Expand":
            _open_expand(node, batch)
        case "Slice":
            _open_slice(node, batch)
        case "Split":
            _open_split(node, batch)
        case "Resize":
            _open_resize(node, batch)
        case "Concat":
            _repeat_constants(node, batch, moving)
        case kind if kind in BROADCASTING:
            _repeat_constants(node, batch, moving)


def _open_reshape(node: ir.Node, batch: TracedBatch) -> None:
    place, output = batch.place_of(input_of(node)), node.outputs[0]
    if place is None:
        return
    before, after = (batch.shape_of(value) for value in (input_of(node), output))
    target = next_place(node, output, batch)
    if len(after) == 2 and place == target == Place(0, 1, 1):
        node.op_type = "Flatten"
        node.attributes.clear()
        node.attributes.add(ir.AttrInt64("axis", 1))
        node.resize_inputs(1)
    elif node.op_type == "Squeeze" and axes_of(node) is None:
        gone = [a for a, size in enumerate(before) if size == 1 and a != place.axis]
        if len(before) - len(gone) == len(after):
            axes = add_constant(batch.graph, f"{output.name}_axes", np.array(gone, np.int64))
            node.resize_inputs(2)
            node.replace_input_with(1, axes)
    elif node.op_type == "Reshape" and target is not None:
        sizes = np.array(after, np.int64)
        sizes[target.axis] = -1
        node.attributes.clear()
        node.replace_input_with(1, add_constant(batch.graph, f"{output.name}_shape", sizes))


def _open_expand(node: ir.Node, batch: TracedBatch) -> None:
    """A size of 1 keeps the batch that the tensor has."""
    output = node.outputs[0]
    before = batch.shape_of(input_of(node))
    after = batch.shapes[str(output.name)]
    place = batch.place_of(input_of(node))
    if place is None:
        return
    sizes = np.array(after, np.int64)
    axis = place.axis + len(after) - len(before)
    if sizes[axis] == before[place.axis]:
        sizes[axis] = 1
        node.replace_input_with(1, add_constant(batch.graph, f"{output.name}_shape", sizes))


def _open_slice(node: ir.Node, batch: TracedBatch) -> None:
    """Bounds along the batch are multiples of it: the first and the second half of two views."""
    value = input_of(node)
    place = batch.place_of(value)
    if place is None:
        return
    before, output = batch.shape_of(value), node.outputs[0]
    bounds = [_numbers(node, index) for index in (1, 2)]
    axes = _numbers(node, 3)
    starts, ends = bounds
    if starts is None or ends is None:
        return
    axes = list(range(len(starts))) if axes is None else [a % len(before) for a in axes]
    steps = _numbers(node, 4) or [1] * len(starts)
    if place.axis not in axes:
        return
    index, length = axes.index(place.axis), before[place.axis]
    start, end = (_clamp(values[index], length) for values in (starts, ends))
    unit = batch.size * place.inner
    if steps[index] != 1 or start % unit or end % unit:
        raise ModelError(f"{node.name} takes some of the faces of a batch apart")
    if (start, end) == (0, length):
        ends[index] = _END
        node.replace_input_with(
            2, add_constant(batch.graph, f"{output.name}_ends", np.array(ends, np.int64))
        )
        return
    for place_in, values, bound in ((1, starts, start), (2, ends, end)):
        factor = np.zeros(len(values), np.int64)
        factor[index] = bound // batch.size
        rest = np.array(values, np.int64)
        rest[index] = 0
        node.replace_input_with(place_in, _linear(node, batch, factor, rest, place_in))


def _linear(node: ir.Node, batch: TracedBatch, factor: I64, rest: I64, label: int) -> ir.Value:
    """`factor * number of faces + rest`."""
    name = f"{node.outputs[0].name}_bound{label}"
    by = add_constant(batch.graph, f"{name}_factor", factor)
    product = ir.node("Mul", [batch.count(node), by])
    product.outputs[0].name = f"{name}_product"
    plus = add_constant(batch.graph, f"{name}_rest", rest)
    total = ir.node("Add", [product.outputs[0], plus])
    total.outputs[0].name = name
    batch.graph.insert_before(node, [product, total])
    return total.outputs[0]


def _clamp(bound: int, length: int) -> int:
    return max(0, min(bound + length if bound < 0 else bound, length))


def _numbers(node: ir.Node, index: int) -> list[int] | None:
    """The integers of an input that is a constant."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.const_value is None:
        return None
    return [int(number) for number in value.const_value.numpy().reshape(-1)]


def _open_split(node: ir.Node, batch: TracedBatch) -> None:
    """Equal parts of the batch need no sizes."""
    value = input_of(node)
    place = batch.place_of(value)
    if place is None:
        return
    rank = len(batch.shape_of(value))
    if node.attributes.get_int("axis", 0) % rank != place.axis:
        return
    sizes = _numbers(node, 1)
    if sizes is not None and len(set(sizes)) == 1 and not sizes[0] % (batch.size * place.inner):
        node.resize_inputs(1)
    elif sizes is not None:
        raise ModelError(f"{node.name} splits a batch into unequal parts")


def _open_resize(node: ir.Node, batch: TracedBatch) -> None:
    """Sizes as scales: those also hold the batch."""
    value = input_of(node)
    sizes = _numbers(node, 3)
    before = batch.shape_of(value)
    if sizes is None or batch.place_of(value) is None or len(sizes) != len(before):
        return
    scales = np.array([after / size for after, size in zip(sizes, before, strict=True)], np.float32)
    name = f"{node.outputs[0].name}_scales"
    node.resize_inputs(3)
    node.replace_input_with(2, add_constant(batch.graph, name, scales))


def _repeat_constants(node: ir.Node, batch: TracedBatch, moving: set[ir.Value]) -> None:
    """Constants with a row for each face (a class token, a mask of all windows) follow the batch."""
    after = batch.shapes[str(node.outputs[0].name)]
    place = next_place(node, node.outputs[0], batch)
    if place is None:
        return
    joined = None
    if node.op_type == "Concat":
        joined = node.attributes.get_int("axis", 0) % len(after)
    for index, value in enumerate(node.inputs):
        if value is None or value in moving or value.const_value is None:
            continue
        shape = batch.shape_of(value)
        axis = place.axis - (len(after) - len(shape))
        if axis < 0 or axis == joined or (joined is None and shape[axis] == 1):
            continue
        if shape[axis] == after[place.axis]:
            node.replace_input_with(index, _repeated(node, value, axis, place, batch))


def _repeated(
    node: ir.Node, value: ir.Value, axis: int, place: Place, batch: TracedBatch
) -> ir.Value:
    """A constant whose rows along the batch are equal, as many times as there are faces."""
    tensor = value.const_value
    assert tensor is not None
    array = tensor.numpy()
    split = (*array.shape[:axis], place.outer, batch.size, place.inner, *array.shape[axis + 1 :])
    rows = array.reshape(split)
    first = np.take(rows, [0], axis=axis + 1)
    if not np.array_equal(rows, np.broadcast_to(first, split)):
        raise ModelError(f"{node.name} treats the faces of a batch differently")
    graph, name = batch.graph, f"{node.outputs[0].name}_{value.name}"
    source = add_constant(graph, f"{name}_row", np.ascontiguousarray(first))
    sizes = np.ones(len(split), np.int64)
    head = add_constant(graph, f"{name}_head", sizes[: axis + 1])
    tail = add_constant(graph, f"{name}_tail", sizes[axis + 2 :])
    shape = ir.node("Concat", [head, batch.count(node), tail], {"axis": 0})
    expand = ir.node("Expand", [source, shape.outputs[0]])
    whole = np.array([*array.shape[:axis], -1, *array.shape[axis + 1 :]], np.int64)
    target = add_constant(graph, f"{name}_shape", whole)
    reshape = ir.node("Reshape", [expand.outputs[0], target])
    for part, label in ((shape, "sizes"), (expand, "rows"), (reshape, "repeated")):
        part.outputs[0].name = f"{name}_{label}"
    graph.insert_before(node, [shape, expand, reshape])
    return reshape.outputs[0]


def _flatten_output(graph: ir.Graph, embedding: str, shape: Sequence[int], batch: int) -> int:
    """D of an output `(N, D)`; one of `(N, D, 1, 1)` or the like is flattened in place."""
    if len(shape) > 2 and prod(shape[1:]) == max(shape[1:]):
        end = graph.outputs[0]
        flatten = ir.node("Flatten", [end], {"axis": 1})
        graph.append(flatten)
        graph.outputs[0] = flatten.outputs[0]
        end.name, graph.outputs[0].name = f"{embedding}_inner", embedding
        shape = (shape[0], max(shape[1:]))
    if len(shape) != 2 or shape[0] != batch or shape[1] < 2:
        raise ModelError(
            f"the network gives {'x'.join(map(str, shape)) or 'one number'} for {batch} face(s);"
            f" expected an embedding each, {batch}xD"
        )
    return shape[1]
