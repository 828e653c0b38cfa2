"""PReLU in other operators: a form that TensorRT fuses, and one that is fast on onnxruntime's CPU.

Models keep PRelu; what compiles or runs one rewrites a copy. docs/decisions/0003 and
docs/results/engines.md have the measurements.
"""

from collections.abc import Callable

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from .edit import initializers, name_nodes


def has_prelu(model: ModelProto) -> bool:
    """Whether a network has a PRelu.

    Args:
        model: The network.
    """
    return any(node.op_type == "PRelu" for node in model.graph.node)


def fusible(model: ModelProto) -> ModelProto:
    """Write each PRelu as relu(x) - a relu(-x), which TensorRT fuses.

    Exact in floating point for every slope, because one of the two terms is zero.

    Args:
        model: A float, FP16 or Q/DQ model.

    Returns:
        A copy without PRelu.
    """
    return _rewritten(model, _two_sides)


def blended(model: ModelProto) -> ModelProto:
    """Write each PRelu of constant slope as a x + (1 - a) relu(x), fast on onnxruntime's CPU.

    onnxruntime keeps its blocked layout through these operators; PRelu is slow by itself and leaves
    the layout. Exact except for the rounding of one sum.

    Args:
        model: A float32 or Q/DQ model.

    Returns:
        A copy.
    """
    slopes = initializers(model.graph)
    rests: dict[str, str] = {}

    def blend(node: NodeProto) -> list[NodeProto]:
        x, slope = node.input
        if slope not in slopes:
            return [node]
        rest = rests.setdefault(slope, f"{slope}#rest")
        return blend_nodes(node, x, slope, rest)

    copy = _rewritten(model, blend)
    for slope, rest in rests.items():
        array = np.float32(1.0) - numpy_helper.to_array(slopes[slope])
        copy.graph.initializer.append(numpy_helper.from_array(array, rest))
    return copy


def blend_nodes(node: NodeProto, x: str, slope: str, rest: str) -> list[NodeProto]:
    """Make the nodes of slope x + rest relu(x), in the place of a PRelu.

    Args:
        node: The PRelu; its output and name are kept.
        x: Name of the data.
        slope: Name of the slope.
        rest: Name of 1 - slope.

    Returns:
        Four nodes.
    """
    y = node.output[0]
    return [
        helper.make_node("Relu", [x], [f"{y}#above"], f"{node.name}_above"),
        helper.make_node("Mul", [f"{y}#above", rest], [f"{y}#high"], f"{node.name}_high"),
        helper.make_node("Mul", [x, slope], [f"{y}#both"], f"{node.name}_both"),
        helper.make_node("Add", [f"{y}#high", f"{y}#both"], [y], node.name),
    ]


def _rewritten(model: ModelProto, rule: Callable[[NodeProto], list[NodeProto]]) -> ModelProto:
    """A copy with `rule` of each PRelu in its place."""
    copy = ModelProto()
    copy.CopyFrom(model)
    nodes: list[NodeProto] = []
    for node in copy.graph.node:
        nodes += rule(node) if node.op_type == "PRelu" else [node]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    name_nodes(copy.graph)
    return copy


def _two_sides(node: NodeProto) -> list[NodeProto]:
    (x, slope), y = node.input, node.output[0]
    return [
        helper.make_node("Relu", [x], [f"{y}#above"], f"{node.name}_above"),
        helper.make_node("Neg", [x], [f"{y}#minus"], f"{node.name}_minus"),
        helper.make_node("Relu", [f"{y}#minus"], [f"{y}#below"], f"{node.name}_below"),
        helper.make_node("Mul", [f"{y}#below", slope], [f"{y}#low"], f"{node.name}_low"),
        helper.make_node("Sub", [f"{y}#above", f"{y}#low"], [y], node.name),
    ]
