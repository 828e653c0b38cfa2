"""Which layers become INT8: one rule for every network, and the reason for each that does not.

- Dense convolutions and matrix products: INT8, the first and the embedding layer too.
- Grouped and depthwise convolutions: float. There sits what INT8 costs a face network: each
  channel has its own range, nothing is summed over channels, and one scale must serve them all.
  And they gain nothing: they hold few of the multiply-adds, and TensorRT expands them
  (NVIDIA/TensorRT issue 4529).

docs/results/int8.md has the measurements behind the rule.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod

import onnx

from ..export.graph import attribute
from ..export.shapes import tensor_types

COMPUTE = ("Conv", "Gemm", "MatMul")
GROUPED = "grouped convolution"


@dataclass(frozen=True)
class Layer:
    """A node that multiplies by constant weights; `macs` for one face."""

    name: str
    op: str
    data: str
    """The activation tensor it reads."""
    macs: int
    groups: int


@dataclass(frozen=True)
class Choice:
    """`int8` layer names in graph order; `kept` maps the others to the reason."""

    int8: tuple[str, ...]
    kept: Mapping[str, str]
    tensors: tuple[str, ...]
    """Activations that need a range."""
    mac_share: float
    """Share of all multiply-adds that runs in INT8, 0..1."""
    dense_share: float
    """The same of those of the dense layers."""


def compute_layers(model: onnx.ModelProto) -> list[Layer]:
    """The layers with constant weights, in graph order; needs inferable shapes."""
    types = tensor_types(model)
    weights = {t.name: list(t.dims) for t in model.graph.initializer}
    layers = []
    for node in model.graph.node:
        if node.op_type not in COMPUTE or node.input[1] not in weights:
            continue
        shape = types[node.output[0]].shape if node.output[0] in types else None
        places = [dim.dim_value for dim in shape.dim] if shape else []
        places = places[2:] if node.op_type == "Conv" else places[1:-1]
        macs = prod(weights[node.input[1]]) * prod(max(1, d) for d in places)
        groups = int(attribute(node, "group", 1))
        layers.append(Layer(node.name, node.op_type, node.input[0], macs, groups))
    return layers


def choose(model: onnx.ModelProto, floats: Mapping[str, str] | None = None) -> Choice:
    """Apply the rule above to a float model whose nodes are named.

    `floats` maps further layers that stay float to the reason.
    """
    layers = compute_layers(model)
    kept = {layer.name: GROUPED for layer in layers if layer.groups > 1} | dict(floats or {})
    chosen = [layer for layer in layers if layer.name not in kept]
    dense = [layer for layer in layers if layer.groups == 1]
    return Choice(
        tuple(layer.name for layer in chosen),
        kept,
        tuple(dict.fromkeys(layer.data for layer in chosen)),
        _macs(chosen) / (_macs(layers) or 1),
        _macs(chosen) / (_macs(dense) or 1),
    )


def _macs(layers: Collection[Layer]) -> int:
    return sum(layer.macs for layer in layers)
