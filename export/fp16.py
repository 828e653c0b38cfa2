"""The FP16 model: half precision weights and arithmetic, float32 input and output.

onnxruntime's CPU computes FP16 graphs in float32 and shows neither the overflows nor the rounding of
a GPU. They are seen on an emulation: a float32 model with every tensor rounded to FP16. A layer
that overflows, or that costs too much cosine, stays float32.
"""

import logging
import warnings
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from ..arrays import F32
from ..errors import ModelError
from ..graph.edit import initializers, reads
from ..graph.layers import weighted_nodes
from ..graph.load import fixed_batch
from ..graph.run import activations, onnx_embedder, peaks
from .graph_ir import input_of, ir, ir_passes, to_ir, to_proto
from .parity import Parity, check_parity, measure_parity

logger = logging.getLogger(__name__)

LARGEST = float(np.finfo(np.float16).max)

FP16_MIN_COSINE = 0.999

HEADROOM = 4.0  # real faces reach further than the probes: the limit is a quarter of FP16's range

_SMALLEST_NORMAL = float(np.finfo(np.float16).smallest_normal)


@dataclass(frozen=True)
class Fp16Result:
    """What FP16's range and digits do to a network.

    Attributes:
        check: Parity of the emulated model: every tensor rounded to FP16, sums in float32.
        kept_float: Names of the nodes that stay float32.
        denormal_weights: How many weights are below FP16's normal range and keep fewer digits.
        peak_activation: The largest magnitude of an activation, in FP16 or not.
    """

    check: Parity
    kept_float: tuple[str, ...]
    denormal_weights: int
    peak_activation: float


@dataclass(frozen=True)
class Fp16Model:
    """An FP16 model and how it was judged."""

    model: ModelProto
    result: Fp16Result


def make_fp16_model(model: ModelProto, inputs: F32, expected: F32) -> Fp16Model | None:
    """Convert a network to FP16, layers that do not fit excepted.

    Args:
        model: A finished float32 model.
        inputs: `(N, 3, H, W) float32`, `parity.probe_inputs`.
        expected: `(N, D) float32`, the original network's embeddings of them.

    Returns:
        The FP16 model; None when no layer with weights fits, which is logged with the reason.
    """
    try:
        tops = peaks(model, inputs)
        floats, parity = _search_floats(model, overflowing_nodes(model, tops), inputs, expected)
        half = convert_to_fp16(model, floats)
        embed = onnx_embedder(half.SerializeToString())
        check_parity(embed, inputs, expected, min_cosine=FP16_MIN_COSINE)
    except ModelError as error:
        logger.warning("there is no FP16 model: %s", error.message)
        return None
    names = tuple(node.name for node in model.graph.node if node.name in floats)
    if names:
        logger.info("%d nodes stay FP32 in the FP16 model, the first is %s", len(names), names[0])
    return Fp16Model(half, Fp16Result(parity, names, _count_denormals(model), max(tops.values())))


