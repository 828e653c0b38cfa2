"""Types and shapes of a graph's tensors, inferred without its weights.

Shapes do not depend on weights, and onnx would copy those of a large network twice.
"""

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, helper
from onnx.reference import ReferenceEvaluator

from ..arrays import I64

_LARGE = 256  # numbers; a larger constant is a weight, not a shape, axis or scale


def tensor_types(
    model: ModelProto, *, data_prop: bool = False, batch: int | None = None
) -> dict[str, TypeProto.Tensor]:
    """Infer types and shapes.

    Args:
        model: Any model.
        data_prop: Whether to follow shapes through arithmetic.
        batch: Taken for an open first dimension of an input; shapes that the model declares for
            inner tensors are then left out.

    Returns:
        Tensor -> type and shape, of inputs, outputs and what lies between, as far as they can be
        inferred; constants are left out.

    Raises:
        onnx.shape_inference.InferenceError: Declared and inferred shapes contradict each other.
    """
    graph = model.graph
    large = [tensor for tensor in graph.initializer if prod(tensor.dims) > _LARGE]
    weights = {tensor.name for tensor in large}
    images = [_with_batch(v, batch) for v in graph.input] if batch else list(graph.input)
    inputs = [value for value in images if value.name not in weights]
    inputs += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in large]
    bare = helper.make_model(
        helper.make_graph(
            graph.node,
            graph.name,
            inputs,
            graph.output if batch is None else [_without_shape(value) for value in graph.output],
            [tensor for tensor in graph.initializer if tensor.name not in weights],
            value_info=graph.value_info if batch is None else (),
        ),
        ir_version=model.ir_version,
        opset_imports=model.opset_import,
        functions=model.functions,
    )
    inferred = onnx.shape_inference.infer_shapes(bare, data_prop=data_prop).graph
    values = (*inferred.value_info, *inferred.output, *images)
    return {value.name: value.type.tensor_type for value in values}


def tensor_shapes(model: ModelProto, batch: int) -> dict[str, list[int]]:
    """Shapes of the tensors with two dimensions or more.

    Args:
        model: Any model.
        batch: As `tensor_types`.

    Returns:
        Tensor -> sizes, 0 for one that is not known; empty where declared and inferred shapes
        contradict each other.
    """
    try:
        types = tensor_types(model, data_prop=True, batch=batch)
    except onnx.shape_inference.InferenceError:
        return {}
    shapes = {name: [d.dim_value for d in t.shape.dim] for name, t in types.items()}
    return {name: shape for name, shape in shapes.items() if len(shape) > 1}


def with_image_size(model: ModelProto, size: tuple[int, int]) -> ModelProto:
    """A network for images of one size.

    Args:
        model: A network whose first input is `(N, C, H, W)`; shapes of inner tensors are left out.
        size: Height and width in pixels.

    Returns:
        A copy.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.graph.ClearField("value_info")
    for dim, side in zip(copy.graph.input[0].type.tensor_type.shape.dim[2:], size, strict=True):
        dim.dim_value = side
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    return copy


def moved_values(
    node: NodeProto, values: I64, constants: Sequence[TensorProto], opset: int
) -> list[I64]:
    """What a node that only moves values, such as Reshape or Split, makes of numbers.

    Args:
        node: The node; its first input gets the numbers.
        values: The numbers, in the shape of that input.
        constants: Its other inputs.
        opset: Of the node's graph.

    Returns:
        Its outputs; empty where it cannot be computed.
    """
    given = [helper.make_tensor_value_info(node.input[0], TensorProto.INT64, values.shape)]
    made = [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in node.output]
    graph = helper.make_graph([node], "moved", given, made, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        outputs = ReferenceEvaluator(model).run(None, {node.input[0]: values})
    except (ValueError, TypeError, IndexError, RuntimeError):
        return []
    return [np.asarray(output) for output in outputs]


def line_of(values: I64) -> tuple[int, I64] | None:
    """The axis along which numbers lie, each once, and which are the same along all others.

    Args:
        values: Numbers of any shape.

    Returns:
        The first such axis behind that of the batch, and the numbers along it; None without one.
    """
    for place in range(1, values.ndim):
        behind = [1] * (values.ndim - 1 - place)
        line = values[(0,) * place][(slice(None), *[0] * len(behind))]
        along = np.array_equal(values, np.broadcast_to(line.reshape(-1, *behind), values.shape))
        if along and len(set(line.tolist())) == len(line):
            return place, line
    return None


def _with_batch(value: ValueInfoProto, batch: int) -> ValueInfoProto:
    copy = ValueInfoProto()
    copy.CopyFrom(value)
    dims = copy.type.tensor_type.shape.dim
    if dims and not dims[0].dim_value:
        dims[0].dim_value = batch
    return copy


def _without_shape(value: ValueInfoProto) -> ValueInfoProto:
    copy = ValueInfoProto(name=value.name)
    copy.type.tensor_type.elem_type = value.type.tensor_type.elem_type
    return copy


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
