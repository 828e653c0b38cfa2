"""Where the batch lies in each tensor of a graph, followed from the image.

A reshape keeps the order of the numbers in memory, a transpose moves axes, a window partition puts the
batch into a longer axis, two views that are joined double it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from .graph_ir import add_constant, ir

Shape = tuple[int, ...]

BROADCASTING = (
    *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mean", "Sum", "PRelu", "Where", "Mod"),
    *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor", "MatMul"),
)


@dataclass(frozen=True)
class Place:
    """Where the batch lies in a tensor: `shape[axis] == outer * batch * inner`.

    Attributes:
        axis: The axis that holds it.
        outer: Size of what varies more slowly within the axis: 2 where two views were joined.
        inner: Size of what varies faster: the number of windows that a face was cut into.
    """

    axis: int
    outer: int
    inner: int


class TracedBatch:
    """A graph with what was observed in one run.

    Attributes:
        graph: The graph; its nodes are sorted.
        size: Faces in that run.
        shapes: Tensor name -> shape, of all that depends on the image.
        places: Tensor name -> where its batch lies, as far as it can be followed.
    """

    def __init__(self, graph: ir.Graph, size: int, shapes: Mapping[str, Shape]) -> None:
        self.graph, self.size, self.shapes = graph, size, shapes
        self.places: dict[str, Place] = {}
        self._count: ir.Value | None = None

    def place_of(self, value: ir.Value | None) -> Place | None:
        return self.places.get(str(value.name)) if value is not None else None

    def shape_of(self, value: ir.Value) -> Shape:
        if str(value.name) in self.shapes:
            return self.shapes[str(value.name)]
        tensor = value.const_value
        return tuple(tensor.shape.numpy()) if tensor is not None else ()

    def place(self, shape: Shape, axis: int, outer: int) -> Place | None:
        """The place at an axis, if the axis is long enough for it."""
        if not 0 <= axis < len(shape) or shape[axis] % (outer * self.size):
            return None
        return Place(axis, outer, shape[axis] // (outer * self.size))

    def count(self, before: ir.Node) -> ir.Value:
        """The number of faces as a tensor `(1,)`, computed from the image."""
        if self._count is None:
            face = self.graph.inputs[0]
            shape = ir.node("Shape", [face])
            first = add_constant(self.graph, "batch_index", np.zeros(1, np.int64))
            gather = ir.node("Gather", [shape.outputs[0], first], {"axis": 0})
            shape.outputs[0].name, gather.outputs[0].name = "face_shape", "batch_size"
            self.graph.insert_before(self.graph[0], [shape, gather])
            self._count = gather.outputs[0]
        return self._count


def follow(node: ir.Node, batch: TracedBatch, moving: set[ir.Value]) -> None:
    """Note where the batch lies in what a node makes.

    Args:
        node: The node; the places of what it reads are noted.
        batch: The graph and its places; changed in place.
        moving: The tensors that depend on the image.
    """
    for value in node.outputs:
        if value in moving and str(value.name) in batch.shapes:
            place = next_place(node, value, batch)
            if place is not None:
                batch.places[str(value.name)] = place


def next_place(node: ir.Node, output: ir.Value, batch: TracedBatch) -> Place | None:
    """Work out where the batch lies in what a node makes.

    Args:
        node: The node.
        output: One of its outputs, whose shape was observed.
        batch: The graph and the places of what the node reads.

    Returns:
        The place; None where it cannot be followed.
    """
    after = batch.shapes[str(output.name)]
    for value in node.inputs:
        place = batch.place_of(value)
        if value is None or place is None:
            continue
        before = batch.shape_of(value)
        axis, outer = place.axis, place.outer
        match node.op_type:
            case "Reshape" | "Flatten":
                return _place_in_memory(before, place, after, batch)
            case "Squeeze" | "Unsqueeze":
                result = _place_by_axes(node, before, axis, after)
                return batch.place(after, result, outer) if result is not None else None
            case "Transpose":
                order = node.attributes.get_ints("perm") or list(reversed(range(len(before))))
                return batch.place(after, list(order).index(axis), outer)
            case "Gather":
                chosen = node.attributes.get_int("axis", 0) % len(before)
                if chosen == axis:
                    return None
                shift = len(after) - len(before) if axis > chosen else 0
                return batch.place(after, axis + shift, outer)
            case "Concat":
                joined = node.attributes.get_int("axis", 0) % len(before)
                if joined == axis:
                    outer = after[axis] // (batch.size * place.inner)
            case "Slice" | "Split":
                if before[axis] != after[axis] and place.inner * batch.size:
                    outer = after[axis] // (batch.size * place.inner)
            case "Einsum":
                return _einsum_place(node, value, axis, outer, after, batch)
            case kind if kind.startswith(("Reduce", "Arg")) and len(after) < len(before):
                removed = _reduced_axes(node, len(before))
                if axis in removed:
                    return None
                axis -= sum(other < axis for other in removed)
                return batch.place(after, axis, outer)
        if len(after) < len(before) and node.op_type not in BROADCASTING:
            return None
        aligned = axis + (len(after) - len(before) if node.op_type in BROADCASTING else 0)
        if (place := batch.place(after, aligned, outer or 1)) is not None:
            return place
    return None


def _place_in_memory(before: Shape, place: Place, after: Shape, batch: TracedBatch) -> Place | None:
    """The place after a reshape, which keeps the order of the numbers in memory."""
    slower = prod(before[: place.axis]) * place.outer
    candidates = []
    for axis in range(len(after)):
        outer, rest = divmod(slower, prod(after[:axis]))
        if not rest and outer and (result := batch.place(after, axis, outer)) is not None:
            candidates.append(result)
    # Where the batch is 1 several axes fit: the one that begins with it is meant, and not the last,
    # where the features are.
    last = len(after) - 1
    return min(candidates, key=lambda c: (c.axis == last, c.outer != 1, c.axis), default=None)


def _place_by_axes(node: ir.Node, before: Shape, axis: int, after: Shape) -> int | None:
    """The axis of the batch after a Squeeze or Unsqueeze; None where it is squeezed away."""
    axes = axes_of(node)
    if node.op_type == "Unsqueeze":
        new = {a % len(after) for a in axes or ()}
        return [a for a in range(len(after)) if a not in new][axis]
    gone = {a % len(before) for a in axes} if axes is not None else None
    if gone is None:
        gone = {a for a, size in enumerate(before) if size == 1 and a != axis}
    if axis in gone or len(before) - len(gone) != len(after):
        return None
    return axis - sum(other < axis for other in gone)


def axes_of(node: ir.Node) -> list[int] | None:
    """Give the axes of a Squeeze, Unsqueeze or reduction, from its input or attribute.

    Args:
        node: The node.

    Returns:
        The axes as they are written, negative ones too; None where none are given.
    """
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        tensor = node.inputs[1].const_value
        return [int(a) for a in tensor.numpy().reshape(-1)] if tensor is not None else None
    axes = node.attributes.get_ints("axes")
    return list(axes) if axes else None


def _reduced_axes(node: ir.Node, rank: int) -> set[int]:
    if node.op_type.startswith("Arg"):
        return {node.attributes.get_int("axis", 0) % rank}
    return {axis % rank for axis in axes_of(node) or range(rank)}


def _einsum_place(
    node: ir.Node, value: ir.Value, axis: int, outer: int, after: Shape, batch: TracedBatch
) -> Place | None:
    """The place of the batch's letter."""
    equation = (node.attributes.get_string("equation") or "").replace(" ", "")
    terms, _, result = equation.partition("->")
    term = terms.split(",")[list(node.inputs).index(value)]
    if "." in equation or axis >= len(term) or term[axis] not in result:
        return None
    return batch.place(after, result.index(term[axis]), outer)
