"""Brings a network into fr-edge's form: `face (batch, 3, H, W)` -> `embedding (batch, D)`, opset 17.

`normal_form` is for any network that foreign.py has accepted; `finish` writes what the file says of
itself. Whether the network still computes the same is not known here: check.py measures it.
"""

import json
from collections.abc import Iterable

import onnx
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from .. import __version__
from ..errors import ModelError
from ..faces.contract import InputSpec
from .batch import free_batch
from .constants import fold_constants
from .foreign import CONTRACT_KEY, face_input
from .graph import fresh, makers, name_nodes, prune, rename, uses
from .opset import IR_VERSION, OPSET, at_opset

INPUT, OUTPUT = "face", "embedding"


def normal_form(model: ModelProto, spec: InputSpec) -> ModelProto:
    """A copy in fr-edge's form of a model that tidy.py has seen.

    Raises ModelError when the network cannot be brought into it.
    """
    face = face_input(model)
    model = at_opset(model)
    graph = model.graph
    _name(graph, face.name, INPUT)
    _name(graph, graph.output[0].name, OUTPUT)
    # Shapes declared for one batch and one size are not to be believed any more.
    del graph.value_info[:]
    graph.output[0].CopyFrom(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, None))
    graph.input[0].CopyFrom(_value(INPUT, (face.batch or 1, *spec.shape)))
    fold_constants(model)
    _drop_identities(graph)
    dim = free_batch(model)
    graph.input[0].CopyFrom(_value(INPUT, ("batch", *spec.shape)))
    graph.output[0].CopyFrom(_value(OUTPUT, ("batch", dim)))
    prune(graph)
    return model


def finish(model: ModelProto, spec: InputSpec) -> ModelProto:
    """A copy with fr-edge's versions, names and contract, and shapes inferred anew.

    Raises ModelError when the ONNX checker does not accept the result.
    """
    final = helper.make_model(
        model.graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="fr-edge",
        producer_version=__version__,
    )
    helper.set_model_props(final, {CONTRACT_KEY: json.dumps(spec.to_json())})
    graph = final.graph
    graph.name = "face_embedding"
    for field in ("value_info", "metadata_props", "doc_string"):
        graph.ClearField(field)
    name_nodes(graph)
    for tensor in graph.initializer:
        if not tensor.raw_data:  # as lists of numbers they are larger, and slow to convert
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        # Exporters leave stack traces here, with paths of the machine they ran on.
        item.ClearField("doc_string")
        item.ClearField("metadata_props")
    try:
        final = onnx.shape_inference.infer_shapes(final, strict_mode=True, data_prop=True)
        onnx.checker.check_model(final, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"the network is no valid ONNX: {error}") from error
    return final


def _name(graph: GraphProto, old: str, new: str) -> None:
    if old == new:
        return
    if new in uses(graph) or new in makers(graph):
        rename(graph, new, fresh(graph, f"{new}_inner"))
    rename(graph, old, new)


def _value(name: str, shape: Iterable[int | str]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, tuple(shape))


def _drop_identities(graph: GraphProto) -> None:
    """Identity, and Dropout, which does nothing outside training."""
    for node in list(graph.node):
        if node.op_type == "Dropout":
            trains = len(node.input) > 2 and node.input[2]
            if trains or any(uses(graph)[name] for name in node.output[1:]):
                continue
        elif node.op_type != "Identity":
            continue
        source, result = node.input[0], node.output[0]
        ends = {output.name for output in graph.output}
        if result not in ends:
            graph.node.remove(node)
            rename(graph, result, source)
        elif source in makers(graph) and source not in ends:
            graph.node.remove(node)
            rename(graph, source, result)
