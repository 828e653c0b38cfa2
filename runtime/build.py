"""A bundle's model through TensorRT's builder: the right flavour in, a plan and its proof out.

`tensorrt-rtx` goes the same way without a GPU; what it makes is compiled, never executed, and says
so wherever it is named.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto

from ..bundle.bundle import open_bundle, transaction
from ..bundle.manifest import Bundle
from ..calibration.calibrate import calibrate
from ..errors import BundleError, GateFailed, UsageError
from ..faces.sources import Faces
from ..files import sha256
from ..graph.fp16 import int8_fp16_model, wide_nodes
from ..graph.layers import WEIGHTED_OPERATORS, BackendBuild, layer_precisions
from ..graph.load import check_finite
from ..graph.prelu import fusible
from ..graph.uint8_input import UINT8_SHAPE, with_uint8_input
from ..progress import Track, silent
from ..runtime import onnxruntime_session as cpu
from .cpu_kernel_selection import KernelSelection
from .fingerprint import SOURCES, machine_fingerprint
from .machine.backends import COMPILE_ONLY, MODULES, pick_backend
from .machine.device import find_gpus
from .trt.builder import Compiled, compile_plan, load_library
from .trt.calibrator import cache_version, cached_calibrator
from .trt.config import EngineOptions, strongly_typed
from .trt.layers import count_precisions, node_precisions, reformats

_UNTRIED = (
    "compiled ahead of time and not executed: this shows that NVIDIA's parser and compiler take"
    " the network and in which precisions, nothing about speed or accuracy"
)


def make_plan(
    bundle: Bundle, precision: str, backend: str, options: EngineOptions, timing_cache: bytes
) -> tuple[bytes, BackendBuild]:
    """Build the plan of a bundle's network; returns it and what is in it.

    Raises ModelError when the network is refused, GateFailed when an INT8 engine computes no
    convolution in INT8, MachineError when the library or the GPU does not suffice.
    """
    trt = load_library(backend)
    calibrator = cached_calibrator(trt, bundle, precision) if options.implicit else None
    strong = strongly_typed(trt, options)
    model, notes = _network(
        bundle, precision, strong, uint8_input=options.uint8_input, implicit=options.implicit
    )
    cache = None if backend in COMPILE_ONLY else timing_cache  # without a GPU nothing is timed
    shape = UINT8_SHAPE if options.uint8_input else bundle.spec.shape
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
        "uint8_input": options.uint8_input,
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
    made = BackendBuild(
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


def _network(
    bundle: Bundle, precision: str, strong: bool, *, uint8_input: bool, implicit: bool
) -> tuple[ModelProto, tuple[str, ...]]:
    model, notes = _flavour(bundle, precision, strong, implicit)
    return with_uint8_input(model, bundle.spec) if uint8_input else model, notes


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
    return int8_fp16_model(model, wide), notes


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
    total = sum(node.op_type in WEIGHTED_OPERATORS for node in model.graph.node)
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


# Build an engine and give it a fingerprint: where it was built, from what, in which precisions.

PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class BuildResult:
    """What `build_engine` made; `layers` counts layers with weights by precision: TensorRT's as
    they were built, the CPU's as the model has them. `integer_kernels` are those that run on
    integer arithmetic; `size` in bytes."""

    engine: str
    backend: str
    precision: str
    layers: dict[str, int]
    integer_kernels: int
    size: int
    notes: list[str]

    @property
    def told(self) -> str:
        """The layers in words: "33 INT8 (21 in integer kernels), 17 FP32"."""
        parts = [f"{count} {name.upper()}" for name, count in self.layers.items() if count]
        if self.layers.get("int8", 0) > self.integer_kernels:
            parts[0] += f" ({self.integer_kernels} in integer kernels)"
        return ", ".join(parts)


def engine_name(backend: str, precision: str) -> str:
    """The engine's path within a bundle.

    Args:
        backend: "onnxruntime", "tensorrt" or "tensorrt-rtx".
        precision: "fp32", "fp16" or "int8".
    """
    return f"engines/{backend}-{precision}.{'onnx' if backend == cpu.ONNXRUNTIME else 'plan'}"


def build_engine(
    bundle: Bundle | str | Path,
    precision: str,
    backend: str = "auto",
    faces: Faces | None = None,
    track: Track = silent,
    options: EngineOptions | None = None,
) -> BuildResult:
    """Build `precision` (fp32, fp16, int8) for this machine, into the bundle.

    INT8 calibrates first when the bundle has no table and `faces` are given, for implicit
    quantisation with TensorRT's cache; without either it raises UsageError. `options` are
    TensorRT's. Raises MachineError when the backend cannot be used here, ModelError when it refuses
    the network, GateFailed when an INT8 engine would hold no INT8 convolution; the bundle then stays
    as it was.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"no precision {precision!r}", f"precisions: {', '.join(PRECISIONS)}")
    chosen = pick_backend(backend, build=True)
    if chosen == cpu.ONNXRUNTIME and options is not None:
        raise UsageError(
            "batch, workspace and the other build options are TensorRT's",
            "leave them out, or name --backend tensorrt or tensorrt-rtx",
        )
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    if precision == "int8" and "model.int8.onnx" not in bundle:
        if faces is None:
            raise UsageError(
                f"{bundle.root} is not calibrated, and INT8 ranges come from faces only",
                "add --faces SRC, or run `fr-edge calibrate` first",
            )
        version = cache_version(chosen) if options and options.implicit else None
        bundle = calibrate(bundle, faces, track=track, trt_cache=version)
    if precision == "fp16" and SOURCES["fp16"] not in bundle:
        raise BundleError(
            f"{bundle.root} has no FP16 flavour: the network's numbers do not fit, or it was"
            " exported without",
            "build --fp32 or --int8, or export again: `fr-edge export` says why",
        )
    options = options or EngineOptions()
    name, cache = engine_name(chosen, precision), f"engines/{chosen}.timing"
    with transaction(
        bundle.root, "build-engine", {"precision": precision, "backend": chosen}
    ) as draft:
        target = draft.path(name, f"{precision} engine")
        if chosen == cpu.ONNXRUNTIME:
            made = _make_onnx(bundle.file(SOURCES[precision]), target, precision)
        else:
            known = bundle.file(cache).read_bytes() if cache in bundle else b""
            plan, made = make_plan(bundle, precision, chosen, options, known)
            target.write_bytes(plan)
            if made.timing_cache:
                draft.path(cache, "timing cache").write_bytes(made.timing_cache)
        fingerprint = {
            **machine_fingerprint(chosen),
            **made.facts,
            "precision": precision,
            "source_sha256": bundle.files[SOURCES[precision]].sha256,
            "table_sha256": _hash(bundle, "calibration.json") if precision == "int8" else "",
            "input": bundle.spec.to_json(),
            "layers": dict(made.layers),
            "integer_kernels": made.integer_kernels,
            "size": target.stat().st_size,
            "sha256": sha256(target),
        }
        text = json.dumps(fingerprint, indent=1) + "\n"
        draft.path(f"{name}.json", "engine fingerprint").write_text(text, encoding="utf-8")
        draft.summary.update(layers=dict(made.layers), integer_kernels=made.integer_kernels)
        size = target.stat().st_size
    kernels = made.integer_kernels
    return BuildResult(name, chosen, precision, dict(made.layers), kernels, size, list(made.notes))


