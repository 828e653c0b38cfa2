"""Types and shapes of a graph's tensors, inferred without its weights: a large network's would be
copied twice otherwise, and are read by nothing that shapes depend on.
"""

from math import prod

import onnx
from onnx import ModelProto, TypeProto, helper

_LARGE = 256
"""Numbers from which on a constant is a weight, and no shape, axis or scale."""


def tensor_types(model: ModelProto, *, data_prop: bool = False) -> dict[str, TypeProto.Tensor]:
    """Tensor -> its type and shape, of inputs, outputs and what lies between, as far as they can be
    inferred; `data_prop` follows shapes through arithmetic. Raises onnx's InferenceError."""
    graph = model.graph
    large = [tensor for tensor in graph.initializer if prod(tensor.dims) > _LARGE]
    weights = {tensor.name for tensor in large}
    inputs = [value for value in graph.input if value.name not in weights]
    inputs += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in large]
    bare = helper.make_model(
        helper.make_graph(
            graph.node,
            graph.name,
            inputs,
            graph.output,
            [tensor for tensor in graph.initializer if tensor.name not in weights],
            value_info=graph.value_info,
        ),
        ir_version=model.ir_version,
        opset_imports=model.opset_import,
        functions=model.functions,
    )
    found = onnx.shape_inference.infer_shapes(bare, data_prop=data_prop).graph
    values = (*found.value_info, *found.output, *graph.input)
    return {value.name: value.type.tensor_type for value in values}


def ranks(model: ModelProto) -> dict[str, int]:
    """Infer how many dimensions the tensors of a graph have.

    Args:
        model: Any model.

    Returns:
        Tensor -> its number of dimensions, as far as it can be inferred; empty where onnx cannot.
    """
    try:
        types = tensor_types(model)
    except onnx.shape_inference.InferenceError:
        return {}
    return {name: len(t.shape.dim) for name, t in types.items() if t.HasField("shape")}
