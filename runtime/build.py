"""Build an engine of a bundle for this machine, with its fingerprint.

TensorRT-RTX fuses relu(x) - a relu(-x) into the convolution and gives PReLU a kernel of its own
(docs/decisions/0003). What TensorRT 8.6 to 11 do differs between versions and GPUs, so on demand both
forms are built and timed. They compute the same numbers.
"""

import hashlib
import logging
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle.bundle import open_bundle, transaction
from ..bundle.keys import SigningKey
from ..bundle.manifest import Bundle
from ..bundle.signature import add_signature
from ..bundle.trust import ensure_signatures, vouched_for
from ..calibration.calibrate import calibrate
from ..calibration.table import CALIBRATION_FILES
from ..documents import encode_json
from ..errors import BundleError, FrEdgeError, GateFailed, MachineError, ModelError, UsageError
from ..faces.contract import ALIGNED_SIZE, preprocess
from ..faces.sources import Faces
from ..files import sha256
from ..graph.frame_input import INPUT_KINDS, InputKind
from ..graph.prelu import has_prelu
from ..onnx_file import read_onnx
from ..progress import Track, silent
from .cpu_kernel_selection import build_cpu_engine, interleaved_min_times
from .fingerprint import (
    PRECISIONS,
    SOURCES,
    BackendBuild,
    engine_name,
    machine_fingerprint,
    read_expected,
    record_build,
)
from .machine.backends import COMPILE_ONLY, pick_backend
from .onnxruntime_session import ONNXRUNTIME
from .tensorrt_session import GpuSession
from .trt.bundle_plan import build_plan
from .trt.calibrator import cache_version
from .trt.config import EngineOptions, PreluForm
from .trt.layers import LayerProof

logger = logging.getLogger(__name__)

PRELU_FORMS: dict[PreluForm, str] = {"split": "relu(x) - a relu(-x)", "native": "PReLU as it is"}

_PRELU_S = 4.0  # of timing, for both forms together

_Plan = tuple[bytes, BackendBuild]


@dataclass(frozen=True)
class BuildResult:
    """An engine that was built.

    Attributes:
        engine: Its path within the bundle.
        backend: "onnxruntime", "tensorrt" or "tensorrt-rtx".
        precision: "fp32", "fp16", "fp8" or "int8".
        layers: Precision -> layers with weights: TensorRT's as they were built, the CPU's as the
            model has them.
        integer_kernels: Layers that run on integer arithmetic.
        compile_only: Whether it was compiled ahead of time and cannot run here.
        size: Bytes.
        sha256: Of the engine.
        proof: TensorRT's layers with weights: what the network asks for beside what they compute
            in; empty for the CPU.
    """

    engine: str
    backend: str
    precision: str
    layers: Mapping[str, int]
    integer_kernels: int
    compile_only: bool
    size: int
    sha256: str
    proof: tuple[LayerProof, ...] = ()

    def describe_layers(self) -> str:
        """The layers in words: "33 INT8 (21 in integer kernels), 17 FP32"."""
        parts = [f"{count} {name.upper()}" for name, count in self.layers.items() if count]
        if self.layers.get("int8", 0) > self.integer_kernels:
            parts[0] += f" ({self.integer_kernels} in integer kernels)"
        return ", ".join(parts)


