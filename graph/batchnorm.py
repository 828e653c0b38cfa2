"""Folds BatchNormalization into the convolution or matrix product beside it, exactly.

onnxsim folds Conv -> BatchNormalization only; this also folds Gemm -> BN and Conv -> Flatten -> BN
(the last layer of face networks), BN -> Flatten -> Gemm, BN -> Gemm, and BN -> Conv where nothing is
padded. A fold happens only where nobody else reads the tensor in between. Sums are made in float64.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..arrays import F64
from .edit import add_weight, attribute, initializers, makers, prune, ranks, uses


@dataclass(frozen=True)
class _View:
    """The graph as it is between two folds."""

    graph: GraphProto
    makers: dict[str, NodeProto]
    uses: Counter[str]
    weights: dict[str, TensorProto]

    def constant(self, node: NodeProto, index: int) -> F64 | None:
        """A constant float input of a node, or None (also when it has no such input)."""
        name = node.input[index] if index < len(node.input) else ""
        tensor = self.weights.get(name)
        if tensor is None or tensor.data_type != TensorProto.FLOAT:
            return None
        return numpy_helper.to_array(tensor).astype(np.float64)

    def reader(self, name: str) -> NodeProto | None:
        """The node that alone reads `name`, or None."""
        if self.uses[name] != 1:
            return None
        return next((node for node in self.graph.node if name in node.input), None)

    def store(self, node: NodeProto, index: int, array: F64) -> None:
        """Give the node a constant of its own: the old one may be shared."""
        old = node.input[index] if index < len(node.input) else ""
        name = add_weight(self.graph, f"{old or node.output[0]}_folded", array.astype(np.float32))
        if index == len(node.input):
            node.input.append(name)
        else:
            node.input[index] = name


def fold_batchnorm(graph: GraphProto, into_readers: bool = True) -> dict[str, int]:
    """Fold what can be folded, in place; returns kind of fold -> how many.

    Without `into_readers` only into the layer in front, so that every layer reads what it read
    in training.
    """
    done: Counter[str] = Counter()
    while kind := _fold_one(graph, into_readers):
        done[kind] += 1
    prune(graph)
    return dict(done)


def _fold_one(graph: GraphProto, into_readers: bool) -> str:
    view = _View(graph, makers(graph), uses(graph), initializers(graph))
    for norm in graph.node:
        if norm.op_type != "BatchNormalization" or (affine := _affine(view, norm)) is None:
            continue
        kind = _into_maker(view, norm, *affine)
        if not kind and into_readers:
            kind = _into_reader(view, norm, *affine)
        if kind:
            graph.node.remove(norm)
            return kind
    return ""


def _affine(view: _View, norm: NodeProto) -> tuple[F64, F64] | None:
    """Inference-time BatchNormalization as `scale * x + shift` per channel."""
    parts = [view.constant(norm, index) for index in range(1, 5)]
    gamma, beta, mean, var = parts
    if gamma is None or beta is None or mean is None or var is None:
        return None
    if attribute(norm, "training_mode", 0) or any(norm.output[1:]):
        return None
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(var + attribute(norm, "epsilon", 1e-5))
        shift = beta - mean * scale
    return (scale, shift) if np.isfinite([scale, shift]).all() else None


def _into_maker(view: _View, norm: NodeProto, scale: F64, shift: F64) -> str:
    """Conv -> BN, Gemm -> BN, and Conv -> Flatten -> BN with one pixel."""
    maker = last = view.makers.get(norm.input[0])
    if maker is None or last is None or view.uses[norm.input[0]] != 1:
        return ""
    flat = maker.op_type == "Flatten" and attribute(maker, "axis", 1) == 1
    if flat:
        maker = view.makers.get(last.input[0])
        if maker is None or maker.op_type != "Conv" or view.uses[last.input[0]] != 1:
            return ""
    w = view.constant(maker, 1)
    if w is None or (flat and len(w) != len(scale)):
        return ""
    bias = view.constant(maker, 2)
    if bias is None and len(maker.input) > 2 and maker.input[2]:
        return ""
    if maker.op_type == "Conv":
        view.store(maker, 1, w * scale.reshape(-1, *[1] * (w.ndim - 1)))
        view.store(maker, 2, (0.0 if bias is None else bias) * scale + shift)
    elif maker.op_type == "Gemm" and _plain(maker, bias):
        alpha, beta = attribute(maker, "alpha", 1.0), attribute(maker, "beta", 1.0)
        rows = attribute(maker, "transB", 0)
        view.store(maker, 1, alpha * w * (scale[:, None] if rows else scale))
        view.store(maker, 2, (0.0 if bias is None else beta * bias.reshape(-1)) * scale + shift)
        _reset(maker, "alpha", "beta")
    else:
        return ""
    last.output[0] = norm.output[0]
    return f"{maker.op_type}+{'Flatten+' if flat else ''}BatchNormalization"


def _into_reader(view: _View, norm: NodeProto, scale: F64, shift: F64) -> str:
    """BN -> Gemm, BN -> Flatten -> Gemm, BN -> Conv without padding."""
    reader = first = view.reader(norm.output[0])
    if reader is None:
        return ""
    flat = reader.op_type == "Flatten" and attribute(reader, "axis", 1) == 1
    if flat:
        reader = view.reader(reader.output[0])
    if reader is None or first is None or (w := view.constant(reader, 1)) is None:
        return ""
    if reader.input[0] not in (norm.output[0], first.output[0]):
        return ""  # it is the second operand
    bias = view.constant(reader, 2)
    if bias is None and len(reader.input) > 2 and reader.input[2]:
        return ""
    if reader.op_type == "Gemm" and _plain(reader, bias):
        alpha, beta = attribute(reader, "alpha", 1.0), attribute(reader, "beta", 1.0)
        matrix = alpha * (w if attribute(reader, "transB", 0) else w.T)  # (out, in)
        if matrix.shape[1] % len(scale):
            return ""
        spread = matrix.shape[1] // len(scale)  # flattened pixels per channel
        scale, shift = np.repeat(scale, spread), np.repeat(shift, spread)
        folded = matrix * scale
        view.store(reader, 1, folded if attribute(reader, "transB", 0) else folded.T)
        view.store(reader, 2, (0.0 if bias is None else beta * bias.reshape(-1)) + matrix @ shift)
        _reset(reader, "alpha", "beta")
    elif reader.op_type == "Conv" and not flat and _unpadded(reader):
        groups = int(attribute(reader, "group", 1))
        # Row o of the kernel reads the channels of its group only.
        rows = np.arange(len(w)) // (len(w) // groups)
        axes = (slice(None), slice(None), *[None] * (w.ndim - 2))
        by_row = (scale.reshape(groups, -1)[rows][axes], shift.reshape(groups, -1)[rows][axes])
        view.store(reader, 1, w * by_row[0])
        added = (w * by_row[1]).reshape(len(w), -1).sum(1)
        view.store(reader, 2, (0.0 if bias is None else bias) + added)
    else:
        return ""
    first.input[0] = norm.input[0]
    return f"BatchNormalization+{'Flatten+' if flat else ''}{reader.op_type}"


def _plain(gemm: NodeProto, bias: F64 | None) -> bool:
    """Whether a Gemm is `x @ W + one row`."""
    a_row = bias is None or bias.ndim == 0 or bias.size == bias.shape[-1]
    return not attribute(gemm, "transA", 0) and a_row


def _unpadded(conv: NodeProto) -> bool:
    """Zeros padded after a shift are not the shift: only without padding is the fold exact."""
    for item in conv.attribute:
        if item.name == "auto_pad" and item.s not in (b"NOTSET", b"VALID", b""):
            return False
        if item.name == "pads" and any(item.ints):
            return False
    return True


def _reset(node: NodeProto, *names: str) -> None:
    kept = [item for item in node.attribute if item.name not in names]
    del node.attribute[:]
    node.attribute.extend(kept)


# Writes `x @ W + row` as one Gemm, whatever the exporter wrote, so that folding finds it.


def to_gemm(model: ModelProto) -> None:
    """MatMul with constant weights on rank 2 becomes Gemm, in place, with the Add behind it."""
    graph = model.graph
    if not any(node.op_type == "MatMul" for node in graph.node):
        return
    rank, constants = ranks(model), initializers(graph)
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
