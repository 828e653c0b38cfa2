"""PReLU in the form that TensorRT fuses into the convolution before it, bit for bit the same.

docs/decisions/0003 has the measurements. Models keep PRelu, which says what is meant; whoever
compiles for TensorRT rewrites a copy.
"""

from onnx import ModelProto, NodeProto, helper

from .graph import name_nodes


def fusible(model: ModelProto) -> ModelProto:
    """A copy of a float, FP16 or Q/DQ model with relu(x) - a relu(-x) for each PRelu.

    Exact in floating point, for every slope: one of the two sides is zero.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    nodes: list[NodeProto] = []
    for node in copy.graph.node:
        nodes += _two_sides(node) if node.op_type == "PRelu" else [node]
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
