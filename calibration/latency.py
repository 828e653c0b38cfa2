"""What an assignment of INT8 and FP16 to layers takes, counted from the graph.

A stand-in for an engine's time where none can run; knows nothing of faces or accuracy.
"""

from collections.abc import Callable
from math import prod

import onnx

from ..export.shapes import tensor_types
from .layers import Choice, compute_layers

Cost = Callable[[Choice], float]
"""An assignment -> its time, as a share of the time with every layer in FP16."""

COUNTED = "multiply-adds and conversions, counted"

_INT8_SPEED = 2.0
"""Multiply-adds of INT8 in the time of one of FP16: NVIDIA's peak rates, Turing to Blackwell."""
_CONVERSION = 250.0
"""FP16 multiply-adds in the time that one more conversion of a number takes: it is read in FP16 and
written in INT8, 3 bytes, and a Jetson Orin (21 T multiply-adds and 205 GB a second at its peak, data
sheet of the AGX 64 GB) does about 100 multiply-adds in the time of a byte."""


def counted(model: onnx.ModelProto) -> Cost:
    """The cost of assignments of a float model whose shapes can be inferred.

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

    def cost(choice: Choice) -> float:
        int8 = set(choice.int8)
        twice = [
            tensor
            for tensor in choice.tensors
            # An addition reads the INT8 form, as its skip branch (quantize.py).
            if any(n.name not in int8 and n.op_type != "Add" for n in readers.get(tensor, ()))
        ]
        work = total - sum(macs[name] for name in int8) * (1.0 - 1.0 / _INT8_SPEED)
        return (work + _CONVERSION * sum(sizes.get(t, 0) for t in twice)) / total

    return cost


def _sizes(model: onnx.ModelProto) -> dict[str, int]:
    """Tensor -> numbers in it, for one face."""
    return {
        name: prod(max(1, dim.dim_value) for dim in found.shape.dim[1:])
        for name, found in tensor_types(model).items()
    }
