"""Bias correction: rounding weights shifts a layer's mean output, and its bias takes that back.

The shift of output o is the sum over the inputs of (w - rounded w) * mean(x), known from the
histograms. (M. Nagel et al., 2019, as in equalise.py.)
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from ..arrays import F64
from ..graph.layer_weights import add_to_bias, layer_columns, weight_scales
from ..graph.layers import Int8Choice


def correct_biases(model: onnx.ModelProto, choice: Int8Choice, means: Mapping[str, F64]) -> None:
    """Add the shift to the biases of the INT8 layers, in place; `means[t]` is `(C,)` of tensor t.

    MatMul, which has no bias, stays as it is. At the image's border, where padding adds zeros, the
    correction is a little too large.
    """
    constants = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.name not in choice.int8 or node.op_type == "MatMul" or node.input[0] not in means:
            continue
        weight = numpy_helper.to_array(constants[node.input[1]])
        columns = layer_columns(node, weight)
        mean = means[node.input[0]]
        mean = np.repeat(mean, columns.shape[1] // len(mean))
        # Output by output: in float64 all the weights of a large layer would take much memory.
        steps = weight_scales(node, weight).astype(np.float64)
        shift = [
            (row - np.rint(row / step) * step).sum(axis=1) @ mean
            for row, step in zip(columns, steps, strict=True)
        ]
        add_to_bias(model.graph, node, np.array(shift))
