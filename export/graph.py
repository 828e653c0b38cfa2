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


def weights(graph: GraphProto) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in graph.initializer}


def attribute(node: NodeProto, name: str, default: int | float) -> int | float:
    for item in node.attribute:
        if item.name == name:
            return item.f if item.type == AttributeProto.FLOAT else item.i
    return default


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
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        if value.name == old:
            value.name = new
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
        reads = set(node.input).union(*(set(uses(body)) for body in bodies(node)))
        if reads & found:
            found.update(name for name in node.output if name)
    return found


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
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    if len(kept) != len(graph.node):
        kept = [_copy(node) for node in kept]
        del graph.node[:]
        graph.node.extend(kept)
    if len(constants) != len(graph.initializer):
        copies = []
        for tensor in constants:
            copy = TensorProto()
            copy.CopyFrom(tensor)
            copies.append(copy)
        del graph.initializer[:]
        graph.initializer.extend(copies)


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy
