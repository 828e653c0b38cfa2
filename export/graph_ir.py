"""ONNX graphs as onnx-ir holds them: every tensor knows its producer and its readers.

onnx-ir and onnxscript come with the extra `export`; devices do without them.
"""

import numpy as np
from onnx import ModelProto

from ..arrays import F32, F64, I64
from ..errors import MachineError, ModelError, install_hint

try:
    import onnx_ir as ir
    import onnx_ir.passes.common as ir_passes
    from onnxscript.optimizer import fold_constants_ir
except ImportError as error:
    raise MachineError(
        f"export needs onnx-ir and onnxscript ({error})", install_hint("export")
    ) from error

__all__ = [
    "add_constant",
    "constant_of",
    "fold_constants_ir",
    "input_of",
    "ir",
    "ir_passes",
    "only_reader",
    "replace_value",
    "to_ir",
    "to_proto",
]


class _OperatorNames:
    """Names for what has none, or one that is taken: nodes by their operator."""

    def generate_node_name(self, node: ir.Node) -> str:
        return node.name or node.op_type

    def generate_value_name(self, value: ir.Value) -> str:
        return value.name or "tensor"


def to_ir(model: ModelProto) -> ir.Model:
    """Convert a model to onnx-ir's form; its weights are shared, not copied.

    Args:
        model: The model; its nodes may be in any order.

    Returns:
        The model; changing it does not change the argument.

    Raises:
        ModelError: The graph is not valid, for example two nodes make one tensor.
    """
    try:
        return ir.from_proto(model)
    except (ValueError, TypeError, ir.serde.SerdeError) as error:
        raise ModelError(f"the network is not valid ONNX: {error}") from error


def to_proto(model: ir.Model) -> ModelProto:
    """Convert a model from onnx-ir's form; nodes and tensors get names of their own.

    Args:
        model: The model. Names of its inputs and outputs stay, others that are taken are changed.

    Returns:
        The model as ONNX writes it, with copies of the weights and without shapes of inner tensors.
    """
    ir_passes.NameFixPass(_OperatorNames())(model)
    proto = ir.to_proto(model)
    proto.graph.ClearField("value_info")
    return proto


def constant_of(value: ir.Value | None) -> F64 | None:
    """Give the numbers of a float32 weight.

    Args:
        value: A tensor of the graph, or None.

    Returns:
        The numbers as float64, in the weight's shape; None for anything but a float32 weight.
    """
    if value is None or not value.is_initializer() or value.is_graph_input():
        return None
    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return None
    return tensor.numpy().astype(np.float64)


def add_constant(graph: ir.Graph, name: str, array: F32 | I64) -> ir.Value:
    """Add a weight to a graph.

    Args:
        graph: The graph.
        name: The name; a number is added if the graph has a weight of that name.
        array: The numbers.

    Returns:
        The weight as a tensor of the graph.
    """
    free, number = name, 0
    while free in graph.initializers:
        number += 1
        free = f"{name}_{number}"
    tensor = ir.tensor(array, name=free)
    value = ir.Value(
        name=free,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def input_of(node: ir.Node, index: int = 0) -> ir.Value:
    """Give a tensor that a node must read.

    Args:
        node: The node.
        index: Which of its inputs.

    Returns:
        The tensor.

    Raises:
        ModelError: The node has no such input.
    """
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise ModelError(f"the network is not valid ONNX: {node.name} has no input {index}")
    return value


def only_reader(value: ir.Value) -> ir.Node | None:
    """Give the node that alone reads a tensor.

    Args:
        value: A tensor of the graph.

    Returns:
        The node; None if no node or several nodes read it, or if the graph gives the tensor out.
    """
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    return next(iter(uses)).node


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Let a tensor take the place of another: its readers, its name and its declared shape.

    Args:
        old: The tensor that is replaced; the caller removes its node.
        new: The tensor that takes its place.
    """
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name, old.name = old.name, None
    new.shape, new.type = old.shape, old.type
