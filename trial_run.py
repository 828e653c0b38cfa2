"""Whether a stranger's network can be run here: what it costs by its shapes, else by a trial run.

A network of a few kilobytes can ask for an endless loop or for a tensor of terabytes. Where every
shape can be inferred from the graph and is small, nothing more is done; that is so for the networks
that people train. Others are run once in a process of their own, with limits of time and memory.
"""

import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from math import prod

import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, TypeProto, helper

from .errors import ModelError
from .reading import raise_limit_hint, read_limit

logger = logging.getLogger(__name__)

_BRANCHES = ("Loop", "Scan", "If", "SequenceMap")

_VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")  # make no numbers

_LARGE = 256  # numbers; a larger constant is a weight, not a shape, axis or scale

_MULTIPLYING = ("Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulInteger")

_MAX_NUMBERS = 1 << 27  # of one tensor for one image: 512 MB in float32

_MAX_TOTAL = 1 << 32  # of all tensors; what passes over them takes seconds

_MAX_MACS = 2e12  # multiply-adds: a minute on one core, and ten times a 200-layer face network

_MANY = 5_000  # operators; onnxruntime's optimiser takes the square of some chains' length

_STANDARD = {
    ("com.microsoft.nchwc", "Conv"): ("Conv", 2),
    ("com.microsoft.nchwc", "MaxPool"): ("MaxPool", 1),
    ("com.microsoft.nchwc", "AveragePool"): ("AveragePool", 1),
    ("com.microsoft.nchwc", "GlobalMaxPool"): ("GlobalMaxPool", 1),
    ("com.microsoft.nchwc", "GlobalAveragePool"): ("GlobalAveragePool", 1),
    ("com.microsoft", "FusedConv"): ("Conv", 2),
    ("com.microsoft", "FusedGemm"): ("Gemm", 2),
    ("com.microsoft", "MatMulIntegerToFloat"): ("MatMulInteger", 2),
}
"""Operators that onnxruntime's optimiser puts into engines -> the standard one that makes the same shape,
and how many of their inputs it has (ContribOperators.md and core/graph/contrib_ops of onnxruntime)."""

_TRIAL = """
import resource, sys
seconds, memory = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
resource.setrlimit(resource.RLIMIT_CPU, (8 * seconds, 8 * seconds))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
options.intra_op_num_threads = 2
kinds = {"tensor(float)": "f4", "tensor(float16)": "f2", "tensor(uint8)": "u1"}
data, sizes = sys.stdin.buffer.read(), iter((1, 3, *map(int, sys.argv[3:5])))
try:
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    feeds = {}
    for value in session.get_inputs():
        usual = (1, 3, *map(int, sys.argv[3:5])) if len(value.shape) == 4 else (1,) * 32
        shape = [s if isinstance(s, int) else usual[i] for i, s in enumerate(value.shape)]
        feeds[value.name] = numpy.ones(shape, kinds.get(value.type, "f4"))
    session.run(None, feeds)
except MemoryError:
    sys.exit(3)
except Exception as error:
    sys.exit(3 if "alloc" in str(error).lower() else 0)  # other refusals: the caller meets them
"""


def ensure_runnable(
    model: ModelProto, name: str, size: tuple[int, int] = (112, 112), data: bytes = b""
) -> None:
    """Refuse a network that does not finish, or needs too much memory, on one image.

    Args:
        model: A model from `onnx_file`.
        name: What errors call it.
        size: Height and width of the image where the network leaves them open, in pixels.
        data: The model serialized; made here if need be.

    Raises:
        ModelError: The trial run exceeds the limits, or the model does not fit into one file.
    """
    if not (reason := _unknown_cost(model, size)):
        return
    logger.debug("%s: %s, so it is run once apart", name, reason)
    try:
        data = data or model.SerializeToString()
    except Exception as error:  # protobuf's error class has no public base
        raise ModelError(f"{name} is larger than 2 GB: {error}") from error
    run_apart(_TRIAL, tuple(map(str, size)), data, name, reason)


def run_apart(
    script: str, arguments: Sequence[str], data: bytes, name: str, reason: str
) -> dict[str, int]:
    """Run a network once in a process of its own, with limits of time and memory.

    Args:
        script: Python code; its arguments are seconds, bytes of memory, and `arguments`. It exits
            with 0 where the network ran.
        arguments: What else the script takes.
        data: Its standard input.
        name: What errors call the network.
        reason: Why it is tried.

    Returns:
        The limits: `seconds` and `memory` in bytes.

    Raises:
        ModelError: The script did not finish in time, or failed.
    """
    seconds, memory = read_limit("APART_SECONDS"), read_limit("APART_MB")
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", script, str(seconds), str(memory), *arguments],
            input=data,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"{name} does not finish on one image within {seconds} s ({reason})",
            raise_limit_hint("APART_SECONDS", str(4 * seconds)),
        ) from error
    if done.returncode:
        raise ModelError(
            f"{name} cannot be run on one image within {memory >> 20:,} MB ({reason})",
            raise_limit_hint("APART_MB", str(2 * memory >> 20)),
        )
    return {"seconds": seconds, "memory": memory}


