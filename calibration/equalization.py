"""Cross-layer equalization: one range per tensor suffices when its channels are alike.

Dividing channel c of a tensor by s[c] leaves the network's output unchanged if the rows of the
layer that makes it are divided by s and the columns of its readers multiplied: convolutions and
matrix products absorb a scale, and ReLU, PReLU, pooling and additions are positively homogeneous.
(M. Nagel et al., Data-free quantization through weight equalization and bias correction, 2019.)

How much to scale follows from the histograms and the weights, without another pass over the faces.
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
    cumulative_moments,
    min_error_amax,
    pool_channels,
)
from .histogram import Histogram

_ABSORBING = ("Conv", "Gemm", "BatchNormalization")
_HOMOGENEOUS = (
    "PRelu",
    "Relu",
    "LeakyRelu",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Flatten",
)

# Exponents a of s = peak ** a / weight ** (1 - a): 0 evens out the weights, 1 the activations, 0.5
# is Nagel's. (G. Xiao et al., SmoothQuant, 2023, has the same parameter.)
_EXPONENTS = (0.0, 0.25, 0.4, 0.5, 0.6, 0.75, 1.0)

# Weight of the error of rounded weights, relative to rounded activations: it is the same at every
# place of the image. Half gives the same mean cosine and worse minima, double a worse mean
# (docs/results/int8.md).
_WEIGHT_ERROR_FACTOR = 4.0

_MIN_RELATIVE_PEAK = 1e-3  # channels with a smaller share of the largest peak count as having it


@dataclass(frozen=True)
class QuantizedInput:
    """A tensor that INT8 layers read.

    Attributes:
        magnitudes: Its values' magnitudes after the activation shift, C channels.
        moments: The cumulative moments of `magnitudes`.
        weights: `(O, C, K) float32` of each INT8 layer that reads it.
    """

    magnitudes: AbsHistogram
    moments: CumulativeMoments
    weights: tuple[F32, ...]

    @property
    def gain(self) -> F64:
        """`(C,) float64`, the sum of the squared weights that read each channel."""
        squares = [np.einsum("ock,ock->c", w, w, dtype=np.float64) for w in self.weights]
        return np.asarray(np.sum(squares, axis=0))

    @property
    def weight_peak(self) -> F64:
        """`(C,) float64`, the largest weight that reads each channel."""
        return np.asarray(np.max([np.abs(w).max(axis=(0, 2)) for w in self.weights], axis=0), float)


def quantized_inputs(
    model: onnx.ModelProto,
    choice: Int8Choice,
    histograms: Mapping[str, Histogram],
    shifts: Mapping[str, F64],
) -> dict[str, QuantizedInput]:
    """The tensors that INT8 layers read, with what decides their scales and ranges.

    Args:
        model: A float model whose nodes are named.
        choice: Which of its layers become INT8.
        histograms: Tensor -> its values, for `choice.tensors`.
        shifts: Tensor -> `(C,) float64`, subtracted before quantizing; 0 for other tensors.
    """
    constants = {t.name: t for t in model.graph.initializer}
    int8 = set(choice.int8)
    weights: dict[str, list[F32]] = {}
    for node in model.graph.node:
        if node.name in int8:
            columns = layer_columns(node, numpy_helper.to_array(constants[node.input[1]]))
            # After a Flatten, a channel is a run of columns.
            channels = len(histograms[node.input[0]].low)
            columns = columns.reshape(len(columns), channels, -1)
            weights.setdefault(node.input[0], []).append(columns)
    inputs = {}
    for name, arrays in weights.items():
        histogram = histograms[name]
        magnitudes = abs_histogram(histogram, shifts.get(name, np.zeros(len(histogram.low))))
        inputs[name] = QuantizedInput(magnitudes, cumulative_moments(magnitudes), tuple(arrays))
    return inputs


def channel_scales(model: onnx.ModelProto, inputs: Mapping[str, QuantizedInput]) -> dict[str, F64]:
    """By how much equalization divides each channel.

    Args:
        model: A float model whose nodes are named.
        inputs: The tensors that INT8 layers read.

    Returns:
        Tensor -> `(C,) float64`, for every tensor of a group that INT8 layers read.
    """
    groups = scale_groups(model)
    members: dict[str, list[QuantizedInput]] = {}
    for tensor, values in inputs.items():
        if tensor in groups:
            members.setdefault(groups[tensor], []).append(values)
    scales = {group: _best_scale(tensors) for group, tensors in members.items()}
    return {tensor: scales[group] for tensor, group in groups.items() if group in scales}


def tensor_ranges(
    inputs: Mapping[str, QuantizedInput], scales: Mapping[str, F64], method: str
) -> dict[str, float]:
    """The range of each tensor after scaling.

    Args:
        inputs: The tensors that INT8 layers read.
        scales: Tensor -> `(C,) float64`, by which its channels are divided; 1 for other tensors.
        method: "auto", which minimises the error of what the INT8 layers compute, or a name of
            `clipping.METHODS`, which look at the tensor alone.

    Returns:
        Tensor -> amax > 0; 1 for a tensor that is always zero.
    """
    ranges = {}
    for tensor, values in inputs.items():
        magnitudes = values.magnitudes
        scale = scales.get(tensor, np.ones(len(magnitudes.peak)))
        if magnitudes.peak.max() == 0.0:
            ranges[tensor] = 1.0
        elif method == "auto":
            ranges[tensor] = min_error_amax(magnitudes, values.moments, scale, values.gain)[0]
        else:
            ranges[tensor] = METHODS[method](*pool_channels(magnitudes, scale))
    return ranges


def scale_groups(model: onnx.ModelProto) -> dict[str, str]:
    """Which tensors must share one scale per channel.

    Args:
        model: A float model whose nodes are named.

    Returns:
        Tensor -> the name of its group. Tensors that cannot be scaled (the input, the embedding,
        inputs and outputs of other operators) are absent.
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
        if node.op_type in _ABSORBING and data == [node.input[0]] and len(node.output) == 1:
            find(node.output[0])
        elif node.op_type in _HOMOGENEOUS and len(data) == len(node.output) == 1:
            parent[find(node.output[0])] = first
        elif node.op_type == "Add" and len(data) == 2:
            parent[find(data[1])] = first
            parent[find(node.output[0])] = find(first)
        else:
            fixed.update((*data, *node.output))
    roots = {find(name) for name in fixed}
    return {name: find(name) for name in list(parent) if find(name) not in roots}


