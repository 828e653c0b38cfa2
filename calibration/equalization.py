"""Cross-layer equalisation: one range fits a tensor whose channels are alike.

Dividing channel c of a tensor by s[c] changes nothing that the network says when its maker's rows
are divided by s and its readers' columns multiplied: convolutions and matrix products absorb a
scale, and ReLU, PReLU, pooling and additions let it pass, for they are positively homogeneous.
(M. Nagel et al., Data-free quantization through weight equalization and bias correction, 2019.)

This file knows what may be scaled and how; how much is in scales.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from ..arrays import F32, F64
from ..graph.edit import attribute, uses
from ..graph.layer_weights import layer_columns
from ..graph.layers import Int8Choice
from .clipping import (
    METHODS,
    AbsHistogram,
    CumulativeMoments,
    abs_histogram,
    best_amax,
    cumulative_moments,
    pool_channels,
)
from .histogram import Histogram

_ABSORBS = ("Conv", "Gemm", "BatchNormalization")

_PASSES = ("PRelu", "Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Flatten")


def scale_groups(model: onnx.ModelProto) -> dict[str, str]:
    """Tensors that share one scale per channel -> the name of their group.

    Tensors that cannot be scaled (the input, the embedding, what other operators touch) are absent.
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    parent: dict[str, str] = {}
    fixed = {value.name for value in (*graph.input, *graph.output)}

    def find(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for node in graph.node:
        data = [name for name in node.input if name and name not in constants]
        first = find(data[0]) if data else ""
        if node.op_type in _ABSORBS and data == [node.input[0]] and len(node.output) == 1:
            find(node.output[0])
        elif node.op_type in _PASSES and len(data) == len(node.output) == 1:
            parent[find(node.output[0])] = first
        elif node.op_type == "Add" and len(data) == 2:
            parent[find(data[1])] = first
            parent[find(node.output[0])] = find(first)
        else:
            fixed.update((*data, *node.output))
    roots = {find(name) for name in fixed}
    return {name: find(name) for name in list(parent) if find(name) not in roots}


def equalize(model: onnx.ModelProto, scales: Mapping[str, F64]) -> onnx.ModelProto:
    """The same network with channel c of tensor t divided by `scales[t][c]`, wherever it is named."""
    copy = _without_constants(model)
    arrays = {t.name: t for t in model.graph.initializer}
    made: dict[str, onnx.TensorProto] = {}

    def change(node: NodeProto, index: int, factor: F64) -> None:
        if index < len(node.input) and node.input[index]:
            array = numpy_helper.to_array(arrays[node.input[index]]) * factor
            name = f"{node.name}/equalised_{index}"
            made[name] = numpy_helper.from_array(array.astype(np.float32), name)
            node.input[index] = name

    for node in copy.graph.node:
        if node.op_type not in _ABSORBS:
            continue
        source, result = scales.get(node.input[0]), scales.get(node.output[0])
        if source is None and result is None:
            continue
        into = np.ones(1) if source is None else source
        out = np.ones(1) if result is None else 1.0 / result
        if node.op_type == "BatchNormalization":
            change(node, 1, into * out)
            change(node, 2, out)
            change(node, 3, 1.0 / into)
            continue
        shape = tuple(arrays[node.input[1]].dims)
        change(node, 1, _columns(node, shape, into) * _rows(node, len(shape), out))
        change(node, 2, out)
    read = uses(copy.graph)
    copy.graph.initializer.extend(t for t in (arrays | made).values() if t.name in read)
    return copy


def _without_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy but for the constants: a message never gives back the memory of what it loses."""
    graph = model.graph
    bare = helper.make_graph(
        graph.node, graph.name, graph.input, graph.output, value_info=graph.value_info
    )
    copy = helper.make_model(
        bare,
        ir_version=model.ir_version,
        opset_imports=model.opset_import,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
    )
    copy.metadata_props.extend(model.metadata_props)
    return copy


def _rows(node: NodeProto, rank: int, factor: F64) -> F64:
    """A factor per output channel, shaped to multiply the weights."""
    if node.op_type == "Gemm" and not attribute(node, "transB", 0):
        return factor
    return factor.reshape(-1, *[1] * (rank - 1))


def _columns(node: NodeProto, shape: tuple[int, ...], factor: F64) -> F64:
    """A factor per input channel, shaped to multiply the weights."""
    if factor.size == 1:
        return factor.reshape([1] * len(shape))
    if node.op_type == "Gemm":  # behind a Flatten a channel is a run of columns
        rows = bool(attribute(node, "transB", 0))
        wide = np.repeat(factor, shape[1 if rows else 0] // factor.size)
        return wide if rows else wide[:, None]
    groups = int(attribute(node, "group", 1))
    per_row = np.repeat(factor.reshape(groups, -1), shape[0] // groups, axis=0)
    return per_row.reshape(*per_row.shape, *[1] * (len(shape) - 2))


# How much to scale each channel, and where to clip: by the error of what the INT8 layers compute.
#
# Everything comes from the histograms and the weights: no further pass over the faces.

BALANCES = (0.0, 0.25, 0.4, 0.5, 0.6, 0.75, 1.0)
"""Exponents of s = peak ** a / weight ** (1 - a): 0 evens out the weights, 1 the activations, 0.5
is Nagel's. (G. Xiao et al., SmoothQuant, 2023, has the same knob.)"""

WEIGHTS = 4.0
"""How much the rounding of weights counts, as against that of activations: it is the same at every
place of the image. Half is as good in the mean and worse for unusual faces, double is worse in the
mean (docs/results/int8.md)."""

_FAINTEST = 1e-3
"""Channels fainter than this share of the loudest are scaled as if they were at it."""


@dataclass(frozen=True)
class TensorReading:
    """What one tensor's INT8 readers make of it: `weights` `(O, C, K) float32` each."""

    sizes: AbsHistogram
    cumulated: CumulativeMoments
    weights: tuple[F32, ...]

    @property
    def gain(self) -> F64:
        """`(C,)`, the sum of the squared weights that read each channel."""
        squares = [np.einsum("ock,ock->c", w, w, dtype=np.float64) for w in self.weights]
        return np.asarray(np.sum(squares, axis=0))

    @property
    def loudest(self) -> F64:
        """`(C,)`, the largest weight that reads each channel."""
        return np.asarray(np.max([np.abs(w).max(axis=(0, 2)) for w in self.weights], axis=0), float)


def readings(
    model: onnx.ModelProto,
    choice: Int8Choice,
    seen: Mapping[str, Histogram],
    centres: Mapping[str, F64],
) -> dict[str, TensorReading]:
    """What the INT8 layers read, tensor by tensor; `centres` are subtracted first."""
    constants = {t.name: t for t in model.graph.initializer}
    chosen = set(choice.int8)
    weights: dict[str, list[F32]] = {}
    for node in model.graph.node:
        if node.name in chosen:
            columns = layer_columns(node, numpy_helper.to_array(constants[node.input[1]]))
            # Behind a Flatten, a channel is a run of columns.
            columns = columns.reshape(len(columns), len(seen[node.input[0]].low), -1)
            weights.setdefault(node.input[0], []).append(columns)
    found = {}
    for name, arrays in weights.items():
        sizes = abs_histogram(seen[name], centres.get(name, np.zeros(len(seen[name].low))))
        found[name] = TensorReading(sizes, cumulative_moments(sizes), tuple(arrays))
    return found


def channel_scales(model: onnx.ModelProto, read: Mapping[str, TensorReading]) -> dict[str, F64]:
    """Tensor -> `(C,)` scale for every tensor that equalisation should divide."""
    groups = scale_groups(model)
    together: dict[str, list[TensorReading]] = {}
    for tensor, reading in read.items():
        if tensor in groups:
            together.setdefault(groups[tensor], []).append(reading)
    found = {group: _best_scale(members) for group, members in together.items()}
    return {tensor: found[group] for tensor, group in groups.items() if group in found}


def tensor_ranges(
    read: Mapping[str, TensorReading], scales: Mapping[str, F64], method: str
) -> dict[str, float]:
    """Tensor -> amax after scaling; a tensor that is always zero gets 1, which represents it exactly.

    `auto` clips where the error of what the INT8 layers compute is least, other methods look at the
    tensor alone.
    """
    ranges = {}
    for tensor, reading in read.items():
        sizes = reading.sizes
        scale = scales.get(tensor, np.ones(len(sizes.peak)))
        if sizes.peak.max() == 0.0:
            ranges[tensor] = 1.0
        elif method == "auto":
            ranges[tensor] = best_amax(sizes, reading.cumulated, scale, reading.gain)[0]
        else:
            ranges[tensor] = METHODS[method](*pool_channels(sizes, scale))
    return ranges


def _best_scale(members: Sequence[TensorReading]) -> F64:
    """Of no scaling and `BALANCES`, what gives the least error over all tensors of a group."""
    peak = np.exp(np.mean([np.log(_floored(m.sizes.peak)) for m in members], axis=0))
    weight = np.max([_floored(m.loudest) for m in members], axis=0)
    candidates = [np.ones(len(peak))]
    candidates += [peak**a / weight ** (1.0 - a) for a in BALANCES]
    candidates = [scale / np.exp(np.log(scale).mean()) for scale in candidates]
    return min(candidates, key=lambda scale: sum(_error(m, scale) for m in members))


def _floored(values: F64) -> F64:
    """Relative to the loudest channel, and never far below it: a silent channel is no reason to
    blow it up."""
    return np.maximum(values / (values.max() or 1.0), _FAINTEST)


def _error(reading: TensorReading, scale: F64) -> float:
    """Error over signal in the sums of the readers, from rounded activations and weights.

    What rounded weights make of a channel's mean goes into the bias: its variance remains.
    """
    variance = reading.sizes.variance
    total = best_amax(reading.sizes, reading.cumulated, scale, reading.gain)[1]
    spread = float((variance / scale**2).sum())
    for weights in reading.weights:
        step = (np.abs(weights).max(axis=2) * scale).max(axis=1) / 127.0
        total += WEIGHTS * float((step**2).sum()) / 12.0 * weights.shape[2] * spread
    return total / (float(reading.gain @ variance) or 1.0)
