"""A bundle's detector: its engines for this machine, and the one that is open here.

onnxruntime or a GPU runs the network; fitting the canvas, decoding and suppression are the host's.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..arrays import U8
from ..bundle.bundle import open_bundle
from ..bundle.keys import SigningKey
from ..bundle.manifest import Bundle
from ..bundle.trust import ensure_signatures, vouched_for
from ..calibration.detector_calibration import DETECTOR_TABLE
from ..errors import BundleError, MachineError, ModelError, UsageError
from ..faces.detect import DetectedFace, Detector
from ..faces.stored_detector import (
    DETECTOR,
    DETECTOR_SPEC,
    DetectorSpec,
    detector_of_spec,
    read_detector_spec,
)
from ..graph.cpu_int8 import cpu_model
from ..graph.layers import layer_precisions
from ..graph.load import check_finite
from ..graph.shapes import with_image_size
from ..onnx_file import parse_onnx, read_onnx
from ..trial_run import ensure_runnable
from .build import BuildResult, EngineParts, write_engine
from .cpu_kernel_selection import cpu_runner, select_kernels
from .fingerprint import (
    DETECTOR_SOURCES,
    BackendBuild,
    built_here,
    check_fingerprint,
    engine_name,
    find_engine,
    read_expected,
)
from .machine.backends import pick_backend
from .onnxruntime_session import ONNXRUNTIME, make_cpu_session
from .session import Artifact
from .trt.bundle_plan import build_detector_plan
from .trt.config import EngineOptions
from .trt.detector_session import GpuDetectorSession
from .trt.plan_file import ensure_loadable

logger = logging.getLogger(__name__)

DETECTOR_PRECISIONS = tuple(DETECTOR_SOURCES)

_TIMED_SIDE = 320  # pixels a side of the canvas on which kernels are timed


class BundleDetector:
    """An open detector of a bundle; it is called with a photograph. Use it in a `with` statement.

    Attributes:
        spec: How the detector is fed and read.
        backend: "onnxruntime", "tensorrt" or "tensorrt-rtx".
        precision: "fp32", "fp16" or "int8".
        artifact: "engine", or "graph" for an ONNX file on onnxruntime.
        file: Path within the bundle.
        sha256: Of the bytes that were opened.
        int8_layers: Layers with INT8 weights.
        int8_in_float: Of these, the layers that compute in float on this CPU.
    """

    def __init__(
        self,
        spec: DetectorSpec,
        session: Any,
        *,
        path: Path,
        backend: str,
        precision: str,
        artifact: str,
        file: str,
        sha256: str,
        int8_layers: int = 0,
        int8_in_float: int = 0,
    ) -> None:
        """Keep what was opened; `open_bundle_detector` opens it.

        Args:
            spec: How the detector is fed and read.
            session: Runs the network, as `detector_of_spec` takes it.
            path: The file, for messages.
            backend: As the attribute.
            precision: As the attribute.
            artifact: As the attribute.
            file: As the attribute.
            sha256: As the attribute.
            int8_layers: As the attribute.
            int8_in_float: As the attribute.
        """
        self.int8_layers, self.int8_in_float = int8_layers, int8_in_float
        self.spec, self.backend, self.precision = spec, backend, precision
        self.artifact, self.file, self.sha256 = artifact, file, sha256
        self._session = session
        self._detector: Detector | None = detector_of_spec(spec, session, path)

    def __call__(self, image: U8) -> list[DetectedFace]:
        """The faces of a photograph, the most confident first.

        Args:
            image: RGB `(H, W, 3) uint8`.

        Raises:
            UsageError: It is closed.
            ModelError: The network does not run.
        """
        if self._detector is None:
            raise UsageError("the detector is closed", "open a new one")
        return self._detector(image)

    def describe(self) -> str:
        """One line: family, input, precision and backend."""
        return f"{self.spec.describe()}; {self.precision} {self.artifact} on {self.backend}"

    def close(self) -> None:
        """Free the network; closing twice does nothing."""
        session, self._session, self._detector = self._session, None, None
        if isinstance(session, GpuDetectorSession):
            session.close()

    def __enter__(self) -> "BundleDetector":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass(frozen=True)
class _Choice:
    """What is opened."""

    backend: str
    precision: str
    file: str
    artifact: str


def build_detector_engine(
    bundle: Bundle | str | Path,
    precision: str,
    backend: str = "auto",
    options: EngineOptions | None = None,
    sign: SigningKey | None = None,
) -> BuildResult:
    """Build an engine of a bundle's detector for this machine, into the bundle.

    Args:
        bundle: An open bundle with a detector, or its folder.
        precision: "fp32", "fp16" or "int8".
        backend: "onnxruntime", "tensorrt", "tensorrt-rtx", or "auto".
        options: TensorRT's; batches and frames are not a detector's.
        sign: Signs the engine and its fingerprint.

    Raises:
        UsageError: An unknown precision, or options that do not go with it.
        BundleError: The bundle has no detector of that precision.
        MachineError: The backend cannot be used here.
        ModelError: The backend refuses the network.
        GateFailed: An INT8 engine would compute no convolution so. The bundle stays as it was.
    """
    if precision not in DETECTOR_SOURCES:
        raise UsageError(
            f"a detector has no {precision} engine", f"precisions: {', '.join(DETECTOR_SOURCES)}"
        )
    chosen = pick_backend(backend, build=True)
    if chosen == ONNXRUNTIME and options is not None:
        raise UsageError(
            "workspace, level and the other build options are TensorRT's",
            "leave them out, or name --backend tensorrt or tensorrt-rtx",
        )
    options = options or EngineOptions()
    if options.implicit:
        raise UsageError(
            "--implicit is for face networks", "leave it out: Q and DQ are in the file"
        )
    bundle = ensure_signatures(bundle if isinstance(bundle, Bundle) else open_bundle(bundle))
    spec = read_detector_spec(bundle.file(DETECTOR_SPEC))
    parts = EngineParts(
        engine_name(chosen, precision, "detector"),
        DETECTOR_SOURCES[precision],
        DETECTOR_TABLE if precision == "int8" else "",
        partial(_build_cpu, precision, spec),
        lambda known: build_detector_plan(bundle, spec, precision, chosen, options, known),
        {"role": "detector", "detector": spec},
    )
    return write_engine(bundle, precision, chosen, parts, options, sign)


def open_bundle_detector(
    bundle: Bundle | str | Path,
    engine: str = "auto",
    backend: str = "auto",
    *,
    artifact: Artifact = "engine",
    threads: int | None = None,
) -> BundleDetector:
    """Open the detector of a bundle: an engine that was built, or its ONNX graph.

    Args:
        bundle: An open bundle or its folder.
        engine: "fp32", "fp16", "int8", or "auto" for the best engine that was built: int8, else fp16,
            else fp32, else (none was built) the graph of detector.onnx.
        backend: As `open_session` takes it.
        artifact: "engine", or "graph" for the ONNX file of that precision on onnxruntime.
        threads: onnxruntime's threads; None for one per core.

    Raises:
        UsageError: An unknown name.
        BundleError: The bundle has no detector or no such engine, or a file was changed, or is not
            signed and that is required.
        MachineError: The backend cannot run here, or the engine was built on another machine.
        ModelError: The backend refuses the network.
    """
    bundle = ensure_signatures(bundle if isinstance(bundle, Bundle) else open_bundle(bundle))
    if engine not in ("auto", *DETECTOR_PRECISIONS):
        raise UsageError(
            f"no detector engine {engine!r}", f"engines: auto, {', '.join(DETECTOR_PRECISIONS)}"
        )
    spec = read_detector_spec(bundle.file(DETECTOR_SPEC))
    choice = _choose(bundle, engine, backend, artifact)
    path, expected = bundle.file(choice.file), bundle.files[choice.file].sha256
    facts = check_fingerprint(bundle, choice.file) if choice.artifact == "engine" else {}
    session, digest = _open(bundle, spec, choice, path, expected, threads, facts)
    return BundleDetector(
        spec,
        session,
        path=path,
        backend=choice.backend,
        precision=choice.precision,
        artifact=choice.artifact,
        file=choice.file,
        sha256=digest,
        int8_layers=facts.get("layers", {}).get("int8", 0),
        int8_in_float=facts.get("int8_in_float", 0),
    )


def _choose(bundle: Bundle, engine: str, backend: str, artifact: Artifact) -> _Choice:
    wanted = DETECTOR_PRECISIONS[::-1] if engine == "auto" else (engine,)
    chosen = pick_backend(ONNXRUNTIME if artifact == "graph" else backend)
    if backend == "auto" and not _built(bundle, chosen, wanted):
        chosen = ONNXRUNTIME
    built = _built(bundle, chosen, wanted)
    if artifact == "engine" and built:
        return _Choice(chosen, *built[0], "engine")
    if artifact == "graph" or (engine == "auto" and chosen == ONNXRUNTIME):
        precision = "fp32" if engine == "auto" else engine
        return _Choice(ONNXRUNTIME, precision, DETECTOR_SOURCES[precision], "graph")
    precision = wanted[0]
    named = "" if backend == "auto" else f" --backend {backend}"
    raise BundleError(
        f"{bundle.root} has no {'' if engine == 'auto' else engine + ' '}engine of its detector for"
        f" {chosen}",
        f"build it with `fr-edge build-engine {bundle.root} --role detector --{precision}{named}`",
    )


def _built(bundle: Bundle, backend: str, wanted: Sequence[str]) -> list[tuple[str, str]]:
    """Precision and path of the engines that were built, in the order that is wanted."""
    names = ((p, find_engine(bundle, backend, p, "detector")) for p in wanted)
    return [(precision, name) for precision, name in names if name]


def _open(
    bundle: Bundle,
    spec: DetectorSpec,
    choice: _Choice,
    path: Path,
    expected: str,
    threads: int | None,
    facts: Mapping[str, Any],
) -> tuple[Any, str]:
    """What runs the network, and the sha256 of the bytes that were opened."""
    if choice.backend != ONNXRUNTIME:
        ensure_loadable(path)
        host_code = bool(facts.get("version_compatible"))
        if host_code and not (built_here(expected) or vouched_for(bundle, choice.file)):
            raise BundleError(
                f"{choice.file} is version-compatible: it carries code for the CPU, and it was neither"
                " built by you here nor signed by a trusted key",
                "build it here, or unpack a signed pack and trust its maker's key",
            )
        gpu = GpuDetectorSession(
            path, choice.backend, spec, file=choice.file, expected_sha256=expected,
            host_code=host_code, dla=facts.get("dla"),
        )  # fmt: skip
        return gpu, gpu.sha256
    data, digest = read_expected(path, expected)
    model = parse_onnx(data, str(path))
    ensure_runnable(model, str(path), (spec.height, spec.width), data)
    if choice.artifact == "graph":
        check_finite(model)
        data = cpu_model(model).SerializeToString()
    session = make_cpu_session(data, str(path), threads, optimize=choice.artifact == "graph")
    missing = set(spec.outputs) - {output.name for output in session.get_outputs()}
    if missing or len(session.get_inputs()) != 1:
        raise ModelError(
            f"{path} is not the network that {DETECTOR_SPEC} describes",
            "export the detector again",
        )
    return session, digest


def _build_cpu(precision: str, spec: DetectorSpec, source: Path, target: Path) -> BackendBuild:
    """The detector for this CPU; for INT8 with the kernels that are fastest here."""
    model = read_onnx(source)
    check_finite(model)
    layers = layer_precisions(model)
    facts: dict[str, Any] = {}
    integer: tuple[str, ...] | None = None
    if precision == "int8":
        timed = (min(spec.height, _TIMED_SIDE), min(spec.width, _TIMED_SIDE))
        timed = timed if spec.any_size else (spec.height, spec.width)
        best = select_kernels(with_image_size(model, timed), cpu_runner, (1,))[0]
        integer = best.layers
        facts = {
            "integer_layers": list(integer),
            "int8_in_float": layers["int8"] - len(integer),
        }
        logger.info(
            "%d of %d INT8 layers of the detector run on integer kernels, which was fastest here:"
            " %.2f of the time in float; the others compute in float with INT8 weights",
            *(len(integer), layers["int8"], best.relative[0]),
        )
    data = cpu_model(model, integer).SerializeToString()
    try:
        make_cpu_session(data, str(source), save_optimized=target)
    except ModelError as error:
        if "serializ" not in error.message:
            raise
        raise MachineError(
            f"onnxruntime cannot write the engine to {target.parent}", "is the disk full?"
        ) from error
    facts["operators"] = dict(Counter(node.op_type for node in read_onnx(target).graph.node))
    return BackendBuild(layers, len(integer or ()), facts)


def has_detector(bundle: Bundle) -> bool:
    """Whether a bundle holds a detector.

    Args:
        bundle: An open bundle.
    """
    return DETECTOR in bundle and DETECTOR_SPEC in bundle
