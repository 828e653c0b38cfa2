"""No network with NaN among its weights goes on, from wherever it comes.

NaN hides: QuantizeLinear makes an integer of it, TensorRT builds an engine around it.
"""

import numpy as np
from onnx import ModelProto, TensorProto
from onnx.numpy_helper import to_array

from ..errors import ModelError
from .graph import all_nodes

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_COMPARED = ("Clip", "Max", "Min", "Where")
"""Operators for which infinity is a fair number: no bound, or a mask."""


def check_finite(model: ModelProto) -> None:
    """Raise ModelError that names the first weight with NaN or infinity in it."""
    counted = {
        name for node in all_nodes(model.graph) if node.op_type not in _COMPARED
        for name in node.input
    }  # fmt: skip
    for tensor in model.graph.initializer:
        if tensor.data_type not in _FLOATS:
            continue
        values = to_array(tensor)
        if np.isfinite(values).all():
            continue
        holds_nan = bool(np.isnan(values).any())
        if holds_nan or tensor.name in counted:
            raise ModelError(
                f"weight {tensor.name} holds {'NaN' if holds_nan else 'infinity'}:"
                f" {int((~np.isfinite(values)).sum())} of {values.size} numbers are not finite",
                "the training diverged or the file is damaged: export it again",
            )
