"""A bundle's network through TensorRT's builder: the right ONNX flavour in, a plan and its facts out.

`tensorrt-rtx` goes the same way without a GPU; its plans are compiled, not executed.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from onnx import ModelProto

from ...bundle.manifest import Bundle
from ...errors import GateFailed, UsageError
from ...faces.stored_detector import DetectorSpec
from ...graph.eight_bit import EIGHT_BIT
from ...graph.frame_input import with_input
from ...graph.int8_fp16 import int8_fp16_model, wide_nodes
from ...graph.layers import layer_precisions, weighted_nodes
from ...graph.load import check_finite, fixed_batch
from ...graph.prelu import fusible, has_prelu
from ...graph.uint8_input import crop_shape
from ...onnx_file import read_onnx
from ..fingerprint import DETECTOR_SOURCES, SOURCES, BackendBuild
from ..machine.backends import COMPILE_ONLY, MODULES
from ..machine.device import find_gpus, selected_gpu
from .builder import Compiled, InputSizes, compile_plan, load_library
from .calibrator import cached_calibrator
from .config import EngineOptions, require_fp8, strongly_typed
from .layers import (
    UNKNOWN,
    LayerProof,
    count_precisions,
    node_precisions,
    prove_layers,
    reformats,
)

logger = logging.getLogger(__name__)

_STEP = 32  # pixels: the smallest side of a detector's canvas


def build_plan(
    bundle: Bundle, precision: str, backend: str, options: EngineOptions, timing_cache: bytes
) -> tuple[bytes, BackendBuild]:
    """Build the plan of a bundle's network.

    Args:
        bundle: An open bundle.
        precision: "fp32", "fp16", "fp8" or "int8".
        backend: "tensorrt" or "tensorrt-rtx".
        options: How to build it.
        timing_cache: An earlier build's, b"" to begin one.

    Returns:
        The serialized plan, and what is in it.

    Raises:
        ModelError: TensorRT refuses the network.
        GateFailed: An INT8 or FP8 engine computes no convolution so, or it is not known whether.
        MachineError: The library or the GPU does not suffice.
        UsageError: FP8 with options that it does not go with.
    """
    trt = load_library(backend)
    if precision == "fp8":
        gpu = None if backend in COMPILE_ONLY else selected_gpu()
        require_fp8(trt, options, gpu.compute if gpu else "")
    calibrator = cached_calibrator(trt, bundle, precision) if options.implicit else None
    strong = strongly_typed(trt, options)
    model = _flavour(bundle, precision, strong, options.implicit)
    if fixed := fixed_batch(model):
        own = (fixed,) * 3
        if options.batch not in (EngineOptions().batch, own):
            raise UsageError(
                f"the network takes {fixed} face at a time, its batch is fixed; found --batch"
                f" {','.join(map(str, options.batch))}",
                "leave out --batch",
            )
        options = replace(options, batch=own)
    model = with_input(model, bundle.spec, options.input_kind)
    shape = crop_shape(bundle.spec) if options.input_kind == "crop" else bundle.spec.shape
    return _plan_of(trt, model, shape, precision, backend, options, timing_cache, calibrator)


def build_detector_plan(
    bundle: Bundle,
    spec: DetectorSpec,
    precision: str,
    backend: str,
    options: EngineOptions,
    timing_cache: bytes,
) -> tuple[bytes, BackendBuild]:
    """Build the plan of a bundle's detector, for one canvas at a time.

    Args:
        bundle: An open bundle.
        spec: How the detector is fed.
        precision: "fp32", "fp16" or "int8".
        backend: "tensorrt" or "tensorrt-rtx".
        options: How to build it.
        timing_cache: An earlier build's, b"" to begin one.

    Returns:
        The serialized plan, and what is in it.

    Raises:
        ModelError: TensorRT refuses the network.
        GateFailed: An INT8 engine computes no convolution so, or it is not known whether.
        MachineError: The library or the GPU does not suffice.
    """
    trt = load_library(backend)
    strong = strongly_typed(trt, options)
    plain = precision == "fp16" and not strong
    model = read_onnx(bundle.file(DETECTOR_SOURCES["fp32" if plain else precision]))
    check_finite(model)
    if precision == "int8" and strong:
        model = _with_fp16(bundle, model, DETECTOR_SOURCES["fp16"])
    largest = (spec.height, spec.width)
    smallest = (_STEP, _STEP) if spec.any_size else largest
    sizes = ((1, 3, *smallest), (1, 3, *largest), (1, 3, *largest))
    options = replace(options, batch=(1, 1, 1))
    shape = (3, *largest)
    return _plan_of(trt, model, shape, precision, backend, options, timing_cache, sizes=[sizes])


def _plan_of(
    trt: Any,
    model: ModelProto,
    shape: tuple[int, int, int],
    precision: str,
    backend: str,
    options: EngineOptions,
    timing_cache: bytes,
    calibrator: Any = None,
    sizes: list[InputSizes] | None = None,
) -> tuple[bytes, BackendBuild]:
    """Compile a network and say what is in the plan."""
    strong = strongly_typed(trt, options)
    cache = None if backend in COMPILE_ONLY else timing_cache  # without a GPU nothing is timed
    split = options.prelu != "native" and options.dla is None and not options.implicit
    data = _serialized(model, split)
    compiled = compile_plan(trt, data, shape, precision, options, cache, calibrator, sizes)
    precisions = node_precisions(model, compiled.layers)
    proofs = prove_layers(model, compiled.layers)
    if precision in EIGHT_BIT:
        _require_precision(proofs, precision)
        _log_refused(proofs)
    layers = count_precisions(precisions.values())
    facts = {
        MODULES[backend]: str(trt.__version__),
        "driver": find_gpus().driver,
        "compile_only": backend in COMPILE_ONLY,
        "compute": list(options.compute),
        "batch": list(options.batch),
        "input_kind": options.input_kind,
        "version_compatible": options.version_compatible,
        "hardware_compatible": options.hardware_compatible,
        "dla": options.dla,
        "typing": "strong" if strong else "flags",
        "implicit": options.implicit,
        "prelu": ("split" if split else "native") if has_prelu(model) else "none",
        "reformats": reformats(compiled.layers),
        "precisions": precisions,
        "proof": [asdict(proof) for proof in proofs],
        "engine_layers": [asdict(layer) for layer in compiled.layers],
    }
    _log_layers(model, compiled, layers, facts["reformats"])
    if backend in COMPILE_ONLY:
        logger.info(
            "compiled ahead of time and not executed: NVIDIA's parser and compiler accept the"
            " network in these precisions; speed and accuracy are not known"
        )
    return compiled.plan, BackendBuild(layers, layers["int8"], facts, compiled.timing_cache)


def compile_variant(
    bundle: Bundle, model: ModelProto, backend: str, options: EngineOptions, timing_cache: bytes
) -> Compiled:
    """Compile a variant of a bundle's network.

    Args:
        bundle: An open bundle.
        model: The variant, float32 or with Q and DQ.
        backend: "tensorrt" or "tensorrt-rtx".
        options: How to build it.
        timing_cache: An earlier build's, b"" to begin one.

    Raises:
        ModelError: TensorRT refuses the network.
        MachineError: The library or the GPU does not suffice.
    """
    trt = load_library(backend)
    if fixed := fixed_batch(model):
        options = replace(options, batch=(fixed,) * 3)
    typed = _with_fp16(bundle, model) if strongly_typed(trt, options) else model
    precision = next((p for p in EIGHT_BIT if layer_precisions(model).get(p)), "fp16")
    cache = None if backend in COMPILE_ONLY else timing_cache
    data = _serialized(typed, split=True)
    return compile_plan(trt, data, bundle.spec.shape, precision, options, cache)


def _flavour(bundle: Bundle, precision: str, strong: bool, implicit: bool) -> ModelProto:
    """The ONNX file for this way of typing: as written, or float32 that flags may lower."""
    plain = implicit or (precision == "fp16" and not strong)
    model = read_onnx(bundle.file(SOURCES["fp32" if plain else precision]))
    check_finite(model)
    return _with_fp16(bundle, model) if precision in EIGHT_BIT and strong else model


def _with_fp16(bundle: Bundle, model: ModelProto, half: str = SOURCES["fp16"]) -> ModelProto:
    """FP16 around the INT8 or FP8 of a float32 model, where the network's numbers fit."""
    if half not in bundle:
        logger.info("the network has no FP16 flavour, so what is not in 8 bits stays FP32")
        return model
    wide = wide_nodes(read_onnx(bundle.file(half)))
    wide &= {node.name for node in model.graph.node}
    if wide:
        logger.info("%d nodes stay FP32: their numbers do not fit FP16", len(wide))
    return int8_fp16_model(model, wide)


