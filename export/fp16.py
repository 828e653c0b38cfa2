"""The FP16 flavour: weights and arithmetic in half precision, float32 input and output.

onnxruntime's CPU computes FP16 graphs in float32, so it sees neither an overflow nor a rounding that
a GPU would have. What the narrow type does is therefore seen on the emulation of half_graph.py; a
layer that overflows, or costs too much cosine, stays float32.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from ..arrays import F32
from ..errors import ModelError
from ..graph.edit import initializers, reads
from ..graph.fp16 import LARGEST, emulate_fp16, to_fp16
from ..graph.run import activations, onnx_embedder, peaks
from .parity import Parity, check_parity, measure_parity

SMALLEST_NORMAL = float(np.finfo(np.float16).smallest_normal)

FP16_MIN_COSINE = 0.999

HEADROOM = 4.0
"""Faces in the field reach further than the probes: a quarter of FP16's range is the limit."""

_WEIGHTED = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Fp16Model:
    """The FP16 model and what the narrow range did to it."""

    model: ModelProto
    agreement: Parity
    """Of the emulated model: every tensor rounded to FP16, sums in float32."""
    kept_float: tuple[str, ...]
    """Nodes that stay float32."""
    denormal_weights: int
    """Weights below FP16's normal range, which keep fewer digits."""
    peak: float
    """The largest activation, kept float or not."""


def fp16_model(
    model: ModelProto, inputs: F32, expected: F32, notify: Callable[[str], None]
) -> Fp16Model | None:
    """The FP16 flavour of a finished float32 model, or None (and why, to `notify`).

    `inputs (N, 3, H, W)` and `expected (N, D)` are check.py's.
    """
    try:
        tops = peaks(model, inputs)
        kept, agreement = _settle(model, _overflowing(model, tops), inputs, expected)
        half = to_fp16(model, kept)
        check_parity(
            onnx_embedder(half.SerializeToString()), inputs, expected, min_cosine=FP16_MIN_COSINE
        )
    except ModelError as error:
        notify(f"no FP16 flavour: {error.message}")
        return None
    names = tuple(node.name for node in model.graph.node if node.name in kept)
    if names:
        notify(f"{len(names)} nodes stay FP32 in the FP16 flavour, the first is {names[0]}")
    return Fp16Model(half, agreement, names, _denormals(model), max(tops.values()))


def _overflowing(model: ModelProto, tops: dict[str, float]) -> set[str]:
    """Nodes that touch a tensor, or hold a weight, that FP16 cannot."""
    large = {name for name, top in tops.items() if not top <= LARGEST / HEADROOM}
    large.update(
        name
        for name, tensor in initializers(model.graph).items()
        if tensor.data_type == TensorProto.FLOAT
        and np.abs(numpy_helper.to_array(tensor)).max(initial=0) > LARGEST
    )
    return _touching(model, large)


def _touching(model: ModelProto, tensors: set[str]) -> set[str]:
    return {n.name for n in model.graph.node if tensors & (reads(n) | set(n.output))}


def _settle(
    model: ModelProto, kept: set[str], inputs: F32, expected: F32
) -> tuple[set[str], Parity]:
    """Keep more nodes float32, the most harmful first, until the embedding is close enough."""
    more = 1
    while not all(node.name in kept for node in model.graph.node if node.op_type in _WEIGHTED):
        emulated = emulate_fp16(model, kept)
        agreement = measure_parity(onnx_embedder(emulated.SerializeToString()), inputs, expected)
        if agreement.min_cosine >= FP16_MIN_COSINE:
            return kept, agreement
        harmful = _most_harmful(model, emulated, kept, inputs)[:more]
        kept = kept | _touching(model, set(harmful))
        more *= 2
    raise ModelError("no layer with weights fits FP16")


def _most_harmful(
    model: ModelProto, emulated: ModelProto, kept: set[str], inputs: F32
) -> list[str]:
    """Tensors in FP16, in the order of the relative error they add to that of their maker's inputs."""
    exact, rounded = activations(model, inputs[:2]), activations(emulated, inputs[:2])

    def error(name: str) -> float:
        if name not in exact or name not in rounded:
            return 0.0
        size = float(np.linalg.norm(exact[name])) or 1.0
        found = float(np.linalg.norm(exact[name] - rounded[name])) / size
        return found if np.isfinite(found) else LARGEST

    def added(node: NodeProto) -> float:
        return error(node.output[0]) - max(map(error, reads(node)), default=0.0)

    narrow = {
        name for n in model.graph.node if n.name not in kept for name in (*reads(n), *n.output)
    }
    nodes = [node for node in model.graph.node if node.output[0] in narrow]
    return [node.output[0] for node in sorted(nodes, key=added, reverse=True)]


def _denormals(model: ModelProto) -> int:
    count = 0
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            size = np.abs(numpy_helper.to_array(tensor))
            count += int(np.count_nonzero((size > 0) & (size < SMALLEST_NORMAL)))
    return count
