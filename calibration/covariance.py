"""Second moments of what layers read: which errors of their weights add up, and which cancel.

Collected while the faces pass by; memory does not grow with them. Knows nothing of rounding.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto

from ..arrays import F32, F64
from ..graph.edit import attribute

WIDEST = 1024
"""Inputs of a layer beyond which its matrix would take too much memory (4 MB at 1024)."""

_PATCHES = 128
"""Places of an image that are looked at, of each batch: neighbours say much the same."""


@dataclass
class InputCovariance:
    """Of patches x `(n,)`, what one output of a layer is computed from: channels first, then places
    of the kernel. `product (n, n)` is the sum of x xᵀ, `total (n,)` of x, `count` their number."""

    product: F32
    total: F64
    count: int = 0

    def covariance(self, centred: bool = True) -> F64:
        """`(n, n)`; shrunk towards its diagonal by as much as so few patches are worth.

        Not `centred`, it is the mean of x xᵀ.
        """
        count = max(1, self.count)
        mean = self.total / count
        found = self.product.astype(np.float64) / count
        found -= np.outer(mean, mean) if centred else 0.0
        share = len(mean) / (len(mean) + count)
        diagonal = np.diag(found).copy()
        found *= 1.0 - share
        np.fill_diagonal(found, diagonal)
        return found


class CovarianceCollector:
    """Collects the moments of some layers of a float model; called with each batch's tensors.

    Layers that are grouped, dilated or wider than `WIDEST` are left out.
    """

    def __init__(self, model: onnx.ModelProto, layers: Iterable[str]) -> None:
        shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
        wanted = set(layers)
        flat = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Flatten"}
        self._nodes: list[tuple[NodeProto, str, tuple[int, ...]]] = []
        self.found: dict[str, InputCovariance] = {}
        for node in model.graph.node:
            if node.name not in wanted:
                continue
            shape = shapes[node.input[1]]
            wide = _width(node, shape)
            if 0 < wide <= WIDEST:
                source = flat.get(node.input[0], node.input[0])
                self._nodes.append((node, source, shape))
                self.found[node.name] = InputCovariance(
                    np.zeros((wide, wide), np.float32), np.zeros(wide)
                )

    def __call__(self, values: Mapping[str, F32]) -> None:
        """`values` holds what every layer reads; before a Flatten if one is in between."""
        for node, source, shape in self._nodes:
            x = patches(node, shape, values[source])
            seen = self.found[node.name]
            with np.errstate(over="ignore", invalid="ignore"):  # `round_weights` leaves those out
                seen.product += x.T @ x
            seen.total += x.sum(axis=0, dtype=np.float64)
            seen.count += len(x)


def patches(node: NodeProto, shape: tuple[int, ...], values: F32) -> F32:
    """`(P, n)`: some of the patches that a layer with weights of this shape multiplies."""
    if node.op_type == "Gemm":
        return values.reshape(len(values), -1)
    if node.op_type == "MatMul":
        rows = values.reshape(-1, values.shape[-1])
        return rows[:: _stride(len(rows))]
    kernel, (top, left, bottom, right) = shape[2:], _ints(node, "pads", 4, 0)
    down, across = _ints(node, "strides", 2, 1)
    if top or left or bottom or right:
        values = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(values, kernel, axis=(2, 3))
    places = np.moveaxis(windows[:, :, ::down, ::across], 1, 3)  # (N, H, W, C, kh, kw)
    count = int(np.prod(places.shape[:3]))
    index = np.unravel_index(np.arange(0, count, _stride(count)), places.shape[:3])
    return places[index].reshape(len(index[0]), -1)


def _stride(count: int) -> int:
    """Odd, so that it does not always meet the same column of the image."""
    return max(1, count // _PATCHES) | 1


def _width(node: NodeProto, shape: tuple[int, ...]) -> int:
    """n of a layer that `patches` can read, 0 of others."""
    if node.op_type == "Gemm":
        ready = not attribute(node, "transA", 0)
        return shape[1 if attribute(node, "transB", 0) else 0] * ready
    if node.op_type == "MatMul":
        return shape[0] if len(shape) == 2 else 0
    padding = next((a.s for a in node.attribute if a.name == "auto_pad"), b"NOTSET")
    plain = set(_ints(node, "dilations", 2, 1)) == {1} and padding in (b"NOTSET", b"VALID")
    ready = len(shape) == 4 and attribute(node, "group", 1) == 1 and plain
    return int(np.prod(shape[1:])) * ready


def _ints(node: NodeProto, name: str, count: int, default: int) -> list[int]:
    return next((list(a.ints) for a in node.attribute if a.name == name), [default] * count)