def _serialized(model: ModelProto, split: bool) -> bytes:
    # TensorRT-RTX fuses the split form of PReLU into the convolution (docs/decisions/0003).
    data: bytes = (fusible(model) if split else model).SerializeToString()
    return data


def _require_precision(proofs: Sequence[LayerProof], precision: str) -> None:
    """An INT8 or FP8 engine must be known to compute so; "not reported" is not a refusal."""
    wanted = precision.upper()
    kind = "Conv" if any(proof.operator == "Conv" for proof in proofs) else "Gemm"
    states = [proof.built for proof in proofs if proof.operator == kind]
    if precision in states:
        return
    if unknown := states.count(UNKNOWN) + states.count("merged"):
        raise GateFailed(
            f"whether the engine computes in {wanted} is not known: TensorRT reports the precision of"
            f" {len(states) - unknown} of its {len(states)} {kind} layers, and none of these is"
            f" {wanted}",
            "build for one batch size, --batch 8,8,8, of which TensorRT reports more; free GPU"
            " memory if there is little: the inspector needs an execution context",
        )
    counts = ", ".join(f"{n} {name.upper()}" for name, n in count_precisions(states).items() if n)
    reasons = Counter(proof.reason for proof in proofs if proof.reason)
    likely = "".join(f"; {n} of them likely since {why}" for why, n in reasons.most_common(1))
    raise GateFailed(
        f"none of the engine's {len(states)} {kind} layers computes in {wanted}: {counts}{likely}",
        "calibrate again and look at what it keeps in float: `fr-edge inspect BUNDLE`; if that is"
        " little, this TensorRT finds FP16 faster: `fr-edge build-engine BUNDLE --fp16`",
    )


def _log_refused(proofs: Sequence[LayerProof]) -> None:
    """Name the layers that the network wants in 8 bits and that TensorRT built otherwise."""
    for proof in proofs:
        if proof.reason:
            logger.warning(
                "%s was to be %s and computes in %s: %s",
                proof.layer,
                proof.asked.upper(),
                proof.built.upper(),
                proof.reason,
            )


def _log_layers(
    model: ModelProto, compiled: Compiled, layers: Mapping[str, int], reformat_count: Any
) -> None:
    if not compiled.layers:
        logger.warning("TensorRT did not report its layers: their precisions are not known")
        return
    total = len(weighted_nodes(model))
    counts = ", ".join(f"{n} {name.upper()}" for name, n in layers.items() if n)
    merged = total - sum(layers.values())
    logger.info(
        "of %d layers with weights, in the engine: %s%s; %d reformats",
        total,
        counts,
        f", {merged} merged into others" if merged > 0 else "",
        reformat_count,
    )
