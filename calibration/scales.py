"""How much to scale each channel, and where to clip: by the error of what the INT8 layers compute.

Everything comes from the histograms and the weights: no further pass over the faces.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from .equalise import scale_groups
from .histogram import F32, F64, Histogram
from .layers import Choice
from .magnitudes import Magnitudes, Moments, best_amax, magnitudes, moments, pooled
from .ranges import METHODS
from .weights import layer_columns

BALANCES = (0.0, 0.25, 0.4, 0.5, 0.6, 0.75, 1.0)
"""Exponents of s = peak ** a / weight ** (1 - a): 0 evens out the weights, 1 the activations, 0.5
is Nagel's. (G. Xiao et al., SmoothQuant, 2023, has the same knob.)"""
WEIGHTS = 4.0
"""How much the rounding of weights counts, as against that of activations: it is the same at every
place of the image. Half is as good in the mean and worse for unusual faces, double is worse in the
mean (docs/results/int8.md)."""
_FAINTEST = 1e-3
"""Channels fainter than this share of the loudest are scaled as if they were at it."""


@dataclass(frozen=True)
class Reading:
    """What one tensor's INT8 readers make of it: `weights` `(O, C, K) float32` each."""

    sizes: Magnitudes
    cumulated: Moments
    weights: tuple[F32, ...]

    @property
    def gain(self) -> F64:
        """`(C,)`, the sum of the squared weights that read each channel."""
        squares = [np.einsum("ock,ock->c", w, w, dtype=np.float64) for w in self.weights]
        return np.asarray(np.sum(squares, axis=0))

    @property
    def loudest(self) -> F64:
        """`(C,)`, the largest weight that reads each channel."""
        return np.asarray(np.max([np.abs(w).max(axis=(0, 2)) for w in self.weights], axis=0), float)


def readings(
    model: onnx.ModelProto,
    choice: Choice,
    seen: Mapping[str, Histogram],
    centres: Mapping[str, F64],
) -> dict[str, Reading]:
    """What the INT8 layers read, tensor by tensor; `centres` are subtracted first."""
    constants = {t.name: t for t in model.graph.initializer}
    chosen = set(choice.int8)
    weights: dict[str, list[F32]] = {}
    for node in model.graph.node:
        if node.name in chosen:
            columns = layer_columns(node, numpy_helper.to_array(constants[node.input[1]]))
            # Behind a Flatten, a channel is a run of columns.
            columns = columns.reshape(len(columns), len(seen[node.input[0]].low), -1)
            weights.setdefault(node.input[0], []).append(columns)
    found = {}
    for name, arrays in weights.items():
        sizes = magnitudes(seen[name], centres.get(name, np.zeros(len(seen[name].low))))
        found[name] = Reading(sizes, moments(sizes), tuple(arrays))
    return found


def channel_scales(model: onnx.ModelProto, read: Mapping[str, Reading]) -> dict[str, F64]:
    """Tensor -> `(C,)` scale for every tensor that equalisation should divide."""
    groups = scale_groups(model)
    together: dict[str, list[Reading]] = {}
    for tensor, reading in read.items():
        if tensor in groups:
            together.setdefault(groups[tensor], []).append(reading)
    found = {group: _best_scale(members) for group, members in together.items()}
    return {tensor: found[group] for tensor, group in groups.items() if group in found}


def tensor_ranges(
    read: Mapping[str, Reading], scales: Mapping[str, F64], method: str
) -> dict[str, float]:
    """Tensor -> amax after scaling; a tensor that is always zero gets 1, which represents it exactly.

    `auto` clips where the error of what the INT8 layers compute is least, other methods look at the
    tensor alone.
    """
    ranges = {}
    for tensor, reading in read.items():
        sizes = reading.sizes
        scale = scales.get(tensor, np.ones(len(sizes.peak)))
        if sizes.peak.max() == 0.0:
            ranges[tensor] = 1.0
        elif method == "auto":
            ranges[tensor] = best_amax(sizes, reading.cumulated, scale, reading.gain)[0]
        else:
            ranges[tensor] = METHODS[method](*pooled(sizes, scale))
    return ranges


def _best_scale(members: Sequence[Reading]) -> F64:
    """Of no scaling and `BALANCES`, what gives the least error over all tensors of a group."""
    peak = np.exp(np.mean([np.log(_floored(m.sizes.peak)) for m in members], axis=0))
    weight = np.max([_floored(m.loudest) for m in members], axis=0)
    candidates = [np.ones(len(peak))]
    candidates += [peak**a / weight ** (1.0 - a) for a in BALANCES]
    candidates = [scale / np.exp(np.log(scale).mean()) for scale in candidates]
    return min(candidates, key=lambda scale: sum(_error(m, scale) for m in members))


def _floored(values: F64) -> F64:
    """Relative to the loudest channel, and never far below it: a silent channel is no reason to
    blow it up."""
    return np.maximum(values / (values.max() or 1.0), _FAINTEST)


def _error(reading: Reading, scale: F64) -> float:
    """Error over signal in the sums of the readers, from rounded activations and weights.

    What rounded weights make of a channel's mean goes into the bias: its variance remains.
    """
    variance = reading.sizes.variance
    total = best_amax(reading.sizes, reading.cumulated, scale, reading.gain)[1]
    spread = float((variance / scale**2).sum())
    for weights in reading.weights:
        step = (np.abs(weights).max(axis=2) * scale).max(axis=1) / 127.0
        total += WEIGHTS * float((step**2).sum()) / 12.0 * weights.shape[2] * spread
    return total / (float(reading.gain @ variance) or 1.0)
