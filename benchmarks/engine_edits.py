"""Ways to tamper with a network: its weights and scales, or the numbers that an engine gives out.

An edit changes a `ModelProto` in place. Those of `WEIGHTS` are for any ONNX file with layers, those of
`SCALES` for a Q/DQ graph, those of `OUTPUTS` for any file with one output, the embedding.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

Edit = Callable[[ModelProto], None]
Array = np.ndarray[Any, Any]

_DENSE = ("Conv", "Gemm", "MatMul")
_SWAPPED = (3, 7)  # dimensions


def _tensors(model: ModelProto) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def _layers(model: ModelProto) -> list[onnx.NodeProto]:
    """Layers with stored weights."""
    tensors = _tensors(model)
    made = {node.output[0]: node for node in model.graph.node}
    return [
        node
        for node in model.graph.node
        if node.op_type in _DENSE
        and (node.input[1] in tensors or made[node.input[1]].op_type == "DequantizeLinear")
        and _stored(node.input[1], made, tensors)
    ]


def _stored(name: str, made: dict[str, onnx.NodeProto], tensors: dict[str, TensorProto]) -> str:
    """The stored tensor that a value comes from, behind its DequantizeLinear; "" without one."""
    while name not in tensors:
        if name not in made or made[name].op_type not in ("DequantizeLinear", "QuantizeLinear"):
            return ""
        name = made[name].input[0]
    return name


def _weight(model: ModelProto, node: onnx.NodeProto) -> TensorProto:
    made, tensors = {n.output[0]: n for n in model.graph.node}, _tensors(model)
    return tensors[_stored(node.input[1], made, tensors)]


def _bias(model: ModelProto, node: onnx.NodeProto) -> TensorProto | None:
    return _tensors(model).get(node.input[2]) if len(node.input) > 2 else None


def _put(tensor: TensorProto, values: Array) -> None:
    old = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(values.astype(old.dtype), tensor.name))


def _middle(model: ModelProto) -> TensorProto:
    """The weights of a layer in the middle; onnxruntime writes a PReLU as layers of equal weights."""
    weights = [_weight(model, node) for node in _layers(model)]
    uneven = [tensor for tensor in weights if np.ptp(numpy_helper.to_array(tensor))]
    return uneven[len(uneven) // 2]


def shuffle_a_layer(model: ModelProto) -> None:
    tensor = _middle(model)
    values = numpy_helper.to_array(tensor)
    _put(tensor, np.random.default_rng(0).permutation(values.reshape(-1)).reshape(values.shape))


def permute_channels(model: ModelProto) -> None:
    """The outputs of one layer in another order."""
    tensor = _middle(model)
    _put(tensor, np.roll(numpy_helper.to_array(tensor), 1, 0))


def zero_a_layer(model: ModelProto) -> None:
    tensor = _middle(model)
    _put(tensor, 0 * numpy_helper.to_array(tensor))


def zero_the_last_layer(model: ModelProto) -> None:
    tensor = _weight(model, _layers(model)[-1])
    _put(tensor, 0 * numpy_helper.to_array(tensor))


def flip_the_last_layer(model: ModelProto) -> None:
    node = _layers(model)[-1]
    for tensor in filter(None, (_weight(model, node), _bias(model, node))):
        values = numpy_helper.to_array(tensor)
        negated = np.clip(-values.astype(np.float64), -127, 127)
        _put(tensor, negated if values.dtype == np.int8 else -values)


def _outputs_moved(model: ModelProto, order: Callable[[int], Array]) -> None:
    """The last layer's weights with its outputs in another order."""
    node = _layers(model)[-1]
    tensor = _weight(model, node)
    values = numpy_helper.to_array(tensor)
    transposed = next((a.i for a in node.attribute if a.name == "transB"), 0)
    axis = 0 if node.op_type == "Conv" or transposed else values.ndim - 1
    _put(tensor, np.take(values, order(values.shape[axis]), axis))


def roll_the_last_layer(model: ModelProto) -> None:
    """Outputs in another order: people are told apart as before, enrolled ones are not."""
    _outputs_moved(model, lambda count: np.roll(np.arange(count), 1))


def _swapped(count: int) -> Array:
    order = np.arange(count)
    order[list(_SWAPPED)] = order[list(_SWAPPED[::-1])]
    return order


def swap_two_outputs(model: ModelProto) -> None:
    """The weights of two outputs of the last layer swapped."""
    _outputs_moved(model, _swapped)


def remove_biases(model: ModelProto) -> None:
    for node in _layers(model):
        if tensor := _bias(model, node):
            _put(tensor, 0 * numpy_helper.to_array(tensor))


def _remove_bias(pick: Callable[[int], int]) -> Edit:
    def edit(model: ModelProto) -> None:
        biases = [bias for node in _layers(model) if (bias := _bias(model, node))]
        tensor = biases[pick(len(biases))]
        _put(tensor, 0 * numpy_helper.to_array(tensor))

    return edit