def convert_to_fp16(model: ModelProto, floats: set[str]) -> ModelProto:
    """Convert a model to FP16 with onnxruntime's converter.

    Args:
        model: A float32 model whose nodes are named.
        floats: Names of the nodes that stay float32.

    Returns:
        A strongly typed copy: Casts stand where FP16 and float32 meet. Input and output are float32.

    Raises:
        ModelError: The converter fails, or its result is not valid.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = ModelProto()
    copy.CopyFrom(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one for each weight that is rounded
            converted: ModelProto = convert_float_to_float16(
                copy, keep_io_types=True, node_block_list=sorted(floats)
            )
        half = to_ir(converted)
        half.graph.sort()
        _join_casts(half)
        result = onnx.shape_inference.infer_shapes(to_proto(half), strict_mode=True, data_prop=True)
        onnx.checker.check_model(result, full_check=True)
    except (
        ValueError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as error:
        line = str(error).strip().splitlines()[0]
        raise ModelError(f"onnxruntime's FP16 converter failed: {line}") from error
    return result


def emulate_fp16(model: ModelProto, floats: set[str]) -> ModelProto:
    """Make a float32 model that computes as the FP16 one does.

    Sums stay float32, as tensor cores make them.

    Args:
        model: A float32 model with inferred shapes.
        floats: Names of the nodes that stay float32.

    Returns:
        A copy with weights and every tensor rounded to FP16. A rounded tensor keeps its name, what
        is rounded is called `NAME_exact`.
    """
    emulated = to_ir(model)
    graph = emulated.graph
    narrow = [node for node in graph if node.name not in floats]
    rounded = dict.fromkeys(v for n in narrow for v in (*n.inputs, *n.outputs) if v is not None)
    for value in rounded:
        if value.dtype != ir.DataType.FLOAT:
            continue
        if value.const_value is not None:
            half = value.const_value.numpy().astype(np.float16).astype(np.float32)
            value.const_value = ir.tensor(half, name=value.name)
        else:
            _round(graph, value)
    return to_proto(emulated)


def _round(graph: ir.Graph, value: ir.Value) -> None:
    """float32 -> FP16 -> float32 between the producer of a tensor and its readers."""
    half = ir.node("Cast", [value], {"to": TensorProto.FLOAT16})
    back = ir.node("Cast", [half.outputs[0]], {"to": TensorProto.FLOAT})
    result, producer = back.outputs[0], value.producer()
    for reader, index in [(use.node, use.idx) for use in value.uses()]:
        if reader is not half:
            reader.replace_input_with(index, result)
    half.outputs[0].name = f"{value.name}_half"
    if producer is None:  # the image keeps its name
        result.name = f"{value.name}_rounded"
        graph.insert_before(graph[0], [half, back])
        return
    result.name, result.type, result.shape = value.name, value.type, value.shape
    if value.is_graph_output():
        graph.outputs[graph.outputs.index(value)] = result
    value.name = f"{value.name}_exact"
    graph.insert_after(producer, [half, back])


def _join_casts(model: ir.Model) -> None:
    """float32 -> FP16 -> float32 between two float32 nodes would overflow: connect them."""
    for cast in model.graph:
        if not _is_cast(cast, TensorProto.FLOAT):
            continue
        narrowing = input_of(cast).producer()
        if narrowing is None or not _is_cast(narrowing, TensorProto.FLOAT16):
            continue
        source, result = input_of(narrowing), cast.outputs[0]
        if result.is_graph_output():
            cast.op_type = "Identity"
            cast.attributes.clear()
            cast.replace_input_with(0, source)
        else:
            result.replace_all_uses_with(source)
    ir_passes.RemoveUnusedNodesPass()(model)


def _is_cast(node: ir.Node, to: int) -> bool:
    return node.op_type == "Cast" and node.attributes.get_int("to", 0) == to


def overflowing_nodes(model: ModelProto, tops: dict[str, float]) -> set[str]:
    """Nodes that touch a tensor, or hold a weight, beyond FP16's range.

    Args:
        model: A float32 model.
        tops: Tensor -> its largest magnitude.

    Returns:
        Their names.
    """
    large = {name for name, top in tops.items() if not top <= LARGEST / HEADROOM}
    large.update(
        name
        for name, tensor in initializers(model.graph).items()
        if tensor.data_type == TensorProto.FLOAT
        and np.abs(numpy_helper.to_array(tensor)).max(initial=0) > LARGEST
    )
    return _touching(model, large)


def _touching(model: ModelProto, tensors: set[str]) -> set[str]:
    return {n.name for n in model.graph.node if tensors & (reads(n) | set(n.output))}


def _search_floats(
    model: ModelProto, floats: set[str], inputs: F32, expected: F32
) -> tuple[set[str], Parity]:
    """Keep more nodes float32, the most harmful first, until the embedding is close enough."""
    more = 1
    while not all(node.name in floats for node in weighted_nodes(model)):
        emulated = emulate_fp16(model, floats)
        parity = measure_parity(onnx_embedder(emulated.SerializeToString()), inputs, expected)
        if parity.min_cosine >= FP16_MIN_COSINE:
            return floats, parity
        harmful = _most_harmful(model, emulated, floats, inputs)[:more]
        floats = floats | _touching(model, set(harmful))
        more *= 2
    raise ModelError("no layer with weights fits FP16")


def _most_harmful(
    model: ModelProto, emulated: ModelProto, floats: set[str], inputs: F32
) -> list[str]:
    """Tensors in FP16, sorted by the relative error that their node adds, the largest first."""
    sample = inputs[: fixed_batch(model) or 2]
    exact, rounded = activations(model, sample), activations(emulated, sample)

    def error(name: str) -> float:
        if name not in exact or name not in rounded:
            return 0.0
        size = float(np.linalg.norm(exact[name])) or 1.0
        relative = float(np.linalg.norm(exact[name] - rounded[name])) / size
        return relative if np.isfinite(relative) else LARGEST

    def added(node: NodeProto) -> float:
        return error(node.output[0]) - max(map(error, reads(node)), default=0.0)

    narrow = {
        name for n in model.graph.node if n.name not in floats for name in (*reads(n), *n.output)
    }
    nodes = [node for node in model.graph.node if node.output[0] in narrow]
    return [node.output[0] for node in sorted(nodes, key=added, reverse=True)]


def _count_denormals(model: ModelProto) -> int:
    count = 0
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            size = np.abs(numpy_helper.to_array(tensor))
            count += int(np.count_nonzero((size > 0) & (size < _SMALLEST_NORMAL)))
    return count
