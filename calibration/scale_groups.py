"""Which channels of which tensors can be scaled, and which of them must share one scale.

Dividing channel c of a tensor by s[c] leaves the network's output unchanged where the constants
around it take the scale: what makes the tensor is divided by s, what reads it multiplied.

- Convolutions, matrix products and BatchNormalization take a scale on either side.
- LayerNormalization and InstanceNormalization take that of their output into gamma and beta
  (G. Xiao et al., SmoothQuant, 2023, arXiv 2211.10438); their input cannot be scaled.
- A product with a constant takes both scales into the constant: gamma of a normalization that is
  written out, LayerScale, the one half of GELU, the sixth of hard-swish.
- ReLU, PReLU, pooling, padding, transposition, sums and maxima of two tensors (LightCNN), and products
  with a gate that has no scale of its own (squeeze-excite) pass the scale on.
- A concatenation has the scales of its parts, one behind the other (Ghost modules, Inception,
  DenseNet); a split, a slice and a shuffle of channels those of the channels they take (ShuffleNet).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from ..arrays import I64
from ..graph.edit import attribute, product_constant, reads, reduced_axes
from ..graph.shapes import line_of, moved_values, tensor_shapes

_BY_CHANNEL = ("BatchNormalization", "InstanceNormalization")
_PASSING = ("PRelu", "Relu", "LeakyRelu")
_POOLS = ("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool")
_SUMS = ("Add", "Sub")
_PAIRS = (*_SUMS, "Max", "Min")
_MOVES = ("Split", "Slice", "Gather", "Reshape", "Transpose", "Squeeze", "Unsqueeze")
_MOST_VALUES = 1 << 24  # of a tensor whose channels are followed value by value


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


def scale_groups(model: onnx.ModelProto) -> dict[str, I64]:
    """Which channels must share one scale.

    Args:
        model: A float model whose nodes are named.

    Returns:
        Tensor -> `(C,) int64`, the number of each channel's group, from 0: channels of one group, of
        whatever tensors, share a scale. -1 for a channel that cannot be scaled; a tensor without
        any other (the input, the embedding, inputs and outputs of other operators) is absent.
    """
    return _Groups(model).numbers()


def channel_axes(model: onnx.ModelProto) -> dict[str, ChannelAxis]:
    """Where the channels of the tensors of `scale_groups` lie.

    Args:
        model: A float model whose nodes are named.

    Returns:
        Tensor -> its channels.
    """
    groups = _Groups(model)
    return {tensor: groups.axes[tensor] for tensor in groups.numbers()}


class _Channels:
    """Union of channels that share a scale; fixed ones have none."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._fixed: list[bool] = []

    def new(self, count: int) -> I64:
        """Channels that share with no other."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        self._fixed.extend([False] * count)
        return np.arange(first, first + count)

    def root(self, channel: int) -> int:
        parent = self._parent
        while parent[channel] != channel:
            parent[channel] = parent[parent[channel]]
            channel = parent[channel]
        return channel

    def unite(self, some: I64, others: I64) -> None:
        """One scale for each pair."""
        for one, other in zip(some.tolist(), others.tolist(), strict=True):
            kept, merged = self.root(one), self.root(other)
            self._parent[merged] = kept
            self._fixed[kept] |= self._fixed[merged]

    def fix(self, channels: I64) -> None:
        for channel in channels.tolist():
            self._fixed[self.root(channel)] = True

    def free(self, channels: I64) -> list[bool]:
        return [not self._fixed[self.root(channel)] for channel in channels.tolist()]


class _Groups:
    """The channels of each tensor, united in graph order; `fixed` tensors have no scale."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.channels = _Channels()
        self.ids: dict[str, I64] = {}
        self.axes: dict[str, ChannelAxis] = {}
        # The channel of each value, where channels have no axis: such a tensor gets no scale itself.
        self.spread: dict[str, I64] = {}
        self.fixed: set[str] = set()
        self.order = {name: i for i, node in enumerate(graph.node) for name in node.output}
        self.shapes = tensor_shapes(model, batch=2)
        opsets = (o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        self.opset = next(opsets, 0)
        self._fix(value.name for value in (*graph.input, *graph.output))
        products = []
        for node in graph.node:
            self._fix(reads(node) - set(node.input))  # by the bodies of If
            data = [name for name in node.input if name and name not in self.constants]
            if node.op_type == "Mul" and len(data) == 2 and data[0] != data[1]:
                # Until the fixed tensors are known, its output only has its channels' place.
                earlier = min(data, key=lambda name: self.order.get(name, -1))
                if earlier in self.axes and self._holds(node.output[0], self.axes[earlier]):
                    self._make(node.output[0], self.axes[earlier])
                products.append((node.output[0], data))
            elif not self._passes(node, data):
                self._fix((*data, *node.output))
        for result, data in products:
            self._gate(result, data)

    def numbers(self) -> dict[str, I64]:
        """Tensor -> the number of each channel's group; see `scale_groups`."""
        numbers: dict[int, int] = {}
        groups = {}
        for name, ids in self.ids.items():
            free = self.channels.free(ids)
            if any(free):
                roots = [self.channels.root(channel) for channel in ids.tolist()]
                groups[name] = np.array(
                    [
                        numbers.setdefault(root, len(numbers)) if is_free else -1
                        for root, is_free in zip(roots, free, strict=True)
                    ]
                )
        return groups

    def _fix(self, names: Iterable[str]) -> None:
        for name in names:
            self.fixed.add(name)
            if name in self.ids:
                self.channels.fix(self.ids[name])
            elif name in self.spread:
                self.channels.fix(np.unique(self.spread[name]))

    def _make(self, name: str, axis: ChannelAxis, ids: I64 | None = None) -> None:
        """Set a tensor's channels: those of another tensor, or new ones."""
        self.axes[name] = axis
        self.ids[name] = self.channels.new(axis.count) if ids is None else ids
        if name in self.fixed:
            self.channels.fix(self.ids[name])

    def _join(self, result: str, source: str, axis: ChannelAxis | None = None) -> bool:
        """Give a tensor the scale of another one; False where that has no known channels."""
        if source not in self.axes:
            return False
        self._make(result, axis or self.axes[source], self.ids[source])
        return True

    def _holds(self, name: str, axis: ChannelAxis) -> bool:
        """Whether a tensor has as many channels there: a gate may have many for its tensor's one."""
        size = self.shapes.get(name, [])[-1 - axis.trailing :][:1]
        unknown = size in ([], [0]) and axis.count > 1
        return not axis.flattened and (unknown or size == [axis.count])

    def _gate(self, result: str, data: list[str]) -> None:
        """A product of two tensors: its scale is that of one of them, if the other has none."""
        known = [name for name in data if name in self.axes]
        free = [name for name in known if any(self.channels.free(self.ids[name]))]
        # Of two that could be scaled, the later one is the gate, made from the other.
        source = min(free, key=lambda name: self.order[name], default="")
        self._fix(name for name in data if name != source)
        if source and self.axes.get(result) == self.axes[source]:
            self.channels.unite(self.ids[source], self.ids[result])
        else:
            self._fix((result, *data))

    def _passes(self, node: NodeProto, data: list[str]) -> bool:
        """Handle a node that takes a scale or passes it on; False for others."""
        op = node.op_type
        if not data or not node.output:
            return False
        result, axis = node.output[0], self.axes.get(data[0])
        if axis is not None and axis.flattened and op not in ("Gemm", "MatMul"):
            return False
        if op == "Transpose" and axis is not None:
            return self._turns(node, axis)
        if op in ("Split", "Slice", "Gather") or data[0] in self.spread:
            return data == [node.input[0]] and self._moves_channels(node)
        if len(node.output) != 1:
            return False
        if op in ("Conv", "Gemm", "MatMul", "LayerNormalization", *_BY_CHANNEL):
            return data == [node.input[0]] and self._absorbs(node, axis)
        if op in _PASSING and data == [node.input[0]]:
            return self._join(result, data[0])
        if op in (*_POOLS, "Flatten") and not self._channels_second(data[0], axis):
            return False
        if op in _POOLS:
            return self._join(result, data[0])
        if op == "Flatten" and axis is not None and attribute(node, "axis", 1) == 1:
            return self._join(result, data[0], ChannelAxis(axis.count, 0, flattened=True))
        if op in ("ReduceMean", "Squeeze", "Reshape") and len(data) == 1:
            return axis is not None and (self._moves(node, axis) or self._moves_channels(node))
        if op in _PAIRS and len(data) == len(node.input) == 2:
            same = axis is not None and axis == self.axes.get(data[1])
            if same:
                self.channels.unite(self.ids[data[0]], self.ids[data[1]])
            return same and self._join(result, data[0])
        if op == "Pad":
            return data == [node.input[0]] and axis is not None and self._pads(node, axis)
        if op == "Concat":
            return len(data) == len(node.input) > 1 and self._concatenates(node)
        index = product_constant(node, self.constants)
        return index is not None and self._scaled_by_constant(node, data[0], index)

    def _pads(self, node: NodeProto, axis: ChannelAxis) -> bool:
        """Zeros around an image, or its own values; no channel is added or cut."""
        names = dict(zip(("data", "pads", "value", "axes"), node.input, strict=False))
        given = {key: self.constants[name] for key, name in names.items() if name in self.constants}
        values = {key: numpy_helper.to_array(tensor) for key, tensor in given.items()}
        old = next((list(a.ints) for a in node.attribute if a.name == "pads"), [])
        pads = np.ravel(values.get("pads", old)).tolist()
        value = values.get("value", attribute(node, "value", 0.0))
        if "axes" in values and node.input[0] not in self.shapes:
            return False
        rank = len(self.shapes.get(node.input[0], pads[: len(pads) // 2]))
        axes = [int(i) % rank for i in np.ravel(values.get("axes", np.arange(rank)))]
        own = [
            n for i, n in zip((*axes, *axes), pads, strict=False) if i == rank - 1 - axis.trailing
        ]
        return not any(own) and not np.any(value) and self._join(node.output[0], node.input[0])

    def _turns(self, node: NodeProto, axis: ChannelAxis) -> bool:
        """The same numbers in another order of axes, as between layers of TensorFlow."""
        order = next((list(a.ints) for a in node.attribute if a.name == "perm"), [])
        place = len(order) - 1 - axis.trailing
        if place not in order:
            return False
        trailing = len(order) - 1 - order.index(place)
        return self._join(node.output[0], node.input[0], replace(axis, trailing=trailing))

    def _concatenates(self, node: NodeProto) -> bool:
        """Channels one behind the other."""
        axes, shape = [self.axes.get(name) for name in node.input], self.shapes.get(node.output[0])
        known = [axis for axis in axes if axis is not None and not axis.flattened]
        if shape is None or len(known) < len(axes) or len({axis.trailing for axis in known}) > 1:
            return False
        place = len(shape) - 1 - known[0].trailing
        ids = np.concatenate([self.ids[name] for name in node.input])
        if attribute(node, "axis", 0) % len(shape) != place or shape[place] != len(ids):
            return False
        self._make(node.output[0], replace(known[0], count=len(ids)), ids)
        return True

    def _moves_channels(self, node: NodeProto) -> bool:
        """Split, Slice and Gather take some channels; Reshape and Transpose shuffle them, by way of
        tensors whose channels lie on no axis of their own. The node itself moves their numbers."""
        source = node.input[0]
        shapes = [self.shapes.get(name, [0]) for name in (source, *node.output)]
        if node.op_type not in _MOVES or not all(0 < prod(s) < _MOST_VALUES for s in shapes):
            return False
        place = self.spread.get(source)
        if place is None and (axis := self.axes.get(source)) and not axis.flattened:
            channels = self.ids[source].reshape(axis.factor_shape())
            place = np.broadcast_to(channels, shapes[0])
        if place is None:
            return False
        constants = [self.constants[name] for name in node.input if name in self.constants]
        moves = moved_values(node, place, constants, self.opset)
        for name, moved in zip(node.output, moves, strict=False):
            line = line_of(moved)
            if line is None:
                self.spread[name] = moved
                if name in self.fixed:
                    self.channels.fix(np.unique(moved))
            else:
                where, channels = line
                self._make(name, ChannelAxis(len(channels), moved.ndim - 1 - where), channels)
        return bool(moves)

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
        self._make(node.output[0], made)
        if not takes:
            self._fix([node.input[0]])
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
        self._make(node.output[0], axis)
        if known is None:
            self._fix([source])
        return True

    def _moves(self, node: NodeProto, axis: ChannelAxis) -> bool:
        """A mean or another shape, which keeps the channels apart on an axis of their own."""
        before, after = (self.shapes.get(n) for n in (node.input[0], node.output[0]))
        if not before or not after or axis.flattened:
            return False
        if node.op_type == "ReduceMean":
            place = len(before) - 1 - axis.trailing
            reduced = reduced_axes(node, self.constants, len(before))
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
