"""Which tensors can have their channels scaled, and which of them must share one scale.

Dividing channel c of a tensor by s[c] leaves the network's output unchanged where the constants
around it take the scale: what makes the tensor is divided by s, what reads it multiplied.

- Convolutions, matrix products and BatchNormalization take a scale on either side.
- LayerNormalization and InstanceNormalization take that of their output into gamma and beta
  (G. Xiao et al., SmoothQuant, 2023, arXiv 2211.10438); their input cannot be scaled.
- A product with a constant takes both scales into the constant: gamma of a normalization that is
  written out, LayerScale, the one half of GELU, the sixth of hard-swish.
- ReLU, PReLU, pooling, transposition, additions and products with a gate that has no scale of its own
  (squeeze-excite) pass the scale on.
- A concatenation of channels has the scales of its parts, one behind the other (Ghost modules,
  Inception).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from ..graph.edit import attribute, only_read_by
from ..graph.layers import Int8Choice
from ..graph.shapes import tensor_types

_BY_CHANNEL = ("BatchNormalization", "InstanceNormalization")
_PASSING = ("PRelu", "Relu", "LeakyRelu")
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool")
_SUMS = ("Add", "Sub")
_ACTIVATIONS = ("Mul", "HardSwish", "Gelu", "Reshape")  # SiLU, gates; attention ends in a Reshape


@dataclass(frozen=True)
class ChannelAxis:
    """Where the channels of a tensor lie.

    Attributes:
        count: How many there are.
        trailing: Number of axes behind that of the channels: 2 of `(N, C, H, W)`, 0 of
            `(N, T, C)`.
        flattened: Each channel is a run of columns, behind a Flatten.
    """

    count: int
    trailing: int
    flattened: bool = False

    def factor_shape(self) -> tuple[int, ...]:
        """The shape of one number per channel that multiplies the tensor."""
        return (-1, *[1] * self.trailing)


@dataclass(frozen=True)
class ScalePart:
    """Where the channels of a group of tensors lie among those of another group.

    Attributes:
        whole: Name of the other group.
        first: Index of the first channel.
        count: Number of channels.
    """

    whole: str
    first: int
    count: int


def scale_groups(model: onnx.ModelProto) -> dict[str, str]:
    """Which tensors must share one scale per channel.

    Args:
        model: A float model whose nodes are named.

    Returns:
        Tensor -> the name of its group. Tensors that cannot be scaled (the input, the embedding,
        inputs and outputs of other operators) are absent.
    """
    return _Groups(model).tensors()


def scale_parts(model: onnx.ModelProto) -> dict[str, ScalePart]:
    """Which groups of `scale_groups` are a run of another one's channels, by a concatenation.

    Args:
        model: A float model whose nodes are named.

    Returns:
        Name of a group -> its place.
    """
    groups = _Groups(model)
    scaled = set(groups.tensors().values())
    return {group: part for group, part in groups.parts()[0].items() if group in scaled}


def channel_axes(model: onnx.ModelProto) -> dict[str, ChannelAxis]:
    """Where the channels of the tensors of `scale_groups` lie.

    Args:
        model: A float model whose nodes are named.

    Returns:
        Tensor -> its channels.
    """
    groups = _Groups(model)
    return {tensor: groups.axes[tensor] for tensor in groups.tensors()}


def separate_tensors(model: onnx.ModelProto, choice: Int8Choice) -> list[str]:
    """Tensors that no constant can scale, but a product of their own can.

    Those are what an activation, a gate or attention makes for INT8 layers alone, as behind SiLU.

    Args:
        model: A float model whose nodes are named.
        choice: Which of its layers become INT8.
    """
    groups = scale_groups(model)
    made = {
        name
        for node in model.graph.node
        for name in node.output
        if node.op_type in _ACTIVATIONS and name not in groups
    }
    return [
        tensor
        for tensor in choice.tensors
        if tensor in made and only_read_by(model.graph, tensor, choice.int8)
    ]


def product_constant(node: NodeProto, constants: Mapping[str, object]) -> int | None:
    """Which input of a product or sum with a constant is the constant.

    Args:
        node: Any node.
        constants: The graph's constants by name.

    Returns:
        Its index; None for other nodes, and for a constant that is divided.
    """
    if node.op_type not in (*_SUMS, "Mul", "Div"):
        return None
    indices = [i for i, name in enumerate(node.input) if name in constants]
    if len(indices) != 1 or (node.op_type == "Div" and indices != [1]):
        return None
    return indices[0]


class _Groups:
    """Union of tensors that share a scale, in graph order; `fixed` ones have none."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.parent: dict[str, str] = {}
        self.axes: dict[str, ChannelAxis] = {}
        self.placed: list[tuple[str, ScalePart]] = []  # tensors and their place in another tensor
        self.fixed = {value.name for value in (*graph.input, *graph.output)}
        self.order = {name: i for i, node in enumerate(graph.node) for name in node.output}
        self.shapes = _shapes(model)
        products = []
        for node in graph.node:
            data = [name for name in node.input if name and name not in self.constants]
            if node.op_type == "Mul" and len(data) == 2 and data[0] != data[1]:
                # Until the fixed tensors are known, its output only has its channels' place.
                earlier = min(data, key=lambda name: self.order.get(name, -1))
                if earlier in self.axes:
                    self.axes[node.output[0]] = self.axes[earlier]
                products.append((node.output[0], data))
            elif not self._passes(node, data):
                self.fixed.update((*data, *node.output))
        for result, data in products:
            self._gate(result, data)

    def tensors(self) -> dict[str, str]:
        """Tensor -> the name of its group, without fixed ones."""
        roots = {self.find(name) for name in self.fixed}
        places, clashing = self.parts()
        roots |= clashing
        changed = True
        while changed:  # a group has a scale where what it is a part of has one, and all parts have
            pairs = [(group, place.whole) for group, place in places.items()]
            more = {group for pair in pairs if not roots.isdisjoint(pair) for group in pair}
            changed = not more <= roots
            roots |= more
        groups = {name: self.find(name) for name in self.axes}
        return {name: root for name, root in groups.items() if root not in roots}

    def parts(self) -> tuple[dict[str, ScalePart], set[str]]:
        """The place of each group that is a part of another; and groups that cannot have a scale,
        because one of them has several places.
        """
        places: dict[str, ScalePart] = {}
        clashing = set[str]()
        for tensor, part in self.placed:
            group, place = self.find(tensor), replace(part, whole=self.find(part.whole))
            if places.setdefault(group, place) != place:
                clashing |= {group, place.whole}
        return places, clashing

    def find(self, name: str) -> str:
        """The name of a tensor's group."""
        while self.parent.setdefault(name, name) != name:
            name = self.parent[name]
        return name

    def _join(self, result: str, source: str, axis: ChannelAxis | None = None) -> bool:
        """Give a tensor the scale of another one; False where that has no known channels."""
        if source not in self.axes:
            return False
        self.axes[result] = axis or self.axes[source]
        self.parent[self.find(result)] = self.find(source)
        return True

    def _gate(self, result: str, data: list[str]) -> None:
        """A product of two tensors: its scale is that of one of them, if the other has none."""
        roots = {self.find(name) for name in self.fixed}
        free = [name for name in data if self.find(name) not in roots and name in self.axes]
        # Of two that could be scaled, the later one is the gate, made from the other.
        source = min(free, key=lambda name: self.order[name], default="")
        self.fixed.update(name for name in data if name != source)
        same = source and self.axes.get(result, self.axes[source]) == self.axes[source]
        if not (same and self._join(result, source)):
            self.fixed.update((result, *data))

    def _passes(self, node: NodeProto, data: list[str]) -> bool:
        """Handle a node that takes a scale or passes it on; False for others."""
        op, results = node.op_type, list(node.output)
        if len(results) != 1 or not data:
            return False
        result, axis = results[0], self.axes.get(data[0])
        if op in ("Conv", "Gemm", "MatMul", "LayerNormalization", *_BY_CHANNEL):
            return data == [node.input[0]] and self._absorbs(node, axis)
        if op in _PASSING and len(data) == 1:
            return self._join(result, data[0])
        if op in (*_POOLS, "Flatten") and not self._channels_second(data[0], axis):
            return False
        if op in _POOLS:
            return self._join(result, data[0])
        if op == "Flatten" and axis is not None and attribute(node, "axis", 1) == 1:
            return self._join(result, data[0], ChannelAxis(axis.count, 0, flattened=True))
        if op in ("ReduceMean", "Squeeze", "Reshape") and len(data) == 1:
            return axis is not None and self._moves(node, axis)
        if op in _SUMS and len(data) == 2:
            same = axis is not None and axis == self.axes.get(data[1])
            if same:
                self.parent[self.find(data[1])] = self.find(data[0])
            return same and self._join(result, data[0])
        if op == "Transpose":
            return axis is not None and self._turns(node, axis)
        if op == "Concat":
            return len(data) == len(node.input) > 1 and self._concatenates(node)
        index = product_constant(node, self.constants)
        return index is not None and self._scaled_by_constant(node, data[0], index)

    def _turns(self, node: NodeProto, axis: ChannelAxis) -> bool:
        """The same numbers in another order of axes, as between layers of TensorFlow."""
        order = next((list(a.ints) for a in node.attribute if a.name == "perm"), [])
        place = len(order) - 1 - axis.trailing
        if axis.flattened or place not in order:
            return False
        trailing = len(order) - 1 - order.index(place)
        return self._join(node.output[0], node.input[0], replace(axis, trailing=trailing))

    def _concatenates(self, node: NodeProto) -> bool:
        """Channels one behind the other, whose place in the result is remembered."""
        axes, shape = [self.axes.get(name) for name in node.input], self.shapes.get(node.output[0])
        known = [axis for axis in axes if axis is not None and not axis.flattened]
        if shape is None or len(known) < len(axes) or len({axis.trailing for axis in known}) > 1:
            return False
        place = len(shape) - 1 - known[0].trailing
        if attribute(node, "axis", 0) % len(shape) != place:
            return False
        first = 0
        for name, axis in zip(node.input, known, strict=True):
            self.placed.append((name, ScalePart(node.output[0], first, axis.count)))
            first += axis.count
        self.axes[node.output[0]] = replace(known[0], count=first)
        return shape[place] == first

    def _channels_second(self, name: str, axis: ChannelAxis | None) -> bool:
        """Whether channels lie behind the batch: pools average what follows, Flatten joins it."""
        shape = self.shapes.get(name)
        return axis is not None and axis.trailing == (len(shape) - 2 if shape else 2)

    def _absorbs(self, node: NodeProto, axis: ChannelAxis | None) -> bool:
        """A layer or normalization: sets its output's channels, and frees its input if it can be."""
        shape = list(self.constants[node.input[1]].dims)
        rows = bool(attribute(node, "transB", 0))
        if node.op_type == "Conv":
            made = ChannelAxis(shape[0], len(shape) - 2)
            wanted = ChannelAxis(int(attribute(node, "group", 1)) * shape[1], len(shape) - 2)
            takes = axis == wanted
        elif node.op_type in ("Gemm", "MatMul") and len(shape) == 2:
            inputs, outputs = shape if node.op_type == "MatMul" or not rows else shape[::-1]
            made = ChannelAxis(outputs, 0)
            takes = axis is not None and axis.trailing == 0
            takes &= takes and inputs % (axis.count if axis else 1) == 0
            takes &= not attribute(node, "transA", 0)
        elif node.op_type == "LayerNormalization" and len(shape) == 1:
            made, takes = ChannelAxis(shape[0], 0), False
        elif node.op_type in _BY_CHANNEL and node.input[0] in self.shapes:
            made = ChannelAxis(shape[0], len(self.shapes[node.input[0]]) - 2)
            takes = node.op_type == "BatchNormalization" and axis == made
        else:
            return False
        self.axes[node.output[0]] = made
        if not takes:
            self.fixed.add(node.input[0])
        return True

    def _scaled_by_constant(self, node: NodeProto, source: str, index: int) -> bool:
        """A sum keeps the scale, a product has one of its own; the constant takes the difference."""
        dims = list(self.constants[node.input[index]].dims)
        known = self.axes.get(source)
        axis = known or _axis_of_constant(dims)
        if axis is None or axis.flattened or not _fits(dims, axis):
            return False
        if node.op_type in _SUMS:
            return self._join(node.output[0], source)
        self.axes[node.output[0]] = axis
        if known is None:
            self.fixed.add(source)
        return True

    def _moves(self, node: NodeProto, axis: ChannelAxis) -> bool:
        """A mean or another shape, which keeps the channels apart on an axis of their own."""
        before, after = (self.shapes.get(n) for n in (node.input[0], node.output[0]))
        if not before or not after or axis.flattened:
            return False
        if node.op_type == "ReduceMean":
            place = len(before) - 1 - axis.trailing
            reduced = _reduced_axes(node, self.constants, len(before))
            if reduced is None or place in reduced or 0 in reduced:
                return False
            kept = attribute(node, "keepdims", 1)
            behind = sum(i > place for i in reduced)
            return self._join(
                node.output[0],
                node.input[0],
                axis if kept else replace(axis, trailing=axis.trailing - behind),
            )
        if axis.trailing == 0 and before[-1] == after[-1] == axis.count:  # rows of tokens
            return self._join(node.output[0], node.input[0])
        # (N, C, 1, 1) -> (N, C) and back.
        same_batch = before[0] == after[0] > 0
        small = same_batch and all(prod(s[1:]) == axis.count == s[1] for s in (before, after))
        return small and self._join(
            node.output[0], node.input[0], replace(axis, trailing=len(after) - 2)
        )


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Tensor -> its shape for a batch of two, where it is known."""
    try:
        types = tensor_types(model, data_prop=True, batch=2)
    except onnx.shape_inference.InferenceError:
        return {}
    shapes = {name: [d.dim_value for d in t.shape.dim] for name, t in types.items()}
    return {name: shape for name, shape in shapes.items() if len(shape) > 1}


def _axis_of_constant(dims: list[int]) -> ChannelAxis | None:
    """Where the channels lie that a constant has one number for each of."""
    large = [i for i, size in enumerate(dims) if size > 1]
    if len(large) != 1:
        return None
    return ChannelAxis(dims[large[0]], len(dims) - 1 - large[0])


def _fits(dims: list[int], axis: ChannelAxis) -> bool:
    """Whether a constant has one number, or one per channel, along the channels' axis."""
    place = len(dims) - 1 - axis.trailing
    return place < 0 or dims[place] in (1, axis.count)


def _reduced_axes(
    node: NodeProto, constants: Mapping[str, TensorProto], rank: int
) -> set[int] | None:
    """The axes of a ReduceMean, from 0; None where they are not constant."""
    given = next((list(a.ints) for a in node.attribute if a.name == "axes"), None)
    if len(node.input) > 1 and node.input[1]:
        if node.input[1] not in constants:
            return None
        given = numpy_helper.to_array(constants[node.input[1]]).ravel().tolist()
    return None if given is None else {int(i) % rank for i in given}
