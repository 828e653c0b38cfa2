"""How long an assignment of INT8 and FP16 to layers takes, counted from the graph.

A stand-in where no engine can run; `runtime.layer_latency` measures engines.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import onnx

from ...graph.layers import Int8Choice, weighted_layers
from ...graph.shapes import tensor_types

COUNTED = "multiply-adds and conversions, counted"

_INT8_SPEED = (
    2.0  # INT8 over FP16 multiply-adds per second: NVIDIA's peak rates, Turing to Blackwell
)

# FP16 multiply-adds in the time that one conversion of a number takes: it is read in FP16 and
# written in INT8, 3 bytes. A Jetson AGX Orin 64 GB does about 100 multiply-adds in the time of a
# byte (data sheet: 21 T multiply-adds and 205 GB per second at its peak).
_CONVERSION = 250.0
_BYTE = _CONVERSION / 3.0


@dataclass(frozen=True)
class LatencyModel:
    """How long assignments take.

    Attributes:
        source: Where the times come from; times of different sources are not compared.
        cost: Time of an assignment, as a share of the time with every layer in float.
        noise: Differences of `cost` up to this are not significant.
    """

    source: str
    cost: Callable[[Int8Choice], float]
    noise: Callable[[], float] = lambda: 0.0


# An assignment of INT8 to layers -> the Q/DQ model.
QuantizeChoice = Callable[[Int8Choice], onnx.ModelProto]

# A float model and the function that makes its Q/DQ models -> times of assignments.
LatencyOf = Callable[[onnx.ModelProto, QuantizeChoice], LatencyModel]


def counted_latency(model: onnx.ModelProto, quantize: QuantizeChoice | None = None) -> LatencyModel:
    """Times counted from multiply-adds and conversions; all in FP16 is 1.

    A tensor costs a conversion when float operators read it besides INT8 layers: it is written
    twice. Other tensors are converted in the kernel that makes them. A grouped convolution is no
    faster in INT8, but it reads half the bytes and writes FP32, twice as many.

    Args:
        model: A float model whose shapes can be inferred.
        quantize: Unused; part of the signature `LatencyOf`.
    """
    table = weighted_layers(model)
    macs = {layer.name: layer.macs for layer in table}
    grouped = {layer.name: layer for layer in table if layer.groups > 1}
    total = sum(macs.values()) or 1
    sizes = _tensor_sizes(model)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def cost(choice: Int8Choice) -> float:
        int8 = set(choice.int8)
        written_twice = [
            tensor
            for tensor in choice.tensors
            # An addition reads the INT8 form, as its skip branch (qdq.py).
            if any(n.name not in int8 and n.op_type != "Add" for n in readers.get(tensor, ()))
        ]
        dense = int8 - grouped.keys()
        work = total - sum(macs[name] for name in dense) * (1.0 - 1.0 / _INT8_SPEED)
        # Each number is written by the kernel before and read by the next: INT8 for FP16 in front
        # of a grouped convolution, FP32 for FP16 behind it (docs/results/engines.md).
        work += _BYTE * sum(4 * prod(grouped[n].shape) for n in int8 & grouped.keys())
        work -= _BYTE * sum(2 * sizes.get(grouped[n].data, 0) for n in int8 & grouped.keys())
        return (work + _CONVERSION * sum(sizes.get(t, 0) for t in written_twice)) / total

    return LatencyModel(COUNTED, cost)


def _tensor_sizes(model: onnx.ModelProto) -> dict[str, int]:
    """Tensor -> how many numbers it holds for one face."""
    return {
        name: prod(max(1, dim.dim_value) for dim in tensor.shape.dim[1:])
        for name, tensor in tensor_types(model).items()
    }