def equalize(model: onnx.ModelProto, scales: Mapping[str, F64]) -> onnx.ModelProto:
    """Divide channels of tensors by changing the weights around them.

    Args:
        model: A float model whose nodes are named.
        scales: Tensor -> `(C,) float64`; all tensors of a group of `scale_groups` or none.

    Returns:
        A copy that computes the same embeddings.
    """
    copy = _without_constants(model)
    arrays = {t.name: t for t in model.graph.initializer}
    changed: dict[str, onnx.TensorProto] = {}

    def multiply(node: NodeProto, index: int, factor: F64) -> None:
        if index < len(node.input) and node.input[index]:
            array = numpy_helper.to_array(arrays[node.input[index]]) * factor
            name = f"{node.name}/equalized_{index}"
            changed[name] = numpy_helper.from_array(array.astype(np.float32), name)
            node.input[index] = name

    for node in copy.graph.node:
        if node.op_type not in _ABSORBING:
            continue
        source, result = scales.get(node.input[0]), scales.get(node.output[0])
        if source is None and result is None:
            continue
        into = np.ones(1) if source is None else source
        out = np.ones(1) if result is None else 1.0 / result
        if node.op_type == "BatchNormalization":
            multiply(node, 1, into * out)
            multiply(node, 2, out)
            multiply(node, 3, 1.0 / into)
            continue
        shape = tuple(arrays[node.input[1]].dims)
        multiply(node, 1, _per_input(node, shape, into) * _per_output(node, len(shape), out))
        multiply(node, 2, out)
    read = uses(copy.graph)
    copy.graph.initializer.extend(t for t in (arrays | changed).values() if t.name in read)
    return copy


def _without_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without initializers; a protobuf message never frees the memory of removed ones."""
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


def _per_output(node: NodeProto, rank: int, factor: F64) -> F64:
    """A factor per output channel, shaped to multiply the weights."""
    if node.op_type == "Gemm" and not attribute(node, "transB", 0):
        return factor
    return factor.reshape(-1, *[1] * (rank - 1))


def _per_input(node: NodeProto, shape: tuple[int, ...], factor: F64) -> F64:
    """A factor per input channel, shaped to multiply the weights."""
    if factor.size == 1:
        return factor.reshape([1] * len(shape))
    if node.op_type == "Gemm":  # after a Flatten a channel is a run of columns
        rows = bool(attribute(node, "transB", 0))
        wide = np.repeat(factor, shape[1 if rows else 0] // factor.size)
        return wide if rows else wide[:, None]
    groups = int(attribute(node, "group", 1))
    per_row = np.repeat(factor.reshape(groups, -1), shape[0] // groups, axis=0)
    return per_row.reshape(*per_row.shape, *[1] * (len(shape) - 2))


def _best_scale(members: Sequence[QuantizedInput]) -> F64:
    """The scale with the least error over all tensors of a group; no scaling is a candidate."""
    peak = np.exp(np.mean([np.log(_relative(m.magnitudes.peak)) for m in members], axis=0))
    weight = np.max([_relative(m.weight_peak) for m in members], axis=0)
    candidates = [np.ones(len(peak))]
    candidates += [peak**a / weight ** (1.0 - a) for a in _EXPONENTS]
    candidates = [scale / np.exp(np.log(scale).mean()) for scale in candidates]
    return min(candidates, key=lambda scale: sum(_relative_error(m, scale) for m in members))


def _relative(values: F64) -> F64:
    """Shares of the largest value, bounded below so that silent channels are not amplified."""
    return np.maximum(values / (values.max() or 1.0), _MIN_RELATIVE_PEAK)


def _relative_error(values: QuantizedInput, scale: F64) -> float:
    """Error over signal in the readers' sums, from rounded activations and rounded weights.

    Bias correction removes the error of rounded weights times a channel's mean; times its variance
    it remains.
    """
    variance = values.magnitudes.variance
    total = min_error_amax(values.magnitudes, values.moments, scale, values.gain)[1]
    power = float((variance / scale**2).sum())
    for weights in values.weights:
        step = (np.abs(weights).max(axis=2) * scale).max(axis=1) / 127.0
        errors = float((step**2).sum()) / 12.0 * weights.shape[2] * power
        total += _WEIGHT_ERROR_FACTOR * errors
    return total / (float(values.gain @ variance) or 1.0)
