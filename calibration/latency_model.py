"""What an assignment of INT8 and FP16 to layers takes, counted from the graph.

The stand-in where no engine can run; `runtime` measures engines. Knows nothing of faces or accuracy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import onnx

from ..graph.layers import Int8Choice, compute_layers
from ..graph.shapes import tensor_types

COUNTED = "multiply-adds and conversions, counted"

_INT8_SPEED = 2.0
"""Multiply-adds of INT8 in the time of one of FP16: NVIDIA's peak rates, Turing to Blackwell."""

_CONVERSION = 250.0
"""FP16 multiply-adds in the time that one more conversion of a number takes: it is read in FP16 and
written in INT8, 3 bytes, and a Jetson Orin (21 T multiply-adds and 205 GB a second at its peak, data
sheet of the AGX 64 GB) does about 100 multiply-adds in the time of a byte."""


@dataclass(frozen=True)
class LatencyModel:
    """How long assignments take: `cost` is the time as a share of that with every layer in float.

    Differences up to `noise()` say nothing. `word` tells where the times come from; those of another
    word are not compared.
    """

    word: str
    cost: Callable[[Int8Choice], float]
    noise: Callable[[], float] = lambda: 0.0


Quantised = Callable[[Int8Choice], onnx.ModelProto]

LatencyOf = Callable[[onnx.ModelProto, Quantised], LatencyModel]
"""A float model, and what makes its Q/DQ model of an assignment -> the times of assignments."""


def counted_latency(model: onnx.ModelProto, quantised: Quantised | None = None) -> LatencyModel:
    """Times of a float model whose shapes can be inferred, all in FP16 being 1; `quantised` is not
    looked at.

    A tensor costs a conversion when float operators read it besides INT8 layers: it is written
    twice. Others are converted in the kernel that makes them.
    """
    macs = {layer.name: layer.macs for layer in compute_layers(model)}
    total = sum(macs.values()) or 1
    sizes = _sizes(model)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def cost(choice: Int8Choice) -> float:
        int8 = set(choice.int8)
        twice = [
            tensor
            for tensor in choice.tensors
            # An addition reads the INT8 form, as its skip branch (quantize.py).
            if any(n.name not in int8 and n.op_type != "Add" for n in readers.get(tensor, ()))
        ]
        work = total - sum(macs[name] for name in int8) * (1.0 - 1.0 / _INT8_SPEED)
        return (work + _CONVERSION * sum(sizes.get(t, 0) for t in twice)) / total

    return LatencyModel(COUNTED, cost)


def _sizes(model: onnx.ModelProto) -> dict[str, int]:
    """Tensor -> numbers in it, for one face."""
    return {
        name: prod(max(1, dim.dim_value) for dim in found.shape.dim[1:])
        for name, found in tensor_types(model).items()
    }
