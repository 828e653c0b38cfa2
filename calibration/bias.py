"""Bias correction: rounding weights shifts a layer's mean output, and its bias takes that back.

The shift of output o is the sum over the inputs of (w - rounded w) * mean(x), known from the
histograms. (M. Nagel et al., 2019, as in equalise.py.)
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from .histogram import F64
from .layers import Choice
from .weights import add_to_bias, layer_columns, weight_steps


def correct_biases(model: onnx.ModelProto, choice: Choice, means: Mapping[str, F64]) -> None:
    """Add the shift to the biases of the INT8 layers, in place; `means[t]` is `(C,)` of tensor t.

    MatMul, which has no bias, stays as it is. At the image's border, where padding adds zeros, the
    correction is a little too large.
    """
    constants = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.name not in choice.int8 or node.op_type == "MatMul" or node.input[0] not in means:
            continue
        weight = numpy_helper.to_array(constants[node.input[1]])
        step = weight_steps(node, weight)[:, None, None].astype(np.float64)
        columns = layer_columns(node, weight).astype(np.float64)
        lost = (columns - np.rint(columns / step) * step).sum(axis=2)
        mean = means[node.input[0]]
        add_to_bias(model.graph, node, lost @ np.repeat(mean, lost.shape[1] // len(mean)))
