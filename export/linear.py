"""Writes `x @ W + row` as one Gemm, whatever the exporter wrote, so that folding finds it."""

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from .graph import add_weight, prune, ranks, uses, weights


def to_gemm(model: ModelProto) -> None:
    """MatMul with constant weights on rank 2 becomes Gemm, in place, with the Add behind it."""
    graph = model.graph
    if not any(node.op_type == "MatMul" for node in graph.node):
        return
    rank, constants = ranks(model), weights(graph)
    for node in graph.node:
        if node.op_type != "MatMul" or rank.get(node.input[0]) != 2:
            continue
        matrix = constants.get(node.input[1])
        if matrix is None or len(matrix.dims) != 2:
            continue
        inputs, result = [*node.input], node.output[0]
        reader = next((other for other in graph.node if result in other.input), None)
        if reader is not None and reader.op_type == "Add" and uses(graph)[result] == 1:
            other = reader.input[1 - list(reader.input).index(result)]
            row = constants.get(other)
            if row is not None and np.prod(row.dims) in (1, matrix.dims[1]):
                # A row of its own: Gemm's bias is (D), and this one may be shared or (1, D).
                array = np.broadcast_to(
                    numpy_helper.to_array(row).reshape(-1), (matrix.dims[1],)
                ).astype(np.float32)
                inputs.append(add_weight(graph, f"{other}_row", array))
                result = reader.output[0]
                reader.output[0] = f"{result}_unread"
        node.CopyFrom(helper.make_node("Gemm", inputs, [result], node.name))
    prune(graph)
