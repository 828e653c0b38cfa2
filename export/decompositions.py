"""Operators that are newer than the opset, in operators that it has.

The ONNX standard defines most of them itself; those here keep patterns that engines fuse, or have no
definition.
"""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..arrays import F32, I64
from ..errors import ModelError
from ..graph.edit import name_nodes
from ..graph.run import run_once
from ..graph.shapes import tensor_types
from ..inference import first_line


def decompose_blocks(model: ModelProto) -> ModelProto:
    """Write attention (two MatMuls and a Softmax) and RMSNormalization in operators of opset 17.

    The standard's own definitions also cast, compute axes, and repair rows that a mask empties:
    operators that stay in the graph and hide the pattern from TensorRT.

    Args:
        model: A model of any opset.

    Returns:
        A model whose Attention nodes with mask, cache, causality or grouped keys are left as they
        are; the same object where there is nothing to do.

    Raises:
        ModelError: The rank of a normalized tensor is not known.
    """
    if all(node.op_type not in ("Attention", "RMSNormalization") for node in model.graph.node):
        return model
    sizes, nodes = tensor_sizes(model), list[NodeProto]()
    for node in model.graph.node:
        parts = _attention(node, sizes, model) or _rms_normalization(node, sizes, model)
        nodes += parts or [node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    name_nodes(model.graph)
    return model


def _attention(
    node: NodeProto, sizes: Mapping[str, Sequence[int | None]], model: ModelProto
) -> list[NodeProto]:
    """One Attention in operators of OPSET; empty where it is not a simple one."""
    if node.op_type != "Attention":
        return []
    plain = ("scale", "q_num_heads", "kv_num_heads")
    changed = {
        item.name
        for item in node.attribute
        if item.name not in plain and helper.get_attribute_value(item) not in (0, 0.0)
    }
    query, key, value = (sizes.get(name) or () for name in node.input[:3])
    if (
        changed
        or any(node.input[3:])
        or any(node.output[1:])
        or not len(query) == len(key) == len(value) in (3, 4)
    ):
        return []
    three = len(query) == 3
    heads = attribute_value(node, "q_num_heads", 0) if three else query[1]
    if not heads or heads != (attribute_value(node, "kv_num_heads", 0) if three else key[1]):
        return []  # grouped keys
    width, value_width = query[-1], value[-1]
    if not width or not value_width:
        return []
    head = width // heads if three else width
    scale = attribute_value(node, "scale", None) or 1 / sqrt(head)
    base = node.output[0]
    nodes: list[NodeProto] = []

    def constant(name: str, array: F32 | I64) -> str:
        model.graph.initializer.append(numpy_helper.from_array(array, f"{base}_{name}"))
        return f"{base}_{name}"

    def step(op_type: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op_type, inputs, [f"{base}_{name}"], **attributes))
        return f"{base}_{name}"

    def by_heads(name: str, label: str, perm: list[int]) -> str:
        if three:
            shape = constant(f"{label}_heads", np.array([0, 0, heads, -1], np.int64))
            split = step("Reshape", [name, shape], f"{label}_split")
            return step("Transpose", [split], label, perm=perm)
        if perm == [0, 2, 1, 3]:
            return name
        return step("Transpose", [name], label, perm=[0, 1, 3, 2])

    q = by_heads(node.input[0], "query", [0, 2, 1, 3])
    k = by_heads(node.input[1], "key", [0, 2, 3, 1])
    v = by_heads(node.input[2], "value", [0, 2, 1, 3])
    factor = constant("scale", np.array(scale, np.float32))
    scores = step("Mul", [step("MatMul", [q, k], "scores"), factor], "scaled")
    weights = step("Softmax", [scores], "weights", axis=-1)
    mixed = step("MatMul", [weights, v], "mixed")
    if three:
        rows = step("Transpose", [mixed], "rows", perm=[0, 2, 1, 3])
        shape = constant("shape", np.array([0, 0, value_width], np.int64))
        step("Reshape", [rows, shape], "joined")
    nodes[-1].output[0] = base
    return nodes


