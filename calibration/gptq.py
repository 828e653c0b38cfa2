"""GPTQ: propagate each column's rounding error to the remaining columns through the inverse input
covariance, so that the error of a layer's sums over real inputs is small, not that of each weight.

(E. Frantar et al., GPTQ, 2023, after the optimal brain surgeon; columns go in the order of the
largest inputs first.)

Bias correction takes back what rounding leaves of a layer's mean output: for output o the sum over the
inputs of (w - rounded w) * mean(x), known from the histograms. (M. Nagel et al., Data-free
quantization through weight equalization and bias correction, 2019.)
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from ..arrays import F32, F64
from ..graph.eight_bit import INT8, EightBit, eight_bit_format
from ..graph.layer_weights import (
    add_to_bias,
    groups_of,
    has_bias,
    layer_columns,
    output_axis,
    weight_scales,
)
from ..graph.layers import Int8Choice
from . import constants
from .covariance import InputCovariance
from .equalization import equalize
from .table import CalibrationTable


@dataclass(frozen=True)
class RoundedWeight:
    """A layer's weights, rounded to numbers of its 8-bit format.

    Attributes:
        weight: float32 in the layout of the layer's own weights, after equalization.
        shift: `(O,) float64`, for the layer's bias: the mean output that rounding took away.
    """

    weight: F32
    shift: F64


def round_weights(
    model: onnx.ModelProto,
    table: CalibrationTable,
    moments: Mapping[str, InputCovariance],
    *,
    correct_biases: bool = True,
) -> dict[str, RoundedWeight]:
    """Round the weights of layers for their real inputs.

    Args:
        model: A float model whose nodes are named.
        table: Its scales and ranges.
        moments: Layer -> moments of its unscaled inputs. Layers whose moments overflowed are left
            out.
        correct_biases: Whether biases take back the mean error; without it, it counts as an error.

    Returns:
        Layer -> its rounded weights.
    """
    form = eight_bit_format(table.precision)
    scaled = equalize(model, table.scales)
    weights = {t.name: t for t in scaled.graph.initializer}
    rounded = {}
    for node in scaled.graph.node:
        if node.name not in moments or node.input[0] not in table.ranges:
            continue
        weight = numpy_helper.to_array(weights[node.input[1]])
        columns = layer_columns(node, weight).astype(np.float64)
        flat = columns.reshape(len(columns), -1)
        channel_scale = table.scales.get(node.input[0], np.ones(1))
        input_scale = np.repeat(channel_scale, flat.shape[1] // len(channel_scale))
        inputs = moments[node.name]
        corrected = correct_biases and has_bias(scaled.graph, node)
        hessian = inputs.covariance(corrected) / np.outer(input_scale, input_scale)
        if not np.isfinite(hessian).all():
            continue
        mean = inputs.total / max(1, inputs.count) / input_scale
        # The rounding of the inputs adds independent errors.
        diagonal = np.diag(hessian).copy()
        power = diagonal + mean**2 if corrected else diagonal
        scale = table.ranges[node.input[0]] / form.largest
        np.fill_diagonal(hessian, diagonal + form.rounding_noise(scale, power))
        scales = weight_scales(node, weight, form).astype(np.float64)
        result = gptq_round(flat, scales, hessian, form)
        rows = result.astype(np.float32).reshape(columns.shape)
        if node.op_type == "Conv":
            rows = rows.reshape(weight.shape)
        else:
            rows = rows[:, :, 0] if output_axis(node, 2) == 0 else rows[:, :, 0].T
        shift = (flat - result) @ mean * corrected
        rounded[node.name] = RoundedWeight(np.ascontiguousarray(rows), shift)
    return rounded


def gptq_round(weights: F64, scale: F64, hessian: F64, form: EightBit = INT8) -> F64:
    """Round weights so that the error e of each row has a small e @ hessian @ e.

    The largest weight of a row stays the format's largest number, so that the scale can be read off the weights.

    Args:
        weights: `(O, n) float64`.
        scale: `(O,) float64`, each row's scale.
        hessian: `(n, n) float64`, positive definite: the covariance of the inputs.
        form: The 8-bit format.

    Returns:
        `(O, n) float64`, numbers of the format times `scale`.
    """
    order = np.argsort(-np.diag(hessian), kind="stable")
    # Row i of this factor says how column i's error is spread over the columns after it.
    factor = np.linalg.cholesky(np.linalg.inv(hessian[np.ix_(order, order)])).T
    remaining, scales = weights[:, order], scale[:, None]
    peak = np.abs(remaining) >= (form.largest - constants.PEAK_MARGIN) * scales
    result = np.where(peak, np.sign(remaining) * form.largest * scales, 0.0)
    for start in range(0, len(order), constants.BLOCK):
        stop = min(start + constants.BLOCK, len(order))
        errors = np.empty((len(remaining), stop - start))
        for i in range(start, stop):
            nearest = form.nearest(remaining[:, i] / scale) * scale
            result[:, i] = np.where(peak[:, i], result[:, i], nearest)
            errors[:, i - start] = (remaining[:, i] - result[:, i]) / factor[i, i]
            remaining[:, i + 1 : stop] -= np.outer(errors[:, i - start], factor[i, i + 1 : stop])
        remaining[:, stop:] -= errors @ factor[start:stop, stop:]
    return result[:, np.argsort(order)]


def correct_biases(
    model: onnx.ModelProto,
    choice: Int8Choice,
    means: Mapping[str, F64],
    form: EightBit = INT8,
) -> None:
    """Correct the biases of the quantized layers, in place.

    A MatMul without one stays as it is. At the image's border, where padding adds zeros, the
    correction is slightly too large.

    Args:
        model: A float model; changed by the call.
        choice: Which of its layers become INT8.
        means: Tensor -> `(C,) float64`, the mean of each channel; layers that read other tensors
            stay as they are.
        form: The 8-bit format of the weights.
    """
    weights = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.name not in choice.int8 or node.input[0] not in means:
            continue
        if not has_bias(model.graph, node):
            continue
        weight = numpy_helper.to_array(weights[node.input[1]])
        columns = layer_columns(node, weight)
        mean = means[node.input[0]]
        groups = groups_of(node)
        mean = np.repeat(mean, groups * columns.shape[1] // len(mean)).reshape(groups, -1)
        outputs = len(columns) // groups  # of a group
        # Output by output: a large layer's weights in float64 would take much memory at once.
        scales = weight_scales(node, weight, form).astype(np.float64)
        shift = [
            (row - form.nearest(row / scale) * scale).sum(axis=1) @ mean[o // outputs]
            for o, (row, scale) in enumerate(zip(columns, scales, strict=True))
        ]
        add_to_bias(model.graph, node, np.array(shift))
