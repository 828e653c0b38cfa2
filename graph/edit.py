"""Reads and small edits of ONNX graphs: nodes, attributes, who reads what, removing dead nodes.

Names used inside the bodies of If, Loop and Scan count.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Iterate over the nodes of a graph and of the bodies inside it.

    Args:
        graph: The graph.

    Returns:
        The nodes; those of a body come after the node that holds it.
    """
    for node in graph.node:
        yield node
        for body in _bodies(node):
            yield from all_nodes(body)


def attribute(node: NodeProto, name: str, default: int | float) -> int | float:
    """Give a number among a node's attributes.

    Args:
        node: The node.
        name: The attribute's name.
        default: Its value where the node does not set it.

    Returns:
        The value.
    """
    for item in node.attribute:
        if item.name == name:
            return item.f if item.type == AttributeProto.FLOAT else item.i
    return default


def initializers(graph: GraphProto) -> dict[str, TensorProto]:
    """Index a graph's constants.

    Args:
        graph: The graph.

    Returns:
        Name -> constant.
    """
    return {tensor.name: tensor for tensor in graph.initializer}


def uses(graph: GraphProto) -> Counter[str]:
    """Count how often each tensor is read.

    Args:
        graph: The graph.

    Returns:
        Tensor -> reads by nodes and their bodies, and as an output of the graph.
    """
    count = Counter(output.name for output in graph.output)
    for node in graph.node:
        count.update(name for name in node.input if name)
        for body in _bodies(node):
            count.update(uses(body))
    return count


def reads(node: NodeProto) -> set[str]:
    """Give the tensors that a node needs.

    Args:
        node: The node.

    Returns:
        Its inputs, and what its bodies take from outside.
    """
    return {name for name in node.input if name}.union(*(set(uses(b)) for b in _bodies(node)))


def only_read_by(graph: GraphProto, tensor: str, layers: Collection[str]) -> bool:
    """Tell whether only given layers read a tensor, as the data that they multiply by weights.

    Args:
        graph: The graph.
        tensor: A tensor's name.
        layers: Names of Conv, Gemm and MatMul nodes: all of them Conv, or all of them matrices.

    Returns:
        False too where nothing reads it.
    """
    nodes = [node for node in graph.node if tensor in reads(node)]
    kinds = {node.op_type == "Conv" for node in nodes}
    return len(kinds) == 1 and all(
        node.name in layers and node.input[0] == tensor and list(node.input).count(tensor) == 1
        for node in nodes
    )


def is_unpadded_conv(node: NodeProto) -> bool:
    """Tell whether a node is a convolution that adds no zeros at the border.

    Only such a convolution of `x + shift` is that of `x` plus one number per output channel.

    Args:
        node: Any node.

    Returns:
        True for a Conv without padding.
    """
    if node.op_type != "Conv":
        return False
    given = {item.name: item for item in node.attribute}
    automatic = given["auto_pad"].s if "auto_pad" in given else b""
    padded = "pads" in given and any(given["pads"].ints)
    return not padded and automatic in (b"", b"NOTSET", b"VALID")


def name_nodes(graph: GraphProto) -> None:
    """Give nodes without a name, or with one that is taken, a name of their own, in place.

    Args:
        graph: The graph.
    """
    taken: set[str] = set()
    for number, node in enumerate(graph.node):
        stem = node.name
        while not node.name or node.name in taken:
            node.name = f"{node.op_type}_{number}" if node.name == stem else f"{node.name}_"
        taken.add(node.name)


def write_newer_forms(graph: GraphProto) -> None:
    """Write reductions and splits as opset 18 and later have them; the graph is changed in place.

    Before, the axes of a reduction are an attribute, which later readers refuse or do not look at.

    Args:
        graph: Of an opset from 13 to 17.
    """
    for node in graph.node:
        axes = next((item for item in node.attribute if item.name == "axes"), None)
        if node.op_type.startswith("Reduce") and axes is not None:
            name = f"{node.output[0]}_axes"
            graph.initializer.append(numpy_helper.from_array(np.array(axes.ints, np.int64), name))
            node.attribute.remove(axes)
            node.input.append(name)
        elif node.op_type == "Split" and len(node.input) == 1:
            node.attribute.append(helper.make_attribute("num_outputs", len(node.output)))


def prune(graph: GraphProto) -> None:
    """Remove nodes and constants that lead to no output, in place.

    Args:
        graph: The graph; its nodes are sorted.
    """
    needed = {output.name for output in graph.output}
    used = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            used.append(node)
            needed.update(reads(node))
    if len(used) != len(graph.node):
        copies = []
        for node in reversed(used):
            copy = NodeProto()
            copy.CopyFrom(node)
            copies.append(copy)
        del graph.node[:]
        graph.node.extend(copies)
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in needed:
            del graph.initializer[index]


def _bodies(node: NodeProto) -> Iterator[GraphProto]:
    for item in node.attribute:
        if item.type == AttributeProto.GRAPH:
            yield item.g
        elif item.type == AttributeProto.GRAPHS:
            yield from item.graphs


def product_constant(node: NodeProto, constants: Mapping[str, object]) -> int | None:
    """Which input of a product or sum with a constant is the constant.

    Args:
        node: Any node.
        constants: The graph's constants by name.

    Returns:
        Its index; None for other nodes, and for a constant that is divided.
    """
    if node.op_type not in ("Add", "Sub", "Mul", "Div"):
        return None
    indices = [i for i, name in enumerate(node.input) if name in constants]
    if len(indices) != 1 or (node.op_type == "Div" and indices != [1]):
        return None
    return indices[0]


def reduced_axes(
    node: NodeProto, constants: Mapping[str, TensorProto], rank: int
) -> set[int] | None:
    """The axes that a reduction such as ReduceMean goes over.

    Args:
        node: The reduction.
        constants: The graph's constants by name.
        rank: Of its input.

    Returns:
        Numbers from 0; None where they are not constant.
    """
    given = next((list(a.ints) for a in node.attribute if a.name == "axes"), None)
    if len(node.input) > 1 and node.input[1]:
        if node.input[1] not in constants:
            return None
        given = numpy_helper.to_array(constants[node.input[1]]).ravel().tolist()
    return None if given is None else {int(i) % rank for i in given}