def _hash(bundle: Bundle, name: str) -> str:
    return bundle.files[name].sha256 if name in bundle else ""


def _make_onnx(source: Path, target: Path, precision: str) -> BackendBuild:
    executed = cpu.build(source, target)
    layers = layer_precisions(onnx.load(source))
    if precision != "int8":
        note = "onnxruntime's CPU has few FP16 kernels: weights are FP16, most sums FP32"
        notes = (note,) if precision == "fp16" else ()
        return BackendBuild(layers, 0, {"operators": executed.operators}, notes)
    integer, total = len(executed.integer), layers["int8"]
    facts = {
        "operators": executed.operators,
        "integer_layers": list(executed.integer),
        "int8_in_float": total - integer,
        "raced": [{"int8": len(r.layers), "relative": r.relative} for r in executed.raced],
    }
    return BackendBuild(
        layers, integer, facts, tuple(_int8_notes(integer, total, executed.raced[0]))
    )


def _int8_notes(integer: int, total: int, best: KernelSelection) -> Iterator[str]:
    if integer:
        times = " and ".join(f"{ratio:.2f}" for ratio in best.relative)
        yield (
            f"{integer} of {total} INT8 layers run on integer kernels, which was fastest here:"
            f" {times} of the time in float, one face and a few at once"
        )
    else:
        yield f"INT8 is not faster than float on this CPU: all {total} INT8 layers run in float"
    if in_float := total - integer:
        yield (
            f"{in_float} INT8 layers compute in float with their INT8 weights and round no"
            " activation; `--artifact graph` judges the graph with every rounding, as on TensorRT"
        )
