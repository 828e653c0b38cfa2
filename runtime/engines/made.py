"""What a backend made of a model: the values that `build` puts into the bundle and hands on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import TensorProto

COMPUTE = ("Conv", "Gemm", "MatMul")
"""The operators with weights, in which nearly all time is spent."""


@dataclass(frozen=True)
class Made:
    """`layers` counts the operators with weights by precision, as `Built` says.

    `facts` go into the engine's fingerprint as they are, `notes` to the person.
    """

    layers: Mapping[str, int]
    integer_kernels: int
    facts: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    timing_cache: bytes = field(default=b"", repr=False)


def layer_precisions(model: onnx.ModelProto) -> dict[str, int]:
    """How many operators with weights multiply INT8, FP16 and FP32 numbers, by the file."""
    makers = {out: node.op_type for node in model.graph.node for out in node.output}
    half = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16}
    counts = {"int8": 0, "fp16": 0, "fp32": 0}
    for node in model.graph.node:
        if node.op_type not in COMPUTE:
            continue
        if all(makers.get(name) == "DequantizeLinear" for name in node.input[:2]):
            counts["int8"] += 1
        elif node.input[1] in half:
            counts["fp16"] += 1
        else:
            counts["fp32"] += 1
    return counts