def _scale(kind: str, factor: float) -> Edit:
    """The scale of one DequantizeLinear, of an activation or of a weight, in the middle."""

    def edit(model: ModelProto) -> None:
        weights = _tensors(model)
        of_weights = {layer.input[1] for layer in _layers(model)}
        nodes = [
            node
            for node in model.graph.node
            if node.op_type == "DequantizeLinear"
            and (node.output[0] in of_weights) == (kind == "weight")
        ]
        node = nodes[len(nodes) // 2]
        values = numpy_helper.to_array(weights[node.input[1]])
        model.graph.initializer.append(
            numpy_helper.from_array((factor * values).astype(values.dtype), "edited scale")
        )
        node.input[1] = "edited scale"

    return edit


def _after(*nodes: tuple[str, list[str], str], **constants: Array) -> Edit:
    """Nodes behind the network: `(operator, inputs, output)`; they read `net` and make `embedding`."""

    def edit(model: ModelProto) -> None:
        graph = model.graph
        output = graph.output[0].name
        for node in graph.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == output:
                        names[index] = "net"
        named = {"embedding": output, "face": graph.input[0].name}
        graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
        graph.node.extend(
            helper.make_node(
                op, [named.get(name, name) for name in inputs], [named.get(made, made)]
            )
            for op, inputs, made in nodes
        )

    return edit


def _dimension(value: float) -> Edit:
    """One dimension of the embedding times a number."""

    def edit(model: ModelProto) -> None:
        dim = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
        factors = np.ones(dim, np.float32)
        factors[_SWAPPED[0]] = value
        _after(("Mul", ["net", "factors"], "embedding"), factors=factors)(model)

    return edit


def swap_two_dimensions(model: ModelProto) -> None:
    dim = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    gather = helper.make_node("Gather", ["net", "order"], ["embedding"], axis=1)
    _after(order=_swapped(dim))(model)
    gather.output[0] = model.graph.output[0].name
    model.graph.node.append(gather)


_ROWS = (("Shape", ["net"], "shape"), ("Gather", ["shape", "zero"], "count"))
_ZERO, _ONE = np.array(0, np.int64), np.array(1, np.int64)

WEIGHTS: dict[str, Edit] = {
    "one layer's weights shuffled": shuffle_a_layer,
    "one layer's outputs in another order": permute_channels,
    "one layer zeroed": zero_a_layer,
    "last layer zeroed": zero_the_last_layer,
    "last layer's sign flipped": flip_the_last_layer,
    "last layer's outputs in another order": roll_the_last_layer,
    "two outputs of the last layer swapped": swap_two_outputs,
    "all biases removed": remove_biases,
    "one bias removed": _remove_bias(lambda count: count // 2),
    "last bias removed": _remove_bias(lambda count: count - 1),
}

SCALES: dict[str, Edit] = {
    "scale of one activation doubled": _scale("activation", 2),
    "scale of one activation halved": _scale("activation", 0.5),
    "scale of one weight doubled": _scale("weight", 2),
    "scale of one weight halved": _scale("weight", 0.5),
}


def normalize(model: ModelProto) -> None:
    """Embeddings of unit length, of a network that gives others: a last normalization too many."""
    _after(
        ("Mul", ["net", "net"], "squares"),
        ("ReduceSum", ["squares", "last axis"], "square"),
        ("Sqrt", ["square"], "length"),
        ("Div", ["net", "length"], "embedding"),
        **{"last axis": np.array([1], np.int64)},
    )(model)


def drop_normalization(model: ModelProto) -> None:
    """Without the last normalization or affine step, of a network that ends with one."""
    graph = model.graph
    last = next(node for node in graph.node if graph.output[0].name in node.output)
    if last.op_type not in ("Div", "Mul", "Add", "LpNormalization", "BatchNormalization"):
        raise IndexError(f"the network ends with {last.op_type}")
    last.CopyFrom(helper.make_node("Identity", [last.input[0]], [last.output[0]]))


OUTPUTS: dict[str, Edit] = {
    "last normalization added": normalize,
    "embeddings twice as long": _after(
        ("Mul", ["net", "factor"], "embedding"), factor=np.array(2, np.float32)
    ),
    "two dimensions swapped": swap_two_dimensions,
    "one dimension dead": _dimension(0),
    "one dimension's sign flipped": _dimension(-1),
    "the first face's embedding for all": _after(
        ("Gather", ["net", "first"], "row"),
        ("Shape", ["net"], "shape"),
        ("Expand", ["row", "shape"], "embedding"),
        first=np.array([0], np.int64),
    ),
    "third face of a batch gets the second's": _after(
        *_ROWS,
        ("Range", ["zero", "count", "one"], "rows"),
        ("Equal", ["rows", "two"], "third"),
        ("Where", ["third", "one", "rows"], "moved"),
        ("Gather", ["net", "moved"], "embedding"),
        zero=_ZERO,
        one=_ONE,
        two=np.array(2, np.int64),
    ),
    "a single face goes wrong": _after(
        *_ROWS,
        ("Equal", ["count", "one"], "single"),
        ("Mul", ["net", "wrong"], "other"),
        ("Where", ["single", "other", "net"], "embedding"),
        zero=_ZERO,
        one=_ONE,
        wrong=np.array(-1, np.float32),
    ),
    "batches of three faces go wrong": _after(
        *_ROWS,
        ("Equal", ["count", "three"], "triple"),
        ("Mul", ["net", "wrong"], "other"),
        ("Where", ["triple", "other", "net"], "embedding"),
        zero=_ZERO,
        three=np.array(3, np.int64),
        wrong=np.array(-1, np.float32),
    ),
    "NaN for one face of a batch": _after(
        *_ROWS,
        ("Range", ["zero", "count", "one"], "rows"),
        ("Equal", ["rows", "two"], "third"),
        ("Unsqueeze", ["third", "last"], "column"),
        ("Where", ["column", "nan", "net"], "embedding"),
        zero=_ZERO,
        one=_ONE,
        two=np.array(2, np.int64),
        last=np.array([1], np.int64),
        nan=np.array(np.nan, np.float32),
    ),
}

# Of a network that ends with a normalization or an affine step; others raise IndexError.
ENDS: dict[str, Edit] = {"last normalization or affine step removed": drop_normalization}
