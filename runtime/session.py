"""Open what runs a bundle here: an engine that was built, or the ONNX graph itself."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from ..arrays import F32, U8
from ..bundle.bundle import open_bundle
from ..bundle.manifest import Bundle
from ..bundle.provenance import ImageDigests, Provenance, digest_pairs, make_provenance
from ..bundle.trust import ensure_signatures, vouched_for
from ..calibration.table import CALIBRATION_FILES
from ..errors import BundleError, UsageError
from ..faces.embedding_log import FaceEmbedder
from ..faces.sources import Faces
from ..files import sha256
from ..graph.frame_input import INPUT_KINDS, InputKind
from ..metrics.protocols import ListedPairs
from ..progress import Track, silent
from .fingerprint import (
    PRECISIONS,
    SOURCES,
    built_here,
    check_fingerprint,
    find_engine,
    machine_fingerprint,
)
from .machine.backends import pick_backend
from .onnxruntime_session import ONNXRUNTIME, CpuSession
from .profile import DeviceTimes, LayerTime
from .tensorrt_session import GpuSession
from .trt.plan_file import ensure_loadable

Artifact = Literal["engine", "graph"]

_DRIVER_PACKAGES = {"cuda": ("cuda-python", "cuda-bindings"), "pycuda": ("pycuda",)}
_BATCH = 32  # faces that `embed_faces` decodes at a time


class Session(FaceEmbedder, Protocol):
    """An open network that embeds faces; close it, or use it in a `with` statement.

    Attributes:
        backend: "onnxruntime", "tensorrt" or "tensorrt-rtx".
        precision: "fp32", "fp16", "fp8" or "int8".
        artifact: "engine" for an engine that was built, "graph" for an ONNX file as it is.
        file: The file's path within the bundle.
        sha256: Of exactly the bytes that were opened.
        largest_batch: Faces that one run of the engine takes, None where any number does; `embed`
            cuts larger batches.
        input_kind: What the engine takes: "tensor" for what `faces.contract.preprocess` makes, "crop"
            for aligned faces, "frame" for a frame with landmarks.
        uint8_input: Whether it takes pixels, and applies the input contract itself.
        int8_layers: Layers with INT8 weights.
        int8_in_float: Of these, the layers that compute in float on this CPU and round no
            activation.
    """

    backend: str
    precision: str
    artifact: str
    file: str
    sha256: str
    largest_batch: int | None
    input_kind: InputKind
    uint8_input: bool
    int8_layers: int
    int8_in_float: int

    @property
    def execution(self) -> str:
        """How embeddings were computed so far: "CUDA graph" for replays, "queued calls" for runs that
        were queued call by call, "CUDA graph and queued calls" for both; "" on the CPU.
        """

    def embed(self, images: U8) -> F32:
        """Embed aligned faces; the input contract is applied here.

        Args:
            images: `(N, 112, 112, 3) uint8`, RGB, aligned, or of the network's own size where that is
                larger; N may be 0.

        Returns:
            `(N, D) float32`, as the network gives them (of unit length only where it does so).

        Raises:
            UsageError: Images of another shape or type, or the session is closed.
        """

    def embed_frame(self, frame: U8, landmarks: F32) -> F32:
        """Align and embed faces of one frame; in the engine where it takes frames, else on the host.

        Args:
            frame: `(H, W, 3) uint8`, RGB.
            landmarks: `(N, 5, 2) float32`: x, y of the eyes, nose tip and mouth corners in pixels,
                what is left in the frame first; N may be 0.

        Returns:
            `(N, D) float32`, of unit length.

        Raises:
            UsageError: A frame or landmarks of another shape or type, or the session is closed.
            FacesError: Landmarks that are not finite, in one place, outside the frame, or not those
                of a face.
        """

    def embed_tensor(self, inputs: F32) -> F32:
        """Embed what `faces.contract.preprocess` made of faces.

        Args:
            inputs: `(N, 3, H, W) float32`; N may be 0.

        Returns:
            `(N, D) float32`, as the network gives them.

        Raises:
            UsageError: Inputs of another shape or type, the session is closed, or the engine takes
                pixels.
        """

    def device_times(self, images: U8) -> DeviceTimes | None:
        """Embed once and measure the copies and the computation.

        Args:
            images: As `embed` takes them, at most `largest_batch` of them.

        Returns:
            The times of one run, None where nothing is copied to a device.
        """

    def layer_times(self, images: U8, runs: int) -> tuple[LayerTime, ...]:
        """Profile the network's layers.

        Args:
            images: As `embed` takes them, at most as many as one run takes.
            runs: Runs to profile.

        Returns:
            The layers, the slowest first; empty where the backend reports none.
        """

    def close(self) -> None:
        """Free the network; closing twice does nothing."""

    def __enter__(self) -> "Session": ...

    def __exit__(self, *exception: object) -> None: ...


def open_session(
    bundle: Bundle | str | Path,
    engine: str = "auto",
    backend: str = "auto",
    *,
    artifact: Artifact = "engine",
    threads: int | None = None,
) -> Session:
    """Open the engine of a bundle, exactly as it was built, or its ONNX graph.

    Args:
        bundle: An open bundle or its folder.
        engine: "fp32", "fp16", "fp8", "int8", or "auto" for the best engine that was built: int8,
            else fp8 (not on the CPU, which emulates it), else fp16, else fp32, else (none was built)
            the graph of model.onnx. "int8-crop" and "int8-frame" name an engine by what it takes
            too; without that, it is the first of tensor, crop and frame that was built.
        backend: "onnxruntime", "tensorrt", "tensorrt-rtx", or "auto": TensorRT where it can run and
            such an engine was built for it, else onnxruntime.
        artifact: "engine" for the engine; "graph" for the ONNX file of that precision on
            onnxruntime, with every rounding that its Q/DQ nodes ask for.
        threads: onnxruntime's threads; None for one per core.

    Raises:
        UsageError: An unknown name, or an option that the backend does not have.
        BundleError: The engine was not built, or a file's bytes are not those of the manifest and
            of the engine's fingerprint, or they are not signed and that is required.
        MachineError: The backend cannot run here, or the engine was built on another machine.
        ModelError: The backend refuses the network.
    """
    bundle = ensure_signatures(bundle if isinstance(bundle, Bundle) else open_bundle(bundle))
    precision, kinds = _parse_engine(engine)
    if artifact not in ("engine", "graph"):
        raise UsageError(f"no artifact {artifact!r}", "artifacts: engine, graph")
    if artifact == "graph" and len(kinds) == 1:
        raise UsageError(f"{engine} names an engine, not a graph", f"--engine {precision}")
    if artifact == "graph" and backend not in ("auto", ONNXRUNTIME):
        raise UsageError(
            f"{backend} runs engines, not ONNX graphs", "leave --backend out, or --artifact graph"
        )
    chosen = pick_backend(ONNXRUNTIME if artifact == "graph" else backend)
    if backend == "auto" and not _built(bundle, chosen, precision, kinds):
        chosen = ONNXRUNTIME
    if chosen != ONNXRUNTIME and threads is not None:
        raise UsageError(f"{chosen} has no threads to choose", "threads are onnxruntime's")
    built = _built(bundle, chosen, precision, kinds)
    if artifact == "graph" or (engine == "auto" and not built and chosen == ONNXRUNTIME):
        best = built[0][0] if built else "fp32"
        return _open_graph(bundle, best if precision == "auto" else precision, threads)
    if not built:
        named = "" if backend == "auto" else f" --backend {backend}"
        named += "" if len(kinds) > 1 else f" --input {kinds[0]}"
        wanted = PRECISIONS[-1] if precision == "auto" else precision
        raise BundleError(
            f"{bundle.root} has no {'' if engine == 'auto' else engine + ' '}engine"
            f"{'' if backend == 'auto' else f' for {backend}'}",
            f"build it with `fr-edge build-engine {bundle.root} --{wanted}{named}`",
        )
    return _open_engine(bundle, *built[0], chosen, threads)


def _parse_engine(text: str) -> tuple[str, tuple[InputKind, ...]]:
    """The precision, or "auto", that an engine's name holds, and what the engine may take."""
    precision, dash, kind = text.partition("-")
    kinds = tuple(k for k in INPUT_KINDS if k == kind or not dash)
    if precision not in ("auto", *PRECISIONS) or not kinds:
        raise UsageError(
            f"no engine {text!r}",
            f"engines: auto, {', '.join(PRECISIONS)}; with -{' or -'.join(INPUT_KINDS)} by what they take",
        )
    return precision, kinds