def build_engine(
    bundle: Bundle | str | Path,
    precision: str,
    backend: str = "auto",
    faces: Faces | None = None,
    track: Track = silent,
    options: EngineOptions | None = None,
    sign: SigningKey | None = None,
    *,
    input_kind: InputKind = "tensor",
) -> BuildResult:
    """Build an engine for this machine, into the bundle.

    Args:
        bundle: An open bundle or its folder.
        precision: "fp32", "fp16", "fp8" or "int8".
        backend: "onnxruntime", "tensorrt", "tensorrt-rtx", or "auto".
        faces: Calibrate on these first if the bundle is not calibrated for INT8 or FP8.
        track: Shows progress.
        options: TensorRT's.
        sign: Signs the engine, its fingerprint and timing cache, and what was calibrated for it: for
            a machine that uses signed files only.
        input_kind: What the engine takes: "tensor" for the network's input, "crop" for aligned faces
            `(N, S, S, 3) uint8` (`crop_shape`), "frame" for a frame `(1, H, W, 3) uint8` and landmarks
            `(N, 5, 2) float32`, which it aligns itself.

    Raises:
        UsageError: An unknown name, options that the backend does not have, or INT8 or FP8 of a
            bundle that is not calibrated for it, without faces.
        BundleError: The bundle lacks the model of that precision, or it is not signed and that is
            required.
        MachineError: The backend cannot be used here.
        ModelError: The backend refuses the network.
        GateFailed: An INT8 or FP8 engine would hold no such convolution. The bundle stays as it was.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"no precision {precision!r}", f"precisions: {', '.join(PRECISIONS)}")
    if input_kind not in INPUT_KINDS:
        raise UsageError(f"no input {input_kind!r}", f"inputs: {', '.join(INPUT_KINDS)}")
    chosen = pick_backend(backend, build=True)
    if chosen == ONNXRUNTIME and options is not None:
        raise UsageError(
            "batch, workspace and the other build options are TensorRT's",
            "leave them out, or name --backend tensorrt or tensorrt-rtx",
        )
    bundle = ensure_signatures(bundle if isinstance(bundle, Bundle) else open_bundle(bundle))
    options = replace(options or EngineOptions(), input_kind=input_kind)
    if precision in CALIBRATION_FILES and SOURCES[precision] not in bundle:
        purpose = "" if precision == "int8" else f" for {precision.upper()}"
        if faces is None:
            raise UsageError(
                f"{bundle.root} is not calibrated{purpose}, and {precision.upper()} ranges come from"
                " faces only",
                f"add --faces SRC, or run `fr-edge calibrate BUNDLE --faces SRC --precision {precision}`"
                " first",
            )
        version = cache_version(chosen) if options.implicit and precision == "int8" else None
        bundle = calibrate(
            bundle, faces, track=track, precision=precision, trt_cache=version
        ).bundle
        if sign:
            files = CALIBRATION_FILES[precision]
            made = (files.table, files.model, *(["calibration.cache"] if version else []))
            add_signature(bundle, [name for name in made if name in bundle], sign)
        bundle = ensure_signatures(bundle)
    if precision == "fp16" and SOURCES["fp16"] not in bundle:
        raise BundleError(
            f"{bundle.root} has no FP16 flavour: the network's numbers do not fit, or it was"
            " exported without",
            "build --fp32 or --int8, or export again: `fr-edge export` reports the reason",
        )
    parts = EngineParts(
        engine_name(chosen, precision, options.input_kind),
        SOURCES[precision],
        CALIBRATION_FILES[precision].table if precision in CALIBRATION_FILES else "",
        lambda source, target: build_cpu_engine(
            source, target, precision, bundle.spec, options.input_kind
        ),
        lambda known: build_fastest_plan(bundle, precision, chosen, options, known),
        {"input": bundle.spec},
    )
    return write_engine(bundle, precision, chosen, parts, options, sign)


@dataclass(frozen=True)
class EngineParts:
    """What makes an engine of a bundle's network.

    Attributes:
        name: Path of the engine within the bundle.
        source: Path of the ONNX file that it is built from.
        table: Path of the calibration table, "" without one.
        build_cpu: ONNX file and target -> what was built, for onnxruntime.
        build_plan: An earlier build's timings -> plan and what was built, for TensorRT.
        facts: What else the fingerprint holds.
    """

    name: str
    source: str
    table: str
    build_cpu: Callable[[Path, Path], BackendBuild]
    build_plan: Callable[[bytes], tuple[bytes, BackendBuild]]
    facts: Mapping[str, Any]


def write_engine(
    bundle: Bundle,
    precision: str,
    backend: str,
    parts: EngineParts,
    options: EngineOptions,
    sign: SigningKey | None,
) -> BuildResult:
    """Build an engine into a bundle, with its fingerprint, and sign both.

    Args:
        bundle: An open bundle.
        precision: "fp32", "fp16", "fp8" or "int8".
        backend: "onnxruntime", "tensorrt" or "tensorrt-rtx".
        parts: What makes it.
        options: TensorRT's.
        sign: Signs the engine, its fingerprint and timing cache.

    Raises:
        FrEdgeError: As `build_engine`. The bundle stays as it was.
    """
    result, written = _build(bundle, precision, backend, parts, signing=sign is not None)
    if options.version_compatible:
        record_build(result.sha256)
    if sign:
        add_signature(open_bundle(bundle.root, check="manifest"), written, sign)
    elif bundle.signed is not None:
        logger.warning("the engine is not signed, so this machine will not open it: add --sign KEY")
    return result


def _build(
    bundle: Bundle, precision: str, backend: str, parts: EngineParts, *, signing: bool
) -> tuple[BuildResult, list[str]]:
    """Build an engine; also the names of the files that were written."""
    name, cache = parts.name, f"engines/{backend}.timing"
    written = [name, f"{name}.json"]
    source, table = bundle.file(parts.source), bundle.files.get(parts.table)
    settings = {"precision": precision, "backend": backend}
    if role := parts.facts.get("role"):
        settings["role"] = role
    with transaction(bundle, "build-engine", settings) as change:
        target = change.path(name, f"{precision} {f'{role} ' if role else ''}engine")
        if backend == ONNXRUNTIME:
            built = parts.build_cpu(source, target)
        else:
            plan, built = parts.build_plan(_timings(bundle, cache, signing=signing))
            target.write_bytes(plan)
            if built.timing_cache:
                change.path(cache, "timing cache").write_bytes(built.timing_cache)
                written.append(cache)
        result = BuildResult(
            name,
            backend,
            precision,
            dict(built.layers),
            built.integer_kernels,
            backend in COMPILE_ONLY,
            target.stat().st_size,
            sha256(target),
            tuple(LayerProof(**row) for row in built.facts.get("proof", ())),
        )
        fingerprint = {
            **machine_fingerprint(backend),
            **built.facts,
            "precision": precision,
            "source_sha256": bundle.files[parts.source].sha256,
            "table_sha256": table.sha256 if table else "",
            **parts.facts,
            "layers": result.layers,
            "integer_kernels": result.integer_kernels,
            "size": result.size,
            "sha256": result.sha256,
        }
        sidecar = change.path(f"{name}.json", "engine fingerprint")
        sidecar.write_bytes(encode_json(fingerprint))
        change.summary.update(layers=result.layers, integer_kernels=result.integer_kernels)
    return result, written


def _timings(bundle: Bundle, name: str, *, signing: bool) -> bytes:
    """The timing cache of an earlier build; b"" if there is no cache that may be used.

    What goes into a build that is signed must be signed itself: its timings come out again.
    """
    if name not in bundle:
        return b""
    if not bundle.is_usable(name) or (signing and not vouched_for(bundle, name)):
        logger.warning("%s is not signed by a trusted key: kernels are timed anew", name)
        return b""
    return read_expected(bundle.file(name), bundle.files[name].sha256)[0]


def build_fastest_plan(
    bundle: Bundle, precision: str, backend: str, options: EngineOptions, timing_cache: bytes
) -> _Plan:
    """Build the plan of a bundle's network, with `options.prelu` "fastest" in both forms of PReLU.

    Args:
        bundle: An open bundle.
        precision: "fp32", "fp16", "fp8" or "int8".
        backend: "tensorrt" or "tensorrt-rtx".
        options: How to build it.
        timing_cache: An earlier build's, b"" to begin one.

    Returns:
        The serialized plan, and what is in it. Where both forms were timed, its facts name the one
        that was kept, `prelu`, and the milliseconds of the fastest run of each, `prelu_ms`.

    Raises:
        ModelError: TensorRT refuses the network in both forms.
        GateFailed: An INT8 engine computes no convolution in INT8, or it is not known whether.
        MachineError: The library or the GPU does not suffice.
    """
    if options.prelu != "fastest":
        return build_plan(bundle, precision, backend, options, timing_cache)
    if not _undecided(bundle, precision, backend, options):
        return build_plan(bundle, precision, backend, replace(options, prelu="split"), timing_cache)
    builds: dict[PreluForm, _Plan] = {}
    refusals: list[FrEdgeError] = []
    for form in PRELU_FORMS:
        try:
            choice = replace(options, prelu=form)
            builds[form] = build_plan(bundle, precision, backend, choice, timing_cache)
        except (ModelError, GateFailed) as error:
            logger.info("%s is not built: %s", PRELU_FORMS[form], error.message)
            refusals.append(error)
            continue
        timing_cache = builds[form][1].timing_cache
    if not builds:
        raise refusals[0]
    return _fastest(bundle, precision, backend, options, builds)


def _undecided(bundle: Bundle, precision: str, backend: str, options: EngineOptions) -> bool:
    """Whether there are two forms and the faster one is not known."""
    if backend in COMPILE_ONLY or options.dla is not None or options.implicit:
        return False
    return has_prelu(read_onnx(bundle.file(SOURCES[precision])))


def _fastest(
    bundle: Bundle,
    precision: str,
    backend: str,
    options: EngineOptions,
    builds: dict[PreluForm, _Plan],
) -> _Plan:
    times: dict[PreluForm, float] = {}
    if len(builds) > 1:
        try:
            times = _time(bundle, precision, backend, options, builds)
        except MachineError as error:
            logger.warning("the forms of PReLU are not timed: %s", error.message)
    winner = min(times, key=lambda form: times[form]) if times else next(iter(builds))
    if times:
        texts = [f"{PRELU_FORMS[form]} {ms:.3f} ms" for form, ms in times.items()]
        logger.info(
            "%s, batch %d: %s is kept", ", ".join(texts), options.batch[0], PRELU_FORMS[winner]
        )
    plan, built = builds[winner]
    last = list(builds.values())[-1][1].timing_cache  # has the timings of both builds
    return plan, replace(built, facts={**built.facts, "prelu_ms": times}, timing_cache=last)


def _time(
    bundle: Bundle,
    precision: str,
    backend: str,
    options: EngineOptions,
    builds: dict[PreluForm, _Plan],
) -> dict[PreluForm, float]:
    """Form -> milliseconds of the fastest run of the smallest batch, timed in turns."""
    shape = (options.batch[0], ALIGNED_SIZE, ALIGNED_SIZE, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        sessions = []
        for form, (plan, _) in builds.items():
            path = Path(folder, f"{form}.plan")
            path.write_bytes(plan)
            session = GpuSession(
                path,
                precision,
                backend,
                bundle.spec,
                expected_sha256=hashlib.sha256(plan).hexdigest(),
                version_compatible=options.version_compatible,
            )
            sessions.append(stack.enter_context(session))
        if options.input_kind != "tensor":
            seconds = interleaved_min_times([s.embed for s in sessions], images, _PRELU_S)
        else:
            inputs = preprocess(images, bundle.spec)
            seconds = interleaved_min_times([s.embed_tensor for s in sessions], inputs, _PRELU_S)
    return {form: 1e3 * value for form, value in zip(builds, seconds, strict=True)}
