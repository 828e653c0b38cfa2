"""Bias correction: rounding weights shifts a layer's mean output, and its bias takes that back.

The shift of output o is the sum over the inputs of (w - rounded w) * mean(x), known from the
histograms. (M. Nagel et al., Data-free quantization through weight equalization and bias
correction, 2019.)
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from ..arrays import F64
from ..graph.eight_bit import INT8, EightBit
from ..graph.layer_weights import add_to_bias, groups_of, has_bias, layer_columns, weight_scales
from ..graph.layers import Int8Choice


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
    constants = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.name not in choice.int8 or node.input[0] not in means:
            continue
        if not has_bias(model.graph, node):
            continue
        weight = numpy_helper.to_array(constants[node.input[1]])
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
