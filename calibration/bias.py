"""Bias correction: rounding weights shifts a layer's mean output, and its bias takes that back.

The shift of output o is the sum over the inputs of (w - rounded w) * mean(x), known from the
histograms. (M. Nagel et al., 2019, as in equalise.py.)
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from ..export.graph import add_weight, attribute
from .layers import Choice
from .quantize import weight_steps
from .ranges import F64
from .scales import layer_columns


def correct_biases(model: onnx.ModelProto, choice: Choice, means: Mapping[str, F64]) -> None:
    """Add the shift to the biases of the INT8 layers, in place; `means[t]` is `(C,)` of tensor t.

    A layer without a bias gets one, except MatMul, which cannot have one. At the image's border,
    where padding adds zeros, the correction is a little too large.
    """
    constants = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.name not in choice.int8 or node.op_type == "MatMul" or node.input[0] not in means:
            continue
        weight = numpy_helper.to_array(constants[node.input[1]])
        step = weight_steps(node, weight)
        columns = layer_columns(node, weight).astype(np.float64)
        rounded = np.rint(columns / step[:, None, None]) * step[:, None, None]
        lost = (columns - rounded).sum(axis=2)
        mean = means[node.input[0]]
        shift = lost @ np.repeat(mean, lost.shape[1] // len(mean))
        scale = float(attribute(node, "alpha", 1.0)) / float(attribute(node, "beta", 1.0) or 1.0)
        old = node.input[2] if len(node.input) > 2 else ""
        bias = numpy_helper.to_array(constants[old]) if old in constants else 0.0
        if old and old not in constants:
            continue
        name = add_weight(
            model.graph, f"{node.name}_bias", (bias + scale * shift).astype(np.float32)
        )
        del node.input[2:]
        node.input.append(name)
