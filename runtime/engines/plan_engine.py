"""A bundle's model through TensorRT's builder: the right flavour in, a plan and its proof out.

`tensorrt-rtx` goes the same way without a GPU; what it makes is compiled, never executed, and says
so wherever it is named.
"""

from collections.abc import Mapping
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto

from ...bundle import Bundle
from ...errors import BundleError, GateFailed
from ...export.finite import check_finite
from ...export.prelu import fusible
from ..machine.backends import COMPILE_ONLY, MODULES
from ..machine.gpus import find_gpus
from .builder import Compiled, compile_plan, load_library
from .engine_config import EngineOptions, strongly_typed
from .engine_layers import count_precisions, node_precisions, reformats
from .fingerprint import SOURCES
from .implicit import cached_calibrator
from .made import COMPUTE, Made
from .mixed import mixed_flavour, wide_nodes
from .raw import SHAPE as RAW_SHAPE
from .raw import raw_flavour

_UNTRIED = (
    "compiled ahead of time and not executed: this shows that NVIDIA's parser and compiler take"
    " the network and in which precisions, nothing about speed or accuracy"
)


def make_plan(
    bundle: Bundle, precision: str, backend: str, options: EngineOptions, timing_cache: bytes
) -> tuple[bytes, Made]:
    """Build the plan of a bundle's network; returns it and what is in it.

    Raises ModelError when the network is refused, GateFailed when an INT8 engine computes no
    convolution in INT8, MachineError when the library or the GPU does not suffice.
    """
    trt = load_library(backend)
    calibrator = cached_calibrator(trt, bundle, precision) if options.implicit else None
    strong = strongly_typed(trt, options)
    model, notes = _network(bundle, precision, strong, raw=options.raw, implicit=options.implicit)
    cache = None if backend in COMPILE_ONLY else timing_cache  # without a GPU nothing is timed
    shape = RAW_SHAPE if options.raw else bundle.spec.shape
    data = _written(model, options.implicit)
    compiled = compile_plan(trt, data, shape, precision, options, cache, calibrator)
    found = node_precisions(model, compiled.layers)
    _prove_int8(model, found, precision)
    layers, moved = count_precisions(found.values()), reformats(compiled.layers)
    facts = {
        MODULES[backend]: str(trt.__version__),
        "driver": find_gpus().driver,
        "compile_only": backend in COMPILE_ONLY,
        "compute": list(options.compute),
        "batch": list(options.batch),
        "raw": options.raw,
        "refit": options.refit,
        "stripped": options.strip_weights,
        "version_compatible": options.version_compatible,
        "hardware_compatible": options.hardware_compatible,
        "typing": "strong" if strong else "flags",
        "implicit": options.implicit,
        "reformats": moved,
        "precisions": found,
        "engine_layers": [_row(layer) for layer in compiled.layers],
    }
    proof = _proof(model, compiled, layers, moved)
    untried = (_UNTRIED,) if backend in COMPILE_ONLY else ()
    made = Made(
        layers,
        layers["int8"],
        facts,
        (*notes, *compiled.notes, proof, *untried),
        compiled.timing_cache,
    )
    return compiled.plan, made


def compile_model(
    bundle: Bundle, model: ModelProto, backend: str, options: EngineOptions, timing_cache: bytes
) -> Compiled:
    """The plan of a variant of the bundle's network, float32 or with Q and DQ; raises as
    `make_plan`."""
    trt = load_library(backend)
    strong = strongly_typed(trt, options)
    typed = _typed(bundle, model)[0] if strong else model
    quantised = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    precision = "int8" if quantised else "fp16"
    cache = None if backend in COMPILE_ONLY else timing_cache
    return compile_plan(trt, _written(typed, False), bundle.spec.shape, precision, options, cache)


def network_of_plan(bundle: Bundle, facts: Mapping[str, Any]) -> bytes:
    """The network that a plan was compiled from, by the plan's fingerprint: its weights' source."""
    strong, implicit = facts.get("typing") == "strong", bool(facts.get("implicit"))
    raw = bool(facts.get("raw"))
    model, _ = _network(bundle, facts["precision"], strong, raw=raw, implicit=implicit)
    return _written(model, implicit)


def _network(
    bundle: Bundle, precision: str, strong: bool, *, raw: bool, implicit: bool
) -> tuple[ModelProto, tuple[str, ...]]:
    model, notes = _flavour(bundle, precision, strong, implicit)
    return raw_flavour(model, bundle.spec) if raw else model, notes


def _written(model: ModelProto, implicit: bool) -> bytes:
    # TensorRT fuses this form of PReLU into the convolution (docs/decisions/0003). Implicitly
    # quantised, each step of it would need a range of its own.
    data: bytes = (model if implicit else fusible(model)).SerializeToString()
    return data


def _flavour(
    bundle: Bundle, precision: str, strong: bool, implicit: bool
) -> tuple[ModelProto, tuple[str, ...]]:
    """The ONNX file for this way of typing: as written, or float32 that flags may lower."""
    plain = implicit or (precision == "fp16" and not strong)
    name = SOURCES["fp32" if plain else precision]
    path = bundle.file(name)
    try:
        model = onnx.load(path)
    except DecodeError as error:
        raise BundleError(f"{path} is not an ONNX model: {error}", "export again") from error
    check_finite(model)
    return (model, ()) if precision != "int8" or not strong else _typed(bundle, model)


def _typed(bundle: Bundle, model: ModelProto) -> tuple[ModelProto, tuple[str, ...]]:
    """FP16 around the INT8 of a float32 model, where the network's numbers fit."""
    if SOURCES["fp16"] not in bundle:
        return model, ("the network has no FP16 flavour, so what is not INT8 stays FP32",)
    wide = wide_nodes(onnx.load(bundle.file(SOURCES["fp16"])))
    wide &= {node.name for node in model.graph.node}
    notes = (f"{len(wide)} nodes stay FP32: their numbers do not fit FP16",) if wide else ()
    return mixed_flavour(model, wide), notes


def _prove_int8(model: ModelProto, found: dict[str, str], precision: str) -> None:
    if precision != "int8":
        return
    kind = "Conv" if any(node.op_type == "Conv" for node in model.graph.node) else "Gemm"
    names = [node.name for node in model.graph.node if node.op_type == kind]
    if not any(found.get(name) == "int8" for name in names):
        raise GateFailed(
            f"none of the engine's {len(names)} {kind} layers computes in INT8"
            + ("" if found else ": TensorRT did not tell its layers"),
            "calibrate again and look at what it keeps in float: `fr-edge inspect BUNDLE`",
        )


def _proof(
    model: ModelProto, compiled: Compiled, layers: dict[str, int], reformat_count: int
) -> str:
    total = sum(node.op_type in COMPUTE for node in model.graph.node)
    if not compiled.layers:
        return "TensorRT did not tell its layers: their precisions are not known"
    counts = ", ".join(f"{n} {name.upper()}" for name, n in layers.items() if n)
    unknown = total - sum(layers.values())
    more = f", {unknown} merged into others" if unknown > 0 else ""
    return (
        f"of {total} layers with weights, in the engine: {counts}{more}; {reformat_count} reformats"
    )


def _row(layer: Any) -> dict[str, Any]:
    return {
        "name": layer.name,
        "kind": layer.kind,
        "inputs": list(layer.inputs),
        "weights": list(layer.weights),
        "outputs": list(layer.outputs),
        "nodes": list(layer.nodes),
    }