def _open_graph(bundle: Bundle, precision: str, threads: int | None) -> CpuSession:
    name = SOURCES[precision]
    return CpuSession(
        bundle.file(name),
        precision,
        bundle.spec,
        file=name,
        expected_sha256=bundle.files[name].sha256,
        threads=threads,
    )


def _open_engine(
    bundle: Bundle, precision: str, name: str, backend: str, threads: int | None
) -> CpuSession | GpuSession:
    facts = check_fingerprint(bundle, name)
    path, sha256 = bundle.file(name), bundle.files[name].sha256
    if backend != ONNXRUNTIME:
        ensure_loadable(path)
        host_code = bool(facts.get("version_compatible"))
        if host_code and not (built_here(sha256) or vouched_for(bundle, name)):
            raise BundleError(
                f"{name} is version-compatible: it carries code for the CPU, and it was neither built"
                " by you here nor signed by a trusted key",
                f"build it here: `fr-edge build-engine BUNDLE --{precision} --version-compatible`, or"
                " unpack a signed pack and trust its maker's key",
            )
        return GpuSession(
            path,
            precision,
            backend,
            bundle.spec,
            file=name,
            expected_sha256=sha256,
            int8_layers=facts["layers"].get("int8", 0),
            version_compatible=host_code,
            dla=facts.get("dla"),
        )
    return CpuSession(
        path,
        precision,
        bundle.spec,
        artifact="engine",
        file=name,
        expected_sha256=sha256,
        threads=threads,
        int8_layers=facts["layers"].get("int8", 0),
        int8_in_float=facts["int8_in_float"],
    )


