"""What a network costs: parameters and multiply-accumulates for one face.

Only what dominates is counted: Conv, Gemm and MatMul; shapes come from the model's value_info.
"""

from math import prod

from onnx import ModelProto, TensorProto

from .graph import weights


def parameters(model: ModelProto) -> int:
    return sum(
        prod(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    )


def macs(model: ModelProto) -> int:
    """Multiply-accumulates for one face; operators without static shapes count nothing."""
    graph = model.graph
    constants = weights(graph)
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.output)
    }
    total = 0
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in constants:
            continue
        out, kernel = shapes.get(node.output[0], [0]), constants[node.input[1]].dims
        if node.op_type == "Conv":  # (out, in / groups, kh, kw) at each place of the output
            total += prod(kernel) * prod(out[2:])
        elif node.op_type == "Gemm":
            total += prod(kernel)
        else:
            total += prod(out[1:]) * kernel[0]
    return total
