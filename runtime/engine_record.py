"""What an engine's own file says about the numbers it computes in.

The name of an engine, its fingerprint and the manifest are claims. Other bytes under the same name may
embed as well as the engine: an FP32 network where an INT8 one is claimed. onnxruntime's engine is an
ONNX file: integer kernels read constant integer matrices, and layers that compute in float have the
weights that the model of their precision has, in whatever order onnxruntime stores them. TensorRT's
plan is asked by the inspector.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from ..bundle.manifest import Bundle
from ..graph.cpu_int8 import cpu_model
from ..graph.eight_bit import EIGHT_BIT
from ..graph.layers import precisions_by_output
from ..onnx_file import parse_onnx, read_onnx
from .detector_engine import BundleDetector
from .fingerprint import engine_source, read_expected, read_fingerprint
from .onnxruntime_session import ONNXRUNTIME
from .session import Session
from .tensorrt_session import GpuSession
from .trt.layers import UNKNOWN, layers_in_json, reformats

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_INTEGERS = (TensorProto.INT8, TensorProto.UINT8)


@dataclass(frozen=True)
class EngineRecord:
    """The layers of an engine's precision, by its own file.

    Attributes:
        precision: What the engine is called: "fp32", "fp16", "fp8" or "int8".
        source: The model that it is called an engine of.
        claimed: Layers of that precision in the model.
        claimed_integer: Layers in integer arithmetic by the fingerprint.
        integer: Layers that compute in integer arithmetic; None where the file does not tell.
        weights: Outputs of layers that have the model's weights of that precision.
        computing: Layers that compute in that precision on TensorRT; None on onnxruntime, and where
            TensorRT does not report it.
    """

    precision: str
    source: str
    claimed: int
    claimed_integer: int = 0
    integer: int | None = None
    weights: frozenset[str] = field(default_factory=frozenset)
    computing: int | None = None

    def problem(self) -> str:
        """Why the engine is not of its precision, in words; "" where it is, or nothing tells."""
        name = self.precision.upper()
        if self.computing is not None:
            return "" if self.computing else f"no layer of this engine computes in {name}"
        if self.integer is None:
            return ""
        if not self.integer and not self.weights:
            return (
                f"no layer of this engine computes in {name}: its file has none of the"
                f" {self.claimed} {name} layers of {self.source}"
            )
        if self.integer != self.claimed_integer:
            return (
                f"{self.integer} layers of this engine compute in integers by its own file,"
                f" {self.claimed_integer} by its fingerprint"
            )
        return ""


def session_record(bundle: Bundle, session: Session | BundleDetector) -> EngineRecord | None:
    """The record of the engine that a session or a detector has opened.

    Args:
        bundle: The bundle that it was opened from.
        session: The open session or detector.

    Returns:
        The record; None for an ONNX graph, which is judged as its file has it, and for a detector's plan.

    Raises:
        BundleError: The engine or its fingerprint was changed since.
        ModelError: The engine is not an ONNX model.
    """
    if session.artifact != "engine":
        return None
    if isinstance(session, GpuSession):
        facts = read_fingerprint(bundle, session.file)
        claimed = facts["layers"].get(session.precision, 0)
        computing = _computing(session.layer_table(), session.precision)
        return EngineRecord(session.precision, engine_source(facts), claimed, computing=computing)
    return file_record(bundle, session.file, session.sha256)


def file_record(bundle: Bundle, name: str, sha256: str = "") -> EngineRecord | None:
    """The record of an engine for onnxruntime, of its file alone.

    Args:
        bundle: An open bundle.
        name: The engine's path within it.
        sha256: Of the bytes that are expected; by default the manifest's.

    Returns:
        The record; None for a TensorRT plan, which its GPU alone can read, and where the model is
        missing.

    Raises:
        BundleError: The engine or its fingerprint was changed.
        ModelError: The engine is not an ONNX model.
    """
    facts = read_fingerprint(bundle, name)
    source = engine_source(facts)
    if facts["backend"] != ONNXRUNTIME or source not in bundle:
        return None
    path = bundle.file(name)
    data, _ = read_expected(path, sha256 or bundle.files[name].sha256)
    engine, model = parse_onnx(data, str(path)), read_onnx(bundle.file(source))
    precision = facts["precision"]
    layers = [out for out, p in precisions_by_output(model).items() if p == precision]
    return EngineRecord(
        precision,
        source,
        len(layers),
        facts.get("integer_kernels", 0),
        _count_integer(engine),
        frozenset(_shared(engine, model, layers)),
    )


def _computing_nodes(engine: ModelProto) -> list[NodeProto]:
    """The operators that the embedding depends on."""
    needed = {output.name for output in engine.graph.output}
    nodes = []
    for node in reversed(engine.graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            nodes.append(node)
    return nodes


def _count_integer(engine: ModelProto) -> int:
    """Operators that read a constant integer matrix and do not turn it into floats first."""
    matrices = {
        tensor.name
        for tensor in engine.graph.initializer
        if tensor.data_type in _INTEGERS and len(tensor.dims) > 1
    }
    return sum(
        node.op_type != "DequantizeLinear" and bool(matrices & set(node.input))
        for node in _computing_nodes(engine)
    )


def _shared(engine: ModelProto, model: ModelProto, layers: list[str]) -> Iterator[str]:
    """The layers of a model, by their outputs, whose weights an engine reads as floats."""
    read = {name for node in _computing_nodes(engine) for name in node.input}
    stored = {
        _digest(tensor)
        for tensor in engine.graph.initializer
        if tensor.name in read and _is_matrix(tensor)
    }
    plain = cpu_model(model, ())  # as the engine was written, its weights in float
    weights: Mapping[str, Any] = {tensor.name: tensor for tensor in plain.graph.initializer}
    wanted = set(layers)
    for node in plain.graph.node:
        if node.output and node.output[0] in wanted and len(node.input) > 1:
            tensor = weights.get(node.input[1])
            if tensor is not None and _digest(tensor) in stored:
                yield node.output[0]


def _is_matrix(tensor: TensorProto) -> bool:
    return tensor.data_type in _FLOATS and len(tensor.dims) > 1


def _digest(tensor: TensorProto) -> bytes:
    """Of the values without their order and without zeros: onnxruntime pads and reorders weights."""
    values = numpy_helper.to_array(tensor).astype(np.float32).ravel()
    return hashlib.sha256(np.sort(values[values != 0]).tobytes()).digest()


def _computing(table: str, precision: str) -> int | None:
    """Layers of a plan that compute in a precision; None where TensorRT does not tell of all."""
    layers = [layer for layer in layers_in_json(table) if not reformats([layer])]
    count = sum(layer.precision == precision for layer in layers)
    told = all(layer.precision != UNKNOWN for layer in layers)
    if precision not in EIGHT_BIT or (not count and not (layers and told)):
        return None
    return count
