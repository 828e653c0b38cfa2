"""Which layers become INT8: one rule for every network, and the reason for each that does not.

- Dense convolutions and matrix products: INT8.
- Grouped and depthwise convolutions: float. They hold few of the MACs, and INT8 gains nothing
  there: TensorRT expands them (NVIDIA/TensorRT issue 4529) while their ranges differ most.
- The embedding head: float. Its rounding error goes straight into the embedding. It is the last
  dense layers, as many as stay within HEAD_SHARE of the network's MACs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import onnx

HEAD_SHARE = 0.03
COMPUTE = ("Conv", "Gemm", "MatMul")


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
    """Share of all MACs that runs in INT8, 0..1."""


def compute_layers(model: onnx.ModelProto) -> list[Layer]:
    """The layers with constant weights, in graph order; needs inferable shapes."""
    inferred = onnx.shape_inference.infer_shapes(model)
    known = [*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input]
    sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in known}
    weights = {t.name: list(t.dims) for t in model.graph.initializer}
    layers = []
    for node in model.graph.node:
        if node.op_type not in COMPUTE or node.input[1] not in weights:
            continue
        weight = weights[node.input[1]]
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        outputs = prod(max(1, d) for d in sizes.get(node.output[0], [])[2:])
        layers.append(Layer(node.name, node.op_type, node.input[0], prod(weight) * outputs, groups))
    return layers


def choose(model: onnx.ModelProto) -> Choice:
    """Apply the rule above to a float model whose nodes are named."""
    layers = compute_layers(model)
    total = sum(layer.macs for layer in layers) or 1
    kept = {layer.name: "grouped convolution" for layer in layers if layer.groups > 1}
    head = 0
    for layer in reversed(layers):
        head += layer.macs
        if head > HEAD_SHARE * total:
            break
        kept.setdefault(layer.name, "embedding head")
    chosen = [layer for layer in layers if layer.name not in kept]
    return Choice(
        tuple(layer.name for layer in chosen),
        kept,
        tuple(dict.fromkeys(layer.data for layer in chosen)),
        sum(layer.macs for layer in chosen) / total,
    )
