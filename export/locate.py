"""Names the first node from which two versions of a network differ.

Steps of export keep the names of the tensors they do not remove, so equal names are compared.
"""

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from ..errors import ModelError
from .observe import activations
from .reference import Floats

TOLERANCE = 1e-3
"""Relative, of the whole tensor: far above what the order of float32 sums does."""


def first_difference(before: ModelProto, after: ModelProto, inputs: Floats) -> str:
    """`NAME (OPERATOR)` of `after`'s first differing node; "" if none, or one does not run."""
    try:
        exact, found = activations(before, inputs), activations(after, inputs)
    except ModelError:
        return ""
    for node in after.graph.node:
        for name in node.output:
            if name not in exact or name not in found or found[name].dtype.kind != "f":
                continue
            a, b = exact[name].astype(np.float64), found[name].astype(np.float64)
            if a.shape != b.shape or not _close(a, b):
                return f"{node.name or name} ({node.op_type})"
    return ""


def _close(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> bool:
    with np.errstate(all="ignore"):
        gap = float(np.linalg.norm(a - b))
        return gap <= TOLERANCE * float(np.linalg.norm(a)) + 1e-12
