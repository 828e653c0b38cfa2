"""Build an engine of a bundle for this machine, with its fingerprint."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..bundle.bundle import open_bundle, transaction
from ..bundle.keys import SigningKey
from ..bundle.manifest import Bundle
from ..bundle.signature import add_signature, ensure_signatures
from ..calibration.calibrate import calibrate
from ..documents import encode_json
from ..errors import BundleError, UsageError
from ..faces.sources import Faces
from ..files import sha256
from ..progress import Track, silent
from .cpu_kernel_selection import build_cpu_engine
from .fingerprint import (
    PRECISIONS,
    SOURCES,
    engine_name,
    machine_fingerprint,
    read_expected,
    record_build,
)
from .machine.backends import COMPILE_ONLY, pick_backend
from .onnxruntime_session import ONNXRUNTIME
from .prelu_race import build_fastest_plan
from .trt.calibrator import cache_version
from .trt.config import EngineOptions

logger = logging.getLogger(__name__)

_CALIBRATED = ("calibration.json", "calibration.cache", "model.int8.onnx")


@dataclass(frozen=True)
class BuildResult:
    """An engine that was built.

    Attributes:
        engine: Its path within the bundle.
        backend: "onnxruntime", "tensorrt" or "tensorrt-rtx".
        precision: "fp32", "fp16" or "int8".
        layers: Precision -> layers with weights: TensorRT's as they were built, the CPU's as the
            model has them.
        integer_kernels: Layers that run on integer arithmetic.
        compile_only: Whether it was compiled ahead of time and cannot run here.
        size: Bytes.
        sha256: Of the engine.
    """

    engine: str
    backend: str
    precision: str
    layers: Mapping[str, int]
    integer_kernels: int
    compile_only: bool
    size: int
    sha256: str

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
) -> BuildResult:
    """Build an engine for this machine, into the bundle.

    Args:
        bundle: An open bundle or its folder.
        precision: "fp32", "fp16" or "int8".
        backend: "onnxruntime", "tensorrt", "tensorrt-rtx", or "auto".
        faces: Calibrate on these first if the bundle is not calibrated; INT8 only.
        track: Shows progress.
        options: TensorRT's.
        sign: Signs the engine, its fingerprint and timing cache, and what was calibrated for it: for
            a machine that uses signed files only.

    Raises:
        UsageError: An unknown name, options that the backend does not have, or INT8 of a bundle
            that is not calibrated, without faces.
        BundleError: The bundle lacks the model of that precision, or it is not signed and that is
            required.
        MachineError: The backend cannot be used here.
        ModelError: The backend refuses the network.
        GateFailed: An INT8 engine would hold no INT8 convolution. The bundle stays as it was.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"no precision {precision!r}", f"precisions: {', '.join(PRECISIONS)}")
    chosen = pick_backend(backend, build=True)
    if chosen == ONNXRUNTIME and options is not None:
        raise UsageError(
            "batch, workspace and the other build options are TensorRT's",
            "leave them out, or name --backend tensorrt or tensorrt-rtx",
        )
    bundle = ensure_signatures(bundle if isinstance(bundle, Bundle) else open_bundle(bundle))
    options = options or EngineOptions()
    if precision == "int8" and SOURCES["int8"] not in bundle:
        if faces is None:
            raise UsageError(
                f"{bundle.root} is not calibrated, and INT8 ranges come from faces only",
                "add --faces SRC, or run `fr-edge calibrate` first",
            )
        version = cache_version(chosen) if options.implicit else None
        bundle = calibrate(bundle, faces, track=track, trt_cache=version).bundle
        if sign:
            add_signature(bundle, [name for name in _CALIBRATED if name in bundle], sign)
        bundle = ensure_signatures(bundle)
    if precision == "fp16" and SOURCES["fp16"] not in bundle:
        raise BundleError(
            f"{bundle.root} has no FP16 flavour: the network's numbers do not fit, or it was"
            " exported without",
            "build --fp32 or --int8, or export again: `fr-edge export` reports the reason",
        )
    result = _build(bundle, precision, chosen, options)
    if options.version_compatible:
        record_build(result.sha256)
    if sign:
        built = open_bundle(bundle.root, check="manifest")
        made = (result.engine, f"{result.engine}.json", _timing_name(chosen))
        add_signature(built, [name for name in made if name in built], sign)
    elif bundle.signed is not None:
        logger.warning("the engine is not signed, so this machine will not open it: add --sign KEY")
    return result


def _build(bundle: Bundle, precision: str, backend: str, options: EngineOptions) -> BuildResult:
    name, cache = engine_name(backend, precision), _timing_name(backend)
    source, table = bundle.file(SOURCES[precision]), bundle.files.get("calibration.json")
    settings = {"precision": precision, "backend": backend}
    with transaction(bundle, "build-engine", settings) as change:
        target = change.path(name, f"{precision} engine")
        if backend == ONNXRUNTIME:
            built = build_cpu_engine(source, target, precision)
        else:
            known = _timings(bundle, cache)
            plan, built = build_fastest_plan(bundle, precision, backend, options, known)
            target.write_bytes(plan)
            if built.timing_cache:
                change.path(cache, "timing cache").write_bytes(built.timing_cache)
        result = BuildResult(
            name,
            backend,
            precision,
            dict(built.layers),
            built.integer_kernels,
            backend in COMPILE_ONLY,
            target.stat().st_size,
            sha256(target),
        )
        fingerprint = {
            **machine_fingerprint(backend),
            **built.facts,
            "precision": precision,
            "source_sha256": bundle.files[SOURCES[precision]].sha256,
            "table_sha256": table.sha256 if table and precision == "int8" else "",
            "input": bundle.spec,
            "layers": result.layers,
            "integer_kernels": result.integer_kernels,
            "size": result.size,
            "sha256": result.sha256,
        }
        sidecar = change.path(f"{name}.json", "engine fingerprint")
        sidecar.write_bytes(encode_json(fingerprint))
        change.summary.update(layers=result.layers, integer_kernels=result.integer_kernels)
    return result


def _timing_name(backend: str) -> str:
    return f"engines/{backend}.timing"


def _timings(bundle: Bundle, name: str) -> bytes:
    """The timing cache of an earlier build; b"" where there is none, or none that may be used."""
    if name not in bundle:
        return b""
    if not bundle.is_usable(name):
        logger.warning("%s is not signed by a trusted key: kernels are timed anew", name)
        return b""
    return read_expected(bundle.file(name), bundle.files[name].sha256)[0]
