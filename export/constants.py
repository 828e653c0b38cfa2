"""Computes the constant parts of a graph: nodes that no input reaches become weights.

That also unfolds weights stored quantised (blocks of integers behind DequantizeLinear) or in half
precision behind Cast. onnxruntime does the arithmetic.
"""

from onnx import GraphProto, ModelProto, ValueInfoProto, numpy_helper

from ..errors import ModelError
from .graph import all_nodes, prune, reads, uses
from .reference import run_constants

_RANDOM = ("Random", "Bernoulli", "Multinomial", "Dropout")


def fold_constants(model: ModelProto) -> None:
    """Replace constant nodes by weights, in place; leaves them where onnxruntime cannot run them.

    Nodes are in topological order.
    """
    graph = model.graph
    moving = {value.name for value in graph.input}
    still = GraphProto()
    rest = GraphProto(output=graph.output)
    for node in graph.node:
        random = any(n.op_type.startswith(_RANDOM) for n in all_nodes(GraphProto(node=[node])))
        if random or reads(node) & moving:
            moving.update(node.output)
            rest.node.append(node)
        else:
            still.node.append(node)
    made = {name for node in still.node for name in node.output if name}
    ends = sorted(made & set(uses(rest)))
    if not ends:
        return
    part = ModelProto()
    part.CopyFrom(model)
    for field in ("node", "input", "output", "value_info"):
        part.graph.ClearField(field)
    part.graph.node.extend(still.node)
    part.graph.output.extend(ValueInfoProto(name=name) for name in ends)
    prune(part.graph)
    try:
        arrays = run_constants(part.SerializeToString())
    except ModelError:
        return
    del graph.node[:]
    graph.node.extend(rest.node)
    graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in zip(ends, arrays, strict=True)
    )
    prune(graph)