def _unknown_cost(model: ModelProto, size: tuple[int, int]) -> str:
    """Why the cost of the network is not known to be small; "" where it is."""
    branch = next((node.op_type for node in model.graph.node if node.op_type in _BRANCHES), "")
    if branch:
        return f"it has the operator {branch}"
    if len(model.graph.node) > _MANY:
        return f"it has {len(model.graph.node):,} operators"
    try:
        shapes = _shapes(model, size)
    except Exception as error:  # onnx's inference raises its own, RuntimeError and ValueError
        return f"its shapes cannot be inferred: {str(error).splitlines()[0][:80] if str(error) else ''}"
    total, macs = 0, 0.0
    for node in model.graph.node:
        numbers = [shapes.get(output) for output in node.output if output]
        if None in numbers:
            if node.domain in ("", "ai.onnx") and node.op_type not in _VIEWS:
                return f"the shape that {node.op_type} makes depends on data"
            numbers = [n for n in numbers if n is not None]
        counts = [prod(shape) for shape in numbers if shape is not None]
        if max(counts, default=0) > _MAX_NUMBERS:
            return f"{node.op_type} makes {max(counts):,} numbers"
        total += sum(counts)
        operator, _ = _STANDARD.get((node.domain, node.op_type), (node.op_type, 0))
        macs += _macs(operator, list(node.input), max(counts, default=0), shapes)
    if total > _MAX_TOTAL or macs > _MAX_MACS:
        return f"it makes {total:,} numbers in {macs:.0e} multiply-adds"
    return ""


def _macs(
    operator: str, inputs: list[str], outputs: int, shapes: Mapping[str, list[int] | None]
) -> float:
    if operator not in _MULTIPLYING or len(inputs) < 2:
        return float(outputs)
    weight = shapes.get(inputs[1]) or [1]
    if operator in ("Conv", "ConvTranspose"):
        return float(outputs) * prod(weight[1:])
    return float(outputs) * max(weight[-2:])


def _shapes(model: ModelProto, size: tuple[int, int]) -> dict[str, list[int] | None]:
    """Tensor -> its shape for one image; None where a size is not known."""
    graph = model.graph
    # Constants as initializers, whose values onnx follows into the shapes that they give.
    constants = {node.output[0]: _constant(node) for node in graph.node if node.output}
    constants = {name: tensor for name, tensor in constants.items() if tensor is not None}
    nodes = [
        part
        for node in graph.node
        if not node.output or node.output[0] not in constants
        for part in _standard(node)
    ]
    large = [tensor for tensor in graph.initializer if prod(tensor.dims) > _LARGE]
    names = {tensor.name for tensor in graph.initializer}
    inputs = [_fixed(value, size) for value in graph.input if value.name not in names]
    inputs += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in large]
    weights = {tensor.name for tensor in large}
    # Declared shapes are left out: they may be false.
    outputs = [onnx.ValueInfoProto(name=value.name) for value in graph.output]
    small = [tensor for tensor in graph.initializer if tensor.name not in weights]
    small += [tensor for tensor in constants.values() if tensor is not None]
    bare = helper.make_model(
        helper.make_graph(nodes, "bare", inputs, outputs, small),
        ir_version=model.ir_version,
        opset_imports=model.opset_import,
    )
    inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    values = (*inferred.value_info, *inferred.output, *inferred.input)
    shapes = {value.name: _sizes(value.type) for value in values}
    return {**shapes, **{tensor.name: list(tensor.dims) for tensor in (*large, *small)}}


def _standard(node: NodeProto) -> list[NodeProto]:
    """The node, or standard ones that make the same shapes, without its arithmetic."""
    if node.domain == "com.microsoft.nchwc" and node.op_type.startswith("Reorder"):
        return _reordered(node)
    operator, inputs = _STANDARD.get((node.domain, node.op_type), ("", 0))
    if not operator:
        return [node]
    known = onnx.defs.get_schema(operator).attributes
    made = helper.make_node(operator, node.input[:inputs], node.output[:1], node.name)
    made.attribute.extend(a for a in node.attribute if a.name in known)
    return [made]


def _reordered(node: NodeProto) -> list[NodeProto]:
    """Into or out of channels in blocks of 8 or 16: blocks' empty channels are cut off again.

    Blocks count as the channels that they hold; onnxruntime fills them up to 15 more.
    """
    values = {a.name: a.i for a in node.attribute}
    last, x, out = values.get("channels_last", 0), node.input[0], node.output[0]
    if node.op_type == "ReorderInput":
        to_first = helper.make_node("Transpose", [x], [out], perm=[0, 3, 1, 2])
        return [to_first if last else helper.make_node("Identity", [x], [out])]
    limits = [f"{out}_{name}" for name in ("start", "end", "axis")]
    constants = [
        helper.make_node("Constant", [], [name], value_ints=[number])
        for name, number in zip(limits, (0, values.get("channels", 0), 1), strict=True)
    ]
    cut = helper.make_node("Slice", [x, *limits], [f"{out}_cut" if last else out])
    turn = helper.make_node("Transpose", [f"{out}_cut"], [out], perm=[0, 2, 3, 1])
    return [*constants, cut, turn] if last else [*constants, cut]


def _constant(node: NodeProto) -> TensorProto | None:
    """The tensor that a Constant node holds."""
    for item in node.attribute if node.op_type == "Constant" else ():
        if item.type == AttributeProto.TENSOR:
            tensor = TensorProto()
            tensor.CopyFrom(item.t)
            tensor.name = node.output[0]
            return tensor
    return None


def _fixed(value: onnx.ValueInfoProto, size: tuple[int, int]) -> onnx.ValueInfoProto:
    """An input with every open size fixed to that of one image."""
    dims = value.type.tensor_type.shape.dim
    usual = (1, 3, *size) if len(dims) == 4 else (1,) * len(dims)
    shape = [dim.dim_value or default for dim, default in zip(dims, usual, strict=True)]
    return helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, shape)


def _sizes(kind: TypeProto) -> list[int] | None:
    if not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    return [d.dim_value for d in dims] if all(d.HasField("dim_value") for d in dims) else None
