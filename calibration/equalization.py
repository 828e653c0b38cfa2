"""Cross-layer equalization: one range per tensor suffices when its channels are alike.

Dividing channel c of a tensor by s[c] leaves the network's output unchanged if the rows of the
layer that makes it are divided by s and the columns of its readers multiplied (scale_groups.py has
what else takes a scale or passes it on).
(M. Nagel et al., Data-free quantization through weight equalization and bias correction, 2019.)

How much to scale follows from the histograms and the weights, without another pass over the faces.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from ..arrays import F32, F64, I64
from ..graph.edit import only_read_by, product_constant, uses
from ..graph.layer_weights import groups_of, layer_columns, output_axis
from ..graph.layers import Int8Choice, weighted_nodes
from . import constants
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
from .scale_groups import channel_axes, scale_groups

_ACTIVATIONS = ("Mul", "HardSwish", "Gelu", "Mish", "Elu", "Selu", "Celu", "Reshape")
# Mul: SiLU and gates; Reshape: the end of attention


@dataclass(frozen=True)
class QuantizedInput:
    """A tensor that INT8 layers read.

    Attributes:
        magnitudes: Its values' magnitudes after the activation shift, C channels.
        moments: The cumulative moments of `magnitudes`.
        weights: `(O / G, G, C / G, K) float32` of each INT8 layer that reads it, which has G groups.
    """

    magnitudes: AbsHistogram
    moments: CumulativeMoments
    weights: tuple[F32, ...]

    @property
    def gain(self) -> F64:
        """`(C,) float64`, the sum of the squared weights that read each channel."""
        squares = [np.einsum("ogck,ogck->gc", w, w, dtype=np.float64) for w in self.weights]
        return np.asarray(sum(square.ravel() for square in squares))

    @property
    def weight_peak(self) -> F64:
        """`(C,) float64`, the largest weight that reads each channel."""
        peaks = [np.abs(w).max(axis=(0, 3)).ravel() for w in self.weights]
        return np.asarray(np.max(peaks, axis=0), float)


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
    weights = {t.name: t for t in model.graph.initializer}
    int8 = set(choice.int8)
    readers: dict[str, list[F32]] = {}
    for node in model.graph.node:
        if node.name in int8:
            columns = layer_columns(node, numpy_helper.to_array(weights[node.input[1]]))
            # After a Flatten, a channel is a run of columns.
            channels = len(histograms[node.input[0]].low)
            groups = groups_of(node)
            parts = columns.reshape(
                groups, -1, channels // groups, columns[0].size * groups // channels
            )
            readers.setdefault(node.input[0], []).append(parts.swapaxes(0, 1))
    inputs = {}
    for name, arrays in readers.items():
        histogram = histograms[name]
        magnitudes = abs_histogram(histogram, shifts.get(name, np.zeros(len(histogram.low))))
        inputs[name] = QuantizedInput(magnitudes, cumulative_moments(magnitudes), tuple(arrays))
    return inputs


def channel_scales(
    model: onnx.ModelProto, choice: Int8Choice, inputs: Mapping[str, QuantizedInput]
) -> dict[str, F64]:
    """By how much equalization divides each channel.

    Args:
        model: A float model whose nodes are named.
        choice: Which of its layers become INT8.
        inputs: The tensors that INT8 layers read.

    Returns:
        Tensor -> `(C,) float64`, for every tensor with channels of a group that INT8 layers read.
    """
    groups = scale_groups(model)
    read = {tensor: values for tensor, values in inputs.items() if tensor in groups}
    scales: dict[int, float] = {}
    for tensors in _connected({tensor: groups[tensor] for tensor in read}):
        scales |= _best_scales([(read[tensor], groups[tensor]) for tensor in tensors])
    result = {
        tensor: np.array([scales.get(group, 1.0) for group in of_channels.tolist()])
        for tensor, of_channels in groups.items()
        if not scales.keys().isdisjoint(of_channels.tolist())
    }
    for tensor in separate_tensors(model, choice, groups):
        scales = _best_scales([(inputs[tensor], np.arange(len(inputs[tensor].weight_peak)))])
        scale = np.array(list(scales.values()))
        if _relative_error(inputs[tensor], scale) < constants.WORTH_A_PRODUCT * _relative_error(
            inputs[tensor], np.ones(len(scale))
        ):
            result[tensor] = scale
    return result


def separate_tensors(
    model: onnx.ModelProto, choice: Int8Choice, groups: Collection[str]
) -> list[str]:
    """Tensors that no constant can scale, but a product of their own can.

    Those are what an activation, a gate or attention makes for INT8 layers alone, as behind SiLU.

    Args:
        model: A float model whose nodes are named.
        choice: Which of its layers become INT8.
        groups: The tensors of `scale_groups`.
    """
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
            amax = min_error_amax(magnitudes, values.moments, scale, values.gain)[0]
            few = values.moments.m0[0, -1] < constants.FEW_VALUES
            ranges[tensor] = amax * (constants.HEADROOM if few else 1.0)
        else:
            ranges[tensor] = METHODS[method](*pool_channels(magnitudes, scale))
    return ranges


def equalize(model: onnx.ModelProto, scales: Mapping[str, F64]) -> onnx.ModelProto:
    """Divide channels of tensors by changing the constants around them.

    Args:
        model: A float model whose nodes are named.
        scales: Tensor -> `(C,) float64`; one number for each group of `scale_groups`, in all of its
            tensors or in none, and 1 for channels without one.

    Returns:
        A copy that computes the same embeddings.
    """
    copy = _without_constants(model)
    arrays = {t.name: t for t in model.graph.initializer}
    axes = channel_axes(model) if scales else {}
    separate = scales.keys() - axes.keys()
    layers = {node.name for node in weighted_nodes(model)} if separate else set[str]()
    changed: dict[str, onnx.TensorProto] = {}

    def multiply(node: NodeProto, index: int, factor: F64) -> None:
        if index < len(node.input) and node.input[index]:
            array = numpy_helper.to_array(arrays[node.input[index]]) * factor
            name = f"{node.name}/equalized_{index}"
            changed[name] = numpy_helper.from_array(array.astype(np.float32), name)
            node.input[index] = name

    def divided(node: NodeProto, tensor: str) -> NodeProto:
        """Rename what a node makes; the division of that takes its name."""
        if not only_read_by(copy.graph, tensor, layers):
            raise ValueError(f"{tensor} cannot be scaled")
        reader = next(other for other in copy.graph.node if tensor in other.input)
        trailing = len(arrays[reader.input[1]].dims) - 2 if reader.op_type == "Conv" else 0
        factor = (1.0 / scales[tensor]).reshape(-1, *[1] * trailing)
        name, source = f"{tensor}/equalized", f"{tensor}/unequalized"
        changed[name] = numpy_helper.from_array(factor.astype(np.float32), name)
        node.output[list(node.output).index(tensor)] = source
        return helper.make_node("Mul", [source, name], [tensor], f"{tensor}/scaled")

    nodes: list[NodeProto] = []
    for node in copy.graph.node:
        nodes.append(node)
        for name in set(node.output) & separate:
            nodes.append(divided(node, name))
        data = next((name for name in node.input if name and name not in arrays), "")
        source, result = scales.get(data), scales.get(node.output[0] if node.output else "")
        if source is None and result is None:
            continue
        into = np.ones(1) if source is None else source
        out = np.ones(1) if result is None else 1.0 / result
        constant = product_constant(node, arrays)
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            shape = tuple(arrays[node.input[1]].dims)
            multiply(node, 1, _per_input(node, shape, into) * _per_output(node, len(shape), out))
            multiply(node, 2, out)
        elif node.op_type == "BatchNormalization":
            multiply(node, 1, into * out)
            multiply(node, 2, out)
            multiply(node, 3, 1.0 / into)
        elif node.op_type in ("LayerNormalization", "InstanceNormalization"):
            multiply(node, 1, out)
            multiply(node, 2, out)
        elif constant is not None:
            factor = out if node.op_type in ("Add", "Sub") else into * out
            axis = axes[data if source is not None else node.output[0]]
            factor = factor.reshape(axis.factor_shape())
            multiply(node, constant, 1.0 / factor if node.op_type == "Div" else factor)
    if separate:
        copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
        copy.graph.ClearField("node")
        copy.graph.node.extend(copies)
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
    if output_axis(node, rank) == rank - 1:
        return factor
    return factor.reshape(-1, *[1] * (rank - 1))


def _per_input(node: NodeProto, shape: tuple[int, ...], factor: F64) -> F64:
    """A factor per input channel, shaped to multiply the weights."""
    if factor.size == 1:
        return factor.reshape([1] * len(shape))
    if node.op_type in ("Gemm", "MatMul"):  # after a Flatten a channel is a run of columns
        rows = output_axis(node, 2) == 0
        wide = np.repeat(factor, shape[1 if rows else 0] // factor.size)
        return wide if rows else wide[:, None]
    groups = groups_of(node)
    per_row = np.repeat(factor.reshape(groups, -1), shape[0] // groups, axis=0)
    return per_row.reshape(*per_row.shape, *[1] * (len(shape) - 2))


def _connected(groups: Mapping[str, I64]) -> list[list[str]]:
    """Sets of tensors that share groups, directly or through others."""
    parts: list[tuple[list[str], set[int]]] = []
    for tensor, numbers in groups.items():
        own = set(numbers.tolist()) - {-1}
        touched = [part for part in parts if not own.isdisjoint(part[1])]
        tensors = [name for names, _ in touched for name in names]
        parts = [part for part in parts if part not in touched]
        parts.append(([*tensors, tensor], own.union(*(of_part for _, of_part in touched))))
    return [tensors for tensors, _ in parts]


def _best_scales(members: Sequence[tuple[QuantizedInput, I64]]) -> dict[int, float]:
    """Group -> the scale with the least error over all tensors; no scaling is a candidate.

    Args:
        members: Tensors with the group of each channel, -1 for one that has no scale.
    """
    numbers = np.concatenate([groups for _, groups in members])
    groups, places = np.unique(numbers, return_inverse=True)
    free = groups >= 0  # channels without a scale come first, as if they shared one, which is 1
    peaks = np.concatenate([np.log(_relative(values.magnitudes.peak)) for values, _ in members])
    peak = np.exp(np.bincount(places, peaks) / np.bincount(places))
    weight = np.zeros(len(groups))
    np.maximum.at(
        weight, places, np.concatenate([_relative(values.weight_peak) for values, _ in members])
    )
    own = np.split(places, np.cumsum([len(channels) for _, channels in members])[:-1])
    candidates = [np.ones(len(groups))]
    for exponent in constants.EXPONENTS:
        scale = peak**exponent / weight ** (1.0 - exponent)
        candidates.append(scale / np.exp(np.log(scale if free.all() else scale[~free]).mean()))
    best = min(
        candidates,
        key=lambda scale: sum(
            _relative_error(values, scale[of_tensor])
            for (values, _), of_tensor in zip(members, own, strict=True)
        ),
    )
    return dict(zip(groups[free].tolist(), best[free].tolist(), strict=True))


def _relative(values: F64) -> F64:
    """Shares of the largest value, bounded below so that silent channels are not amplified."""
    return np.maximum(values / (values.max() or 1.0), constants.MIN_RELATIVE_PEAK)


def _relative_error(values: QuantizedInput, scale: F64) -> float:
    """Error over signal in the readers' sums, from rounded activations and rounded weights.

    Bias correction removes the error of rounded weights times a channel's mean; times its variance
    it remains.
    """
    variance = values.magnitudes.variance
    total = min_error_amax(values.magnitudes, values.moments, scale, values.gain)[1]
    power = variance / scale**2
    for weights in values.weights:
        groups, places = weights.shape[1], weights.shape[3]
        step = (np.abs(weights).max(axis=3) * scale.reshape(groups, -1)).max(axis=2) / 127.0
        errors = float((step**2 @ power.reshape(groups, -1).sum(axis=1)).sum()) / 12.0 * places
        total += constants.WEIGHT_ERROR_FACTOR * errors
    return total / (float(values.gain @ variance) or 1.0)
