"""Types and shapes of a graph's tensors, inferred without its weights.

Shapes do not depend on weights, and onnx would copy those of a large network twice.
"""

from math import prod

import onnx
from onnx import ModelProto, TypeProto, helper

_LARGE = 256  # numbers; a larger constant is a weight, not a shape, axis or scale


def tensor_types(model: ModelProto, *, data_prop: bool = False) -> dict[str, TypeProto.Tensor]:
    """Infer types and shapes.

    Args:
        model: Any model.
        data_prop: Whether to follow shapes through arithmetic.

    Returns:
        Tensor -> type and shape, of inputs, outputs and what lies between, as far as they can be
        inferred; constants are left out.

    Raises:
        onnx.shape_inference.InferenceError: Declared and inferred shapes contradict each other.
    """
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
    inferred = onnx.shape_inference.infer_shapes(bare, data_prop=data_prop).graph
    values = (*inferred.value_info, *inferred.output, *graph.input)
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
