"""Makes a network take any number of faces when it was exported for one.

Such graphs hold reshapes with the batch written into them, or compute their flatten from Shape and
Gather. Shapes are observed, not computed: the network runs once, and a reshape that keeps the first
dimension keeps it open from now on. check.py proves the result with other batches.
"""

from math import prod

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, helper

from ..errors import ModelError
from .graph import add_weight, dependent, fresh, makers
from .reference import run_once

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
