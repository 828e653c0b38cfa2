"""How much to scale each channel, and where to clip: by the error of what the INT8 layers compute.

Everything comes from the histograms and the weights: no further pass over the faces.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from ..export.graph import attribute
from .equalise import scale_groups
from .histogram import Histogram, pooled
from .layers import Choice
from .noise import Noise, best_share, noise_of
from .ranges import F64, METHODS

BALANCES = (0.0, 0.25, 0.4, 0.5, 0.6, 0.75, 1.0)
"""Exponents of s = peak ** a / weight ** (1 - a): 0 evens out the weights, 1 the activations, 0.5
is Nagel's. (G. Xiao et al., SmoothQuant, 2023, has the same knob.)"""
WEIGHTS = 4.0
"""How much the rounding of weights counts, as against that of activations: it is the same at every
place of the image. Of 1, 4 and 16, 4 kept the embeddings of two networks closest."""
_FAINTEST = 1e-3
"""Channels fainter than this share of the loudest are scaled as if they were at it."""


@dataclass(frozen=True)
class _Reading:
    """What one tensor's INT8 readers make of it: `weights` `(O, C, K) float32` each."""

    noise: Noise
    weights: tuple[npt.NDArray[np.float32], ...]

    @property
    def gain(self) -> F64:
        """`(C,)`, the sum of the squared weights that read each channel."""
        squares = [np.square(w, dtype=np.float64).sum(axis=(0, 2)) for w in self.weights]
        return np.asarray(np.sum(squares, axis=0))

    @property
    def loudest(self) -> F64:
        """`(C,)`, the largest weight that reads each channel."""
        return np.asarray(np.max([np.abs(w).max(axis=(0, 2)) for w in self.weights], axis=0), float)


def layer_columns(node: onnx.NodeProto, weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A layer's weights as `(O, C, K)`: output channels, input channels, places of the kernel."""
    if node.op_type == "Conv":
        return weight.reshape(*weight.shape[:2], -1)
    rows = node.op_type == "Gemm" and attribute(node, "transB", 0)
    return (weight if rows else weight.T)[:, :, None]


def channel_scales(
    model: onnx.ModelProto, choice: Choice, seen: Mapping[str, Histogram]
) -> dict[str, F64]:
    """Tensor -> `(C,)` scale for every tensor that equalisation should divide."""
    groups = scale_groups(model)
    readings = _readings(model, choice, seen)
    together: dict[str, list[_Reading]] = {}
    for tensor in choice.tensors:
        if tensor in groups:
            together.setdefault(groups[tensor], []).append(readings[tensor])
    found = {group: _best_scale(members) for group, members in together.items()}
    return {tensor: found[group] for tensor, group in groups.items() if group in found}


def tensor_ranges(
    model: onnx.ModelProto,
    choice: Choice,
    seen: Mapping[str, Histogram],
    scales: Mapping[str, F64],
    method: str,
) -> dict[str, float]:
    """Tensor -> amax after scaling; a tensor that is always zero gets 1, which represents it exactly.

    `auto` clips where the error of what the INT8 layers compute is least, other methods look at the
    tensor alone.
    """
    readings = _readings(model, choice, seen)
    ranges = {}
    for tensor in choice.tensors:
        histogram = seen[tensor]
        scale = scales.get(tensor, np.ones(len(histogram.peak)))
        top = float((histogram.peak / scale).max())
        if top == 0.0:
            ranges[tensor] = 1.0
        elif method == "auto":
            reading = readings[tensor]
            ranges[tensor] = top * best_share(reading.noise, scale, reading.gain)[0]
        else:
            ranges[tensor] = METHODS[method](*pooled(histogram, scale))
    return ranges


def _readings(
    model: onnx.ModelProto, choice: Choice, seen: Mapping[str, Histogram]
) -> dict[str, _Reading]:
    constants = {t.name: t for t in model.graph.initializer}
    chosen = set(choice.int8)
    weights: dict[str, list[npt.NDArray[np.float32]]] = {}
    for node in model.graph.node:
        if node.name in chosen:
            columns = layer_columns(node, numpy_helper.to_array(constants[node.input[1]]))
            channels = len(seen[node.input[0]].peak)
            # Behind a Flatten, a channel is a run of columns.
            columns = columns.reshape(len(columns), channels, -1)
            weights.setdefault(node.input[0], []).append(columns)
    return {name: _Reading(noise_of(seen[name]), tuple(w)) for name, w in weights.items()}


def _best_scale(members: Sequence[_Reading]) -> F64:
    """Of no scaling and `BALANCES`, what gives the least error over all tensors of a group."""
    peak = np.exp(np.mean([np.log(_floored(m.noise.peak)) for m in members], axis=0))
    weight = np.max([_floored(m.loudest) for m in members], axis=0)
    candidates = [np.ones(len(peak))]
    candidates += [peak**a / weight ** (1.0 - a) for a in BALANCES]
    candidates = [scale / np.exp(np.log(scale).mean()) for scale in candidates]
    return min(candidates, key=lambda scale: sum(_error(m, scale) for m in members))


def _floored(values: F64) -> F64:
    """Relative to the loudest channel, and never far below it: a silent channel is no reason to
    blow it up."""
    return np.maximum(values / (values.max() or 1.0), _FAINTEST)


def _error(reading: _Reading, scale: F64) -> float:
    """Error over signal in the sums of the readers, from rounded activations and weights."""
    signal = float(reading.gain @ reading.noise.power) or 1.0
    total = best_share(reading.noise, scale, reading.gain)[1]
    power = float((reading.noise.power / scale**2).sum())
    for weights in reading.weights:
        step = np.abs(weights * scale[:, None]).max(axis=(1, 2)) / 127.0
        total += WEIGHTS * float((step**2).sum()) / 12.0 * weights.shape[2] * power
    return total / signal
