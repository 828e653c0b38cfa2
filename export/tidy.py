"""Clears away what exporters leave in a graph, so that the rest reads one kind of model.

Nothing here changes what the network computes; only the image's layout becomes channels first.
"""

from onnx import ModelProto, helper, numpy_helper

from ..errors import ModelError
from .constants import fold_constants
from .graph import fresh, name_nodes, ranks, rename, sort_nodes, uses, weights


def tidy(model: ModelProto) -> ModelProto:
    """A copy with sorted nodes, constants folded, and the image `(N, 3, H, W)` as its one input.

    Inputs that nothing reads, and weights listed as inputs, are dropped; other inputs stay. Raises
    ModelError for a graph with a cycle.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    try:
        sort_nodes(graph)
    except ValueError as error:
        raise ModelError(f"the network is no valid ONNX: {error}") from error
    name_nodes(graph)
    # Shapes as the exporter saw them: for its one batch, and of slopes that change below.
    del graph.value_info[:]
    constants, read = weights(graph), uses(graph)
    kept = [v for v in graph.input if v.name not in constants and read[v.name]]
    del graph.input[:]
    graph.input.extend(kept)
    fold_constants(copy)
    _shape_slopes(copy)
    _channels_first(copy)
    return copy


def _shape_slopes(model: ModelProto) -> None:
    """PRelu slopes of images become `(C, 1, 1)`: `(C)` is MXNet's, and against the standard."""
    graph = model.graph
    nodes = [node for node in graph.node if node.op_type == "PRelu"]
    if not nodes:
        return
    rank, constants = ranks(model), weights(graph)
    for node in nodes:
        slope = constants.get(node.input[1])
        if slope is None or rank.get(node.input[0]) != 4:
            continue
        channels = max(slope.dims, default=1)
        if list(slope.dims) in ([channels], [1, channels, 1, 1]) and channels > 1:
            array = numpy_helper.to_array(slope).reshape(channels, 1, 1)
            slope.CopyFrom(numpy_helper.from_array(array, slope.name))


def _channels_first(model: ModelProto) -> None:
    graph = model.graph
    if len(graph.input) != 1:
        return
    face = graph.input[0]
    dims = face.type.tensor_type.shape.dim
    if len(dims) != 4 or dims[3].dim_value != 3 or dims[1].dim_value == 3:
        return
    batch, height, width = (dim.dim_value or dim.dim_param or None for dim in dims[:3])
    name = face.name
    inner = fresh(graph, f"{name}_channels_last")
    rename(graph, name, inner)
    face.CopyFrom(
        helper.make_tensor_value_info(
            name, face.type.tensor_type.elem_type, (batch, 3, height, width)
        )
    )
    graph.node.insert(0, helper.make_node("Transpose", [name], [inner], perm=(0, 2, 3, 1)))
