"""The FP16 flavour: weights and arithmetic in half precision, float32 input and output.

onnxruntime's CPU computes FP16 graphs in float32, so it cannot see an overflow that a GPU would
have. Whether activations fit is therefore measured on the float32 network.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from ..errors import ModelError
from .check import Agreement, compare
from .graph import fresh
from .reference import Floats, onnx_embedder, run_once

LARGEST = float(np.finfo(np.float16).max)
SMALLEST_NORMAL = float(np.finfo(np.float16).smallest_normal)
MIN_COSINE = 0.999


@dataclass(frozen=True)
class Half:
    """The FP16 model and what the narrow range did to it; `peak` is the largest activation."""

    model: ModelProto
    agreement: Agreement
    clamped_weights: int
    denormal_weights: int
    peak: float


def half_flavour(
    model: ModelProto, inputs: Floats, expected: Floats, notify: Callable[[str], None]
) -> Half | None:
    """The FP16 flavour of a finished float32 model, or None (and why, to `notify`).

    `inputs (N, 3, H, W)` and `expected (N, D)` are check.py's.
    """
    try:
        peak, where = peak_activation(model, inputs)
        if not peak <= LARGEST:
            raise ModelError(
                f"activations reach {peak:.4g} at {where}, FP16 ends at {LARGEST:.0f}"
            )
        half = _convert(model)
        agreement = compare(
            onnx_embedder(half.SerializeToString()), inputs, expected, min_cosine=MIN_COSINE
        )
    except ModelError as error:
        notify(f"no FP16 flavour: {error.message}")
        return None
    clamped, denormal = _narrowed(model)
    return Half(half, agreement, clamped, denormal, peak)


def peak_activation(model: ModelProto, inputs: Floats) -> tuple[float, str]:
    """The largest magnitude any tensor takes for these inputs, and the tensor's name."""
    probe = ModelProto()
    probe.CopyFrom(model)
    graph = probe.graph
    names = [
        value.name
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    ]
    del graph.output[:]
    for name in names:
        size, top = fresh(graph, f"{name}_abs"), fresh(graph, f"{name}_peak")
        graph.node.append(helper.make_node("Abs", [name], [size]))
        graph.node.append(helper.make_node("ReduceMax", [size], [top], keepdims=0))
        graph.output.append(helper.make_tensor_value_info(top, TensorProto.FLOAT, ()))
    data = probe.SerializeToString()
    peaks = np.max([run_once(data, part) for part in np.array_split(inputs, 4)], axis=0)
    return float(peaks.max()), names[int(peaks.argmax())]


def _convert(model: ModelProto) -> ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = ModelProto()
    copy.CopyFrom(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of every weight that is rounded; counted below
            half: ModelProto = convert_float_to_float16(copy, keep_io_types=True)
        half.graph.ClearField("value_info")
        _TMP_sort(half)
        half = onnx.shape_inference.infer_shapes(half, strict_mode=True, data_prop=True)
        onnx.checker.check_model(half, full_check=True)
    except (
        ValueError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as error:
        raise ModelError(f"onnxruntime's converter failed: {error}") from error
    return half


def _narrowed(model: ModelProto) -> tuple[int, int]:
    """How many weights FP16 cannot hold (they are clamped), or holds with fewer digits."""
    clamped = denormal = 0
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            size = np.abs(numpy_helper.to_array(tensor))
            clamped += int(np.count_nonzero(size > LARGEST))
            denormal += int(np.count_nonzero((size > 0) & (size < SMALLEST_NORMAL)))
    return clamped, denormal


def _TMP_sort(model):
    g=model.graph; have={t.name for t in g.initializer}|{i.name for i in g.input}|{""}
    todo=list(g.node); out=[]
    while todo:
        rest=[]
        for n in todo:
            if all(i in have for i in n.input):
                out.append(n); have|=set(n.output)
            else: rest.append(n)
        todo=rest
    out=[type(n).FromString(n.SerializeToString()) for n in out]
    del g.node[:]
    g.node.extend(out)