def decompose_resizes(model: ModelProto) -> ModelProto:
    """Write a Resize that averages (antialias, opset 18) as two MatMuls: it is linear, separably.

    Args:
        model: A model of any opset.

    Returns:
        The model without such nodes; the same object where there is nothing to do.

    Raises:
        ModelError: The sizes of a Resize are not known.
    """
    if all(not attribute_value(node, "antialias", 0) for node in model.graph.node):
        return model
    sizes, constants, nodes = tensor_sizes(model), constant_tensors(model), list[NodeProto]()
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if not attribute_value(node, "antialias", 0):
            nodes.append(node)
            continue
        before = sizes.get(node.input[0], [])
        after = _resized(node, before, makers, constants)
        lengths = [*before[-2:], *after[-2:]]
        if len(before) != 4 or len(lengths) != 4 or None in lengths:
            raise ModelError(f"{node.name or 'Resize'} averages, and its sizes are open")
        rows, columns = (
            _resize_matrix(node, model, int(lengths[i] or 0), int(lengths[i + 2] or 0))
            for i in (0, 1)
        )
        base = node.output[0]
        model.graph.initializer.extend(
            [
                numpy_helper.from_array(rows, f"{base}_rows"),
                numpy_helper.from_array(np.ascontiguousarray(columns.T), f"{base}_columns"),
            ]
        )
        nodes += [
            helper.make_node("MatMul", [f"{base}_rows", node.input[0]], [f"{base}_short"]),
            helper.make_node("MatMul", [f"{base}_short", f"{base}_columns"], [base]),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    name_nodes(model.graph)
    return model


def _resized(
    node: NodeProto,
    before: Sequence[int | None],
    makers: Mapping[str, NodeProto],
    constants: Mapping[str, TensorProto],
) -> list[int | None]:
    """The sizes that a Resize makes, None where they are open."""
    by_size = len(node.input) > 3 and node.input[3]
    joined = makers.get(node.input[3]) if by_size else None
    if (
        joined is not None and joined.op_type == "Concat"
    ):  # the batch and fixed numbers: torch's way
        fixed = [name for name in joined.input if name in constants]
        if fixed == list(joined.input[1:]):
            numbers = [v for name in fixed for v in numpy_helper.to_array(constants[name]).ravel()]
            return [*before[:1], *map(int, numbers)]
    values = constant_numbers(node, 3 if by_size else 2, constants)
    axes = attribute_value(node, "axes", None) or range(len(before))
    after = list(before)
    for axis, value in zip(axes, values, strict=True):
        length = before[axis]
        after[axis] = int(value) if by_size else int(length * value) if length else None
    return after


def _resize_matrix(node: NodeProto, model: ModelProto, before: int, after: int) -> F32:
    """`(after, before) float32`: what a Resize does along one axis, read off the unit matrix."""
    probe = NodeProto()
    probe.CopyFrom(node)
    remove_attribute(probe, "axes")
    del probe.input[:]
    probe.input.extend(["x", "", "", "sizes"])
    probe.output[0] = "y"
    graph = helper.make_graph(
        [probe],
        "resize",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, before, before])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, after, before])],
        [numpy_helper.from_array(np.array([1, 1, after, before], np.int64), "sizes")],
    )
    alone = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    unit = np.eye(before, dtype=np.float32)[None, None]
    return np.asarray(run_once(alone.SerializeToString(), unit)[0][0, 0], np.float32)


def _rms_normalization(
    node: NodeProto, sizes: Mapping[str, Sequence[int | None]], model: ModelProto
) -> list[NodeProto]:
    """One RMSNormalization, `x / sqrt(mean(x ** 2) + epsilon) * scale`, in operators of OPSET."""
    if node.op_type != "RMSNormalization":
        return []
    rank, axis = len(sizes.get(node.input[0], ())), attribute_value(node, "axis", -1)
    if axis >= 0 and not rank:
        raise ModelError("an RMSNormalization's input has no shape")
    axes = list(range(axis - rank, 0)) if axis >= 0 else list(range(axis, 0))
    base = node.output[0]
    epsilon = np.array(attribute_value(node, "epsilon", 1e-5), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(epsilon, f"{base}_epsilon"))
    return [
        helper.make_node("Mul", [node.input[0], node.input[0]], [f"{base}_square"]),
        helper.make_node("ReduceMean", [f"{base}_square"], [f"{base}_mean"], axes=axes, keepdims=1),
        helper.make_node("Add", [f"{base}_mean", f"{base}_epsilon"], [f"{base}_variance"]),
        helper.make_node("Sqrt", [f"{base}_variance"], [f"{base}_rms"]),
        helper.make_node("Div", [node.input[0], f"{base}_rms"], [f"{base}_unit"]),
        helper.make_node("Mul", [f"{base}_unit", node.input[1]], [base]),
    ]


def constant_tensors(model: ModelProto) -> dict[str, TensorProto]:
    """Index a model's constants, from initializers and Constant nodes.

    Args:
        model: Any model.

    Returns:
        Name -> constant.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    return constants


def tensor_sizes(model: ModelProto) -> dict[str, list[int | None]]:
    """Infer shapes.

    Args:
        model: Any model.

    Returns:
        Tensor -> its sizes, None where they are not known.

    Raises:
        ModelError: Declared and inferred shapes contradict each other.
    """
    try:
        types = tensor_types(model, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(first_line(error)) from error
    return {
        name: [d.dim_value if d.HasField("dim_value") else None for d in t.shape.dim]
        for name, t in types.items()
        if t.HasField("shape")
    }


def constant_numbers(
    node: NodeProto, index: int, constants: Mapping[str, TensorProto]
) -> list[float]:
    """Give the numbers that a node reads.

    Args:
        node: The node.
        index: Which of its inputs.
        constants: Name -> constant.

    Returns:
        The numbers, flat.

    Raises:
        ModelError: The input is not a constant.
    """
    name = node.input[index]
    if name not in constants:
        raise ModelError(f"{node.op_type} computes its {name or 'arguments'} from the image")
    return list(numpy_helper.to_array(constants[name]).reshape(-1).tolist())


def attribute_value(node: NodeProto, name: str, default: Any) -> Any:
    """Give an attribute of a node, of any type.

    Args:
        node: The node.
        name: The attribute's name.
        default: Its value where the node does not set it.

    Returns:
        The value, a Python number, bytes, list or tensor.
    """
    for item in node.attribute:
        if item.name == name:
            return helper.get_attribute_value(item)
    return default


def remove_attribute(node: NodeProto, name: str) -> None:
    """Remove an attribute, if the node has it, in place.

    Args:
        node: The node.
        name: The attribute's name.
    """
    for item in node.attribute:
        if item.name == name:
            node.attribute.remove(item)
            return
