"""The layers of a compiled engine and the precisions they compute in, as TensorRT reports them.

There are two sources: the builder's detailed log (the only one without a GPU) and the JSON of the
engine inspector. Only their text is read here; the library is not loaded. Of an engine with a
dynamic batch both may leave out the tensors' types; then those of the weights count, then the
kernel's name, else the precision is unknown.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from onnx import ModelProto

from ...documents import decode_json
from ...errors import DataError
from ...graph.layers import Layer, weighted_layers, weighted_nodes

logger = logging.getLogger(__name__)

UNKNOWN = "unknown"

_PRECISIONS = ("int8", "fp16", "fp32")

_QUANTIZED = ("int8", "fp8")

_REFORMAT = ("reformat", "reformatting")

_TYPES = {
    "uint8": r"uint8",
    "int8": r"int8",
    "fp8": r"fp8|float8",
    "bf16": r"bf16|bfloat16",
    "fp16": r"half|fp16|float16",
    "fp32": r"float|fp32",
}

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)  # of JSON
_CONTROL = re.compile(r"[\x00-\x1f]")

_VECTOR = 4  # channels of INT8's smallest vectorised format, kCHW4 (NvInferRuntimeBase.h)

_NOT_REPORTED = re.compile(r"N/A\b|^\s*$", re.IGNORECASE)  # "N/A due to dynamic shapes"

_TACTICS = {
    "fp8": r"e4m3|fp8",
    "int8": r"i8i8|i8i32|i8f32|imma|int8",
    "fp16": r"f16f16|h16816|h1688|h884|hmma|fp16",
    "fp32": r"f32f32|sgemm|ffma|fp32",
}
"""Types in the names of NVIDIA's kernels: ..._i8i8_i8i32_f32_... multiplies INT8."""

_PART = re.compile(r", (Inputs|Constants|Outputs): \[")

_WEIGHTS = re.compile(r'"?Weights"?: \{[^}]*?"?\bType"?: "?(\w+)')
"""TensorRT 10 writes `Weights: {"Type": "Int8", ...}`, 8 and RTX `Weights: {Type: Int8, ...}`."""

_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")

_FUSED = re.compile(r" \+ | \|\| ")
"""Between the nodes of a layer's name: "Conv_1 + PRelu_2", and "Conv_1 || Conv_3" for convolutions of
one input that one kernel computes (trtexec logs of 8.x; 10 names the nodes in the metadata)."""


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine.

    Attributes:
        name: TensorRT's name for it.
        kind: Its kind, such as "CaskConvolution".
        inputs: Types of its inputs: int8, fp16, fp32, bf16, fp8, or TensorRT's own word.
        weights: Types of its weights.
        outputs: Types of its outputs.
        nodes: ONNX nodes that it computes at least a part of.
        tactic: Name of its kernel, "" where none is reported.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]
    tactic: str = ""

    @property
    def precision(self) -> str:
        """The type that it multiplies: its data's, and its weights' if it has any.

        `UNKNOWN` where TensorRT reports neither of them, and its kernel's name has no type.
        """
        types = {*self.inputs[:1], *self.weights[:1]} - {UNKNOWN}
        if not types:
            return next(
                (t for t, words in _TACTICS.items() if re.search(words, self.tactic)), UNKNOWN
            )
        return types.pop() if len(types) == 1 else "fp32" if "fp32" in types else "mixed"

    @property
    def evidence(self) -> str:
        """What `precision` comes from: "tensors and weights", "tensors", "weights", "kernel", ""."""
        parts = (("tensors", self.inputs), ("weights", self.weights))
        told = [name for name, types in parts if types[:1] and types[0] != UNKNOWN]
        return " and ".join(told) or ("" if self.precision == UNKNOWN else "kernel")


@dataclass(frozen=True)
class LayerProof:
    """A layer with weights: what the network's file asks for, and what the engine computes.

    Attributes:
        layer: The ONNX node.
        operator: Conv, Gemm or MatMul.
        asked: What the file asks for: "int8" or "fp8" between Q and DQ, else its weights' type.
        built: What the engine computes in; `UNKNOWN` where that is not reported, "merged" where no
            layer of the engine names the node.
        evidence: What shows it, as `EngineLayer.evidence`.
        reason: Why a layer that was to be INT8 or FP8 likely is not, "" for the others.
    """

    layer: str
    operator: str
    asked: str
    built: str
    evidence: str
    reason: str = ""


def layers_in_log(text: str) -> list[EngineLayer]:
    """Read the layer table of the builder's log.

    Args:
        text: `Layers:`, then `Name: ..., LayerType: ...` per line.
    """
    return [_from_line(line) for line in text.splitlines() if line.startswith("Name: ")]


def layers_in_json(text: str) -> list[EngineLayer]:
    """Read the engine inspector's table.

    Args:
        text: `IEngineInspector.get_engine_information(JSON)`.

    Returns:
        The layers; empty where the engine was built without details.
    """
    rows = inspector_table(text).get("Layers", [])
    return [_from_object(row) for row in rows if isinstance(row, dict)]


def inspector_table(text: str) -> dict[str, Any]:
    """The engine inspector's table, {} where it is not JSON: then nothing is told, and no build fails.

    TensorRT writes the names of an ONNX file into it as they are, control characters too.

    Args:
        text: `IEngineInspector.get_engine_information(JSON)`.
    """
    try:
        shown = _STRING.sub(lambda match: _CONTROL.sub(_escape, match[0]), text)
        return decode_json(shown.encode(), dict[str, Any], "the engine inspector's table")
    except (ValueError, RecursionError, DataError) as error:
        logger.warning("TensorRT's table of the layers cannot be read: %s", error)
        return {}


