"""Small edits of ONNX graphs: who reads what, renaming, removing what nothing reads.

Knows nothing of faces or of folding. Names used inside the bodies of If, Loop and Scan count.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, numpy_helper


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Every node, those in bodies too."""
    for node in graph.node:
        yield node
        for body in bodies(node):
            yield from all_nodes(body)


def uses(graph: GraphProto) -> Counter[str]:
    """How often each tensor is read: by nodes, by their bodies, and as an output of the graph."""
    count = Counter(output.name for output in graph.output)
    for node in graph.node:
        count.update(name for name in node.input if name)
        for body in bodies(node):
            count.update(uses(body))
    return count


def makers(graph: GraphProto) -> dict[str, NodeProto]:
    """Tensor -> the node that makes it."""
    return {name: node for node in graph.node for name in node.output if name}


def initializers(graph: GraphProto) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in graph.initializer}


def attribute(node: NodeProto, name: str, default: int | float) -> int | float:
    for item in node.attribute:
        if item.name == name:
            return item.f if item.type == AttributeProto.FLOAT else item.i
    return default


def is_unpadded_conv(node: NodeProto) -> bool:
    """Whether a node is a convolution that adds no zeros at the border.

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


def add_weight(
    graph: GraphProto, stem: str, array: npt.NDArray[np.float32] | npt.NDArray[np.int64]
) -> str:
    """Store a new constant under a name nothing has yet; returns the name."""
    name = fresh(graph, stem)
    graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def fresh(graph: GraphProto, stem: str) -> str:
    taken = {tensor.name for tensor in graph.initializer} | set(uses(graph)) | set(makers(graph))
    name, count = stem, 0
    while name in taken:
        count += 1
        name = f"{stem}_{count}"
    return name


def rename(graph: GraphProto, old: str, new: str) -> None:
    """`old` becomes `new` wherever the graph or a body says it."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.name == old:
            value.name = new
    for tensor in graph.initializer:
        if tensor.name == old:
            tensor.name = new
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
        for body in bodies(node):
            rename(body, old, new)


def dependent(graph: GraphProto, root: str) -> set[str]:
    """The tensors that depend on `root`; nodes are in topological order, as ONNX demands."""
    found = {root}
    for node in graph.node:
        if reads(node) & found:
            found.update(name for name in node.output if name)
    return found


def reads(node: NodeProto) -> set[str]:
    """The tensors a node needs, those its bodies take from outside too."""
    return {name for name in node.input if name}.union(*(set(uses(b)) for b in bodies(node)))


def sort_nodes(graph: GraphProto) -> None:
    """Put nodes after those they read from, as ONNX demands; equal ones keep their order."""
    made = set(makers(graph))
    ready: set[str] = set()
    waiting, order = [_copy(node) for node in graph.node], []
    while waiting:
        held = []
        for node in waiting:
            if (reads(node) & made) - ready:
                held.append(node)
            else:
                order.append(node)
                ready.update(node.output)
        if len(held) == len(waiting):
            raise ValueError(f"{graph.name} has a cycle at {held[0].name}")
        waiting = held
    del graph.node[:]
    graph.node.extend(order)


def name_nodes(graph: GraphProto) -> None:
    """Give nodes without a name, or with one that is taken, a name of their own."""
    taken: set[str] = set()
    for number, node in enumerate(graph.node):
        stem = node.name
        while not node.name or node.name in taken:
            node.name = f"{node.op_type}_{number}" if node.name == stem else f"{node.name}_"
        taken.add(node.name)


def prune(graph: GraphProto) -> None:
    """Remove nodes and constants that lead to no output."""
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed.update(name for name in node.input if name)
            for body in bodies(node):
                needed.update(uses(body))
    kept.reverse()
    if len(kept) != len(graph.node):
        kept = [_copy(node) for node in kept]
        del graph.node[:]
        graph.node.extend(kept)
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in needed:
            del graph.initializer[index]


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy
