"""Half precision as a graph: the strongly typed FP16 model, and its emulation in float32.

Which nodes stay float32 is half.py's to say.
"""

import warnings
from collections.abc import MutableSequence

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from ..errors import ModelError
from .graph import attribute, fresh, makers, prune, reads, sort_nodes

LARGEST = float(np.finfo(np.float16).max)


def convert(model: ModelProto, kept: set[str]) -> ModelProto:
    """The FP16 model, nodes named in `kept` in float32; input and output are float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = ModelProto()
    copy.CopyFrom(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of every weight that is rounded; half.py counts
            half: ModelProto = convert_float_to_float16(
                copy, keep_io_types=True, node_block_list=sorted(kept)
            )
        half.graph.ClearField("value_info")
        sort_nodes(half.graph)
        _join_casts(half.graph)
        half = onnx.shape_inference.infer_shapes(half, strict_mode=True, data_prop=True)
        onnx.checker.check_model(half, full_check=True)
    except (
        ValueError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as error:
        line = str(error).strip().splitlines()[0]
        raise ModelError(f"onnxruntime's converter failed: {line}") from error
    return half


def emulate(model: ModelProto, kept: set[str]) -> ModelProto:
    """A float32 model that computes as the FP16 one: weights and every tensor rounded to half.

    Sums stay float32, as tensor cores make them. A rounded tensor keeps its name.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    floats = {
        value.name
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    narrow = [node for node in graph.node if node.name not in kept]
    rounded = {name for node in narrow for name in (*reads(node), *node.output)}
    for tensor in graph.initializer:
        if tensor.name in rounded and tensor.data_type == TensorProto.FLOAT:
            half = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    for name in sorted(floats & rounded):
        _round(graph, name)
    sort_nodes(graph)
    return copy


def _round(graph: GraphProto, name: str) -> None:
    """float32 -> FP16 -> float32 between the maker of a tensor and its readers."""
    maker = makers(graph).get(name)
    if maker is None:  # the image
        source, result = name, fresh(graph, f"{name}_rounded")
        for node in graph.node:
            _replace(node.input, name, result)
    else:
        source, result = fresh(graph, f"{name}_exact"), name
        _replace(maker.output, name, source)
    half = fresh(graph, f"{name}_half")
    graph.node.append(helper.make_node("Cast", [source], [half], to=TensorProto.FLOAT16))
    graph.node.append(helper.make_node("Cast", [half], [result], to=TensorProto.FLOAT))


def _join_casts(graph: GraphProto) -> None:
    """float32 -> FP16 -> float32 between two float32 nodes would overflow: connect them."""
    made = makers(graph)
    for node in graph.node:
        source = made.get(node.input[0]) if node.op_type == "Cast" else None
        if source is None or source.op_type != "Cast":
            continue
        if attribute(node, "to", 0) != TensorProto.FLOAT:
            continue
        if attribute(source, "to", 0) != TensorProto.FLOAT16:
            continue
        if node.output[0] in {output.name for output in graph.output}:
            node.op_type = "Identity"
            node.ClearField("attribute")
            node.input[0] = source.input[0]
        else:
            for reader in graph.node:
                _replace(reader.input, node.output[0], source.input[0])
    prune(graph)


def _replace(names: MutableSequence[str], old: str, new: str) -> None:
    for index, name in enumerate(names):
        if name == old:
            names[index] = new