def embed_faces(
    session: FaceEmbedder, faces: Faces, track: Track = silent, label: str = "embedding"
) -> F32:
    """Embed a whole source of faces.

    Args:
        session: An open session.
        faces: N faces; each is decoded once.
        track: Shows progress.
        label: The progress bar's text.

    Returns:
        `(N, D) float32`, in the order of the source.
    """
    steps = (len(faces) + _BATCH - 1) // _BATCH
    parts = [session.embed(batch) for batch in track(faces.batches(_BATCH), label, steps)]
    return np.concatenate(parts) if parts else np.zeros((0, session.dim), np.float32)


def embed(
    bundle: Bundle | str | Path,
    images: U8 | Sequence[U8],
    engine: str = "auto",
    backend: str = "auto",
) -> F32:
    """Open a bundle's engine, embed aligned faces, and close it.

    For many calls open a session once: `with open_session(bundle) as session`.

    Args:
        bundle: An open bundle or its folder.
        images: Aligned RGB faces, `(N, 112, 112, 3) uint8` or N of `(112, 112, 3)`; of the network's own
            size where that is larger.
        engine: As `open_session` takes it.
        backend: As `open_session` takes it.

    Returns:
        `(N, D) float32`, as the network gives them (of unit length only where it does so).

    Raises:
        UsageError: Images of another shape or type.
        FrEdgeError: What `open_session` raises.
    """
    with open_session(bundle, engine, backend) as session:
        return session.embed(np.asarray(images))


def session_provenance(
    bundle: Bundle,
    session: Session,
    *,
    images: ImageDigests | None = None,
    pairs: ListedPairs | None = None,
    list_sha256: str = "",
    reads: Mapping[str, Path | None] | None = None,
    also: Iterable[str] = (),
    instead: Mapping[str, Path | None] | None = None,
) -> Provenance:
    """The provenance of a report about an open session.

    Args:
        bundle: The bundle as it was opened.
        session: What was judged or timed.
        images: Digests of the images.
        pairs: The pair list, where there is one.
        list_sha256: Of the pair list's file.
        reads: Name -> another file that was read, None where it was not given.
        also: Other files of the bundle that decide the result: golden faces, policy.
        instead: File of the bundle -> what was read in its place, None where it was not given.
    """
    files = [session.file, "model.onnx", SOURCES[session.precision]]
    files += [f"{session.file}.json"] if session.artifact == "engine" else []
    if session.precision in CALIBRATION_FILES:
        files.append(CALIBRATION_FILES[session.precision].table)
    files += also
    inputs = {name: sha256(path) for name, path in (reads or {}).items() if path is not None}
    if list_sha256:
        inputs["pairs"] = list_sha256
    packages = [ONNXRUNTIME]  # runs the reference, where it does not run the engine itself
    if session.backend != ONNXRUNTIME:
        packages.append(session.backend)
        for module, names in _DRIVER_PACKAGES.items():
            packages += names if module in sys.modules else ()
    provenance = make_provenance(
        bundle,
        files,
        images=images,
        pairs=digest_pairs(pairs.fold, pairs.first, pairs.second, pairs.same) if pairs else None,
        inputs=inputs,
        device=machine_fingerprint(session.backend),
        packages=packages,
    )
    judged = {**provenance.files, session.file: session.sha256}  # exactly the bytes it opened
    judged |= {name: sha256(path) for name, path in (instead or {}).items() if path is not None}
    return replace(provenance, files=judged)


def _built(
    bundle: Bundle, backend: str, precision: str, kinds: Sequence[InputKind]
) -> list[tuple[str, str]]:
    """Precision and path of the engines that were built, the best first."""
    wanted = PRECISIONS[::-1] if precision == "auto" else (precision,)
    if precision == "auto" and backend == ONNXRUNTIME:
        wanted = tuple(name for name in wanted if name != "fp8")  # emulated, slower than FP32
    names = ((p, find_engine(bundle, backend, p, kind)) for p in wanted for kind in kinds)
    return [(precision, name) for precision, name in names if name]