def node_precisions(model: ModelProto, layers: Sequence[EngineLayer]) -> dict[str, str]:
    """The precision that each ONNX node with weights was built in.

    Args:
        model: The network.
        layers: The engine's.

    Returns:
        Node -> precision; nodes that no layer names are left out.
    """
    computing = _layers_by_node(layers)
    names = [node.name for node in weighted_nodes(model)]
    return {name: computing[name].precision for name in names if name in computing}


def _layers_by_node(layers: Sequence[EngineLayer]) -> dict[str, EngineLayer]:
    # A kernel that TensorRT generated for the operators around a convolution names the convolution
    # too: a layer with weights of its own goes first.
    computing: dict[str, EngineLayer] = {}
    for layer in sorted(layers, key=lambda row: (row.kind == "kgen", not row.weights)):
        for node in layer.nodes:
            computing.setdefault(node, layer)
    return computing


def prove_layers(model: ModelProto, layers: Sequence[EngineLayer]) -> tuple[LayerProof, ...]:
    """Lay what an engine computes beside what its network asks for.

    Args:
        model: The network that TensorRT was given.
        layers: The engine's.

    Returns:
        One proof for each layer with weights, in graph order.
    """
    computing, proofs = _layers_by_node(layers), []
    for index, asked in enumerate(weighted_layers(model)):
        engine = computing.get(asked.name)
        built = engine.precision if engine else "merged"
        refused = asked.precision in _QUANTIZED and built not in (
            asked.precision,
            UNKNOWN,
            "merged",
        )
        proofs.append(
            LayerProof(
                asked.name,
                asked.op,
                asked.precision,
                built,
                engine.evidence if engine else "",
                _likely_reason(asked, built, first=index == 0) if refused else "",
            )
        )
    return tuple(proofs)


def _likely_reason(layer: Layer, built: str, *, first: bool) -> str:
    """Why TensorRT left INT8 or FP8; it does not tell itself."""
    name = layer.precision.upper()
    if built == "mixed":
        return (
            f"its weights are {name} and its data are not: the Q and DQ before it do not reach it"
        )
    if layer.precision == "fp8":
        return "TensorRT has no FP8 kernel for its sizes on this GPU, or measured another as faster"
    if layer.groups > 1:
        return "few TensorRT versions have INT8 kernels for grouped convolutions"
    if layer.op != "Conv":
        return "TensorRT takes FP16 for small matrix products where that is faster"
    if first:
        return "it reads the image's 3 channels, and INT8 kernels read 4 or 32 at a time"
    if layer.shape and layer.shape[0] % _VECTOR:
        return (
            f"it writes {layer.shape[0]} channels, and INT8 kernels write {_VECTOR} or 32 at a time"
        )
    return "TensorRT has no INT8 kernel for its sizes, or measured another one as faster"


def count_untyped(layers: Sequence[EngineLayer]) -> int:
    """How many layers lack the type of their data, or that of their weights.

    Args:
        layers: The engine's.
    """
    return sum(UNKNOWN in {*layer.inputs[:1], *layer.weights[:1]} for layer in layers)


def count_precisions(precisions: Iterable[str]) -> dict[str, int]:
    """Count precisions.

    Args:
        precisions: One per layer.

    Returns:
        Precision -> count; int8, fp16 and fp32 are always there.
    """
    counts = Counter(precisions)
    return {**({"fp8": 0} if "fp8" in counts else {}), **dict.fromkeys(_PRECISIONS, 0), **counts}


def reformats(layers: Sequence[EngineLayer]) -> int:
    """How many layers only change the layout or type of a tensor.

    Args:
        layers: The engine's.
    """
    return sum(layer.kind.lower() in _REFORMAT for layer in layers)


def _from_line(line: str) -> EngineLayer:
    head, *rest = _PART.split(line)
    parts = dict(zip(rest[::2], rest[1::2], strict=True))
    types = {key: _types_in(body.split("}]", 1)[0]) for key, body in parts.items()}
    name, kind = head.removeprefix("Name: ").rsplit(", LayerType: ", 1)
    weights = types.get("Constants", ())
    if cask := _WEIGHTS.search(line):
        weights = (_type(cask[1]),)
    tactic = re.search(r"TacticName: ([^,]*)", line)
    nodes = tuple(_NODE.findall(line)) or tuple(_FUSED.split(name))
    return EngineLayer(
        name,
        kind,
        types.get("Inputs", ()),
        weights,
        types.get("Outputs", ()),
        nodes,
        tactic[1] if tactic else "",
    )


def _from_object(row: dict[str, Any]) -> EngineLayer:
    name = str(row.get("Name", ""))
    weights = [
        _type(c.get("Format/Datatype", c.get("Datatype", ""))) for c in row.get("Constants", [])
    ]
    if isinstance(row.get("Weights"), dict):
        weights = [_type(str(row["Weights"].get("Type", "")))]
    inputs, outputs = (
        tuple(_type(t.get("Format/Datatype", t.get("Datatype", ""))) for t in row.get(key, []))
        for key in ("Inputs", "Outputs")
    )
    nodes = tuple(_NODE.findall(str(row.get("Metadata", "")))) or tuple(_FUSED.split(name))
    return EngineLayer(
        name,
        str(row.get("LayerType", "")),
        inputs,
        tuple(weights),
        outputs,
        nodes,
        str(row.get("TacticName", "")),
    )


def _types_in(body: str) -> tuple[str, ...]:
    return tuple(_type(match) for match in re.findall(r"Datatype: ([^,}]*)", body))


def _type(text: str) -> str:
    if _NOT_REPORTED.search(text):
        return UNKNOWN
    for name, pattern in _TYPES.items():
        if re.search(pattern, text, re.IGNORECASE):
            return name
    return text.strip()


def _escape(character: re.Match[str]) -> str:
    return f"\\u{ord(character[0]):04x}"
