"""Second moments of layer inputs, for GPTQ: which errors of a layer's weights add up or cancel.

Collected while the faces pass by; memory does not grow with their number.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto

from ..arrays import F32, F64
from ..graph.edit import attribute
from . import constants


@dataclass
class InputCovariance:
    """Moments of patches x `(n,)`, the inputs of one output of a layer: channels, then kernel places.

    Attributes:
        product: `(n, n) float32`, the sum of x xᵀ.
        total: `(n,) float64`, the sum of x.
        count: Number of patches.
    """

    product: F32
    total: F64
    count: int = 0

    def covariance(self, centered: bool = True) -> F64:
        """The covariance, shrunk towards its diagonal the more the fewer patches there are.

        Args:
            centered: Subtract the mean; otherwise the result is the mean of x xᵀ.

        Returns:
            `(n, n) float64`.
        """
        count = max(1, self.count)
        mean = self.total / count
        matrix = self.product.astype(np.float64) / count
        matrix -= np.outer(mean, mean) if centered else 0.0
        share = len(mean) / (len(mean) + count)
        diagonal = np.diag(matrix).copy()
        matrix *= 1.0 - share
        np.fill_diagonal(matrix, diagonal)
        return matrix


class CovarianceCollector:
    """Accumulates the input moments of layers; call it with each batch's tensors.

    Layers that are grouped, dilated or have more than `MAX_INPUTS` inputs are left out.

    Attributes:
        moments: Layer -> its input moments so far.
    """

    def __init__(self, model: onnx.ModelProto, layers: Iterable[str]) -> None:
        shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
        wanted = set(layers)
        flat = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Flatten"}
        self._nodes: list[tuple[NodeProto, str, tuple[int, ...]]] = []
        self.moments: dict[str, InputCovariance] = {}
        for node in model.graph.node:
            if node.name not in wanted:
                continue
            shape = shapes[node.input[1]]
            size = _input_size(node, shape)
            if 0 < size <= constants.MAX_INPUTS:
                source = flat.get(node.input[0], node.input[0])
                self._nodes.append((node, source, shape))
                self.moments[node.name] = InputCovariance(
                    np.zeros((size, size), np.float32), np.zeros(size)
                )

    def __call__(self, values: Mapping[str, F32]) -> None:
        """Add a batch.

        Args:
            values: Tensor -> `(N, ...) float32`, for each layer its input; the input of a Flatten
                in front of the layer, if there is one.
        """
        for node, source, shape in self._nodes:
            x = input_patches(node, shape, values[source])
            moments = self.moments[node.name]
            # Moments may overflow; `round_weights` leaves such layers out.
            with np.errstate(over="ignore", invalid="ignore"):
                moments.product += x.T @ x
            moments.total += x.sum(axis=0, dtype=np.float64)
            moments.count += len(x)


def input_patches(node: NodeProto, shape: tuple[int, ...], values: F32) -> F32:
    """A sample of the patches that a layer multiplies by its weights.

    Args:
        node: A Conv, Gemm or MatMul.
        shape: The shape of its weights.
        values: `(N, ...) float32`, its input.

    Returns:
        `(P, n) float32`, about 128 patches.
    """
    if node.op_type in ("Gemm", "MatMul"):
        # A Flatten in front of a Gemm was left out: a row of the weights holds all that follows.
        width = values[0].size if node.op_type == "Gemm" else values.shape[-1]
        rows = values.reshape(-1, width)
        return rows[:: _sample_stride(len(rows))]
    kernel, (top, left, bottom, right) = shape[2:], _ints(node, "pads", 4, 0)
    down, across = _ints(node, "strides", 2, 1)
    if top or left or bottom or right:
        values = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
    if kernel == (1, 1):
        windows = values[..., np.newaxis, np.newaxis]
    else:
        windows = np.lib.stride_tricks.sliding_window_view(values, kernel, axis=(2, 3))
    places = np.moveaxis(windows[:, :, ::down, ::across], 1, 3)  # (N, H, W, C, kh, kw)
    count = int(np.prod(places.shape[:3]))
    index = np.unravel_index(np.arange(0, count, _sample_stride(count)), places.shape[:3])
    return places[index].reshape(len(index[0]), -1)


def _sample_stride(count: int) -> int:
    """Odd, so that the sample does not stay in the same columns of the image."""
    return max(1, count // constants.PATCHES) | 1


def _input_size(node: NodeProto, shape: tuple[int, ...]) -> int:
    """n of a layer that `input_patches` can read, 0 of others."""
    if node.op_type == "Gemm":
        supported = not attribute(node, "transA", 0)
        return shape[1 if attribute(node, "transB", 0) else 0] * supported
    if node.op_type == "MatMul":
        return shape[0] if len(shape) == 2 else 0
    padding = next((a.s for a in node.attribute if a.name == "auto_pad"), b"NOTSET")
    plain = set(_ints(node, "dilations", 2, 1)) == {1} and padding in (b"NOTSET", b"VALID")
    supported = len(shape) == 4 and attribute(node, "group", 1) == 1 and plain
    return int(np.prod(shape[1:])) * supported


def _ints(node: NodeProto, name: str, count: int, default: int) -> list[int]:
    return next((list(a.ints) for a in node.attribute if a.name == name), [default] * count)
