"""Open whatever runs the bundle here: an engine that was built, or the ONNX model itself."""

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..bundle.bundle import open_bundle
from ..bundle.manifest import Bundle
from ..errors import UsageError
from ..faces.contract import preprocess
from ..faces.sources import Faces
from ..progress import Track, silent
from .build import PRECISIONS, engine_name, network_of_plan
from .fingerprint import SOURCES, check_fingerprint, int8_in_float
from .machine.backends import pick_backend
from .onnxruntime_session import ONNXRUNTIME as CPU
from .onnxruntime_session import CpuSession
from .profile import DeviceTimes, LayerTime
from .tensorrt_session import GpuSession
from .trt.plan_file import refuse_foreign

_BATCH = 32


class Session(Protocol):
    """Something that embeds faces; `precision` is fp32, fp16 or int8."""

    backend: str
    precision: str
    dim: int

    def embed(self, faces: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """`(N, 3, H, W) float32`, preprocessed -> `(N, D) float32`, as the network gives it."""


class EngineSession(Session, Protocol):
    """A session that can say where its time goes.

    `largest_batch` is what one run of the engine takes, None where any number does; `embed` cuts
    larger ones.
    """

    largest_batch: int | None

    def split(self, faces: npt.NDArray[np.float32]) -> DeviceTimes | None:
        """Embed once and say where the time went; None where nothing crosses to a device."""

    def layers(self, faces: npt.NDArray[np.float32], runs: int) -> tuple[LayerTime, ...]:
        """The network's layers by their time in some runs, empty where the backend tells none.

        Of at most the faces that one run takes.
        """


class RawSession(Protocol):
    """A session that takes aligned faces as they are; see `open_raw_session`."""

    backend: str
    precision: str
    dim: int

    def embed(self, faces: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """`(N, 112, 112, 3) uint8`, RGB -> `(N, D) float32`, as the network gives it."""


def open_session(
    bundle: Bundle | str | Path,
    engine: str = "auto",
    backend: str = "auto",
    *,
    threads: int | None = None,
) -> EngineSession:
    """A session on the engine of that precision, or on its ONNX file where none was built.

    `engine="auto"` takes int8, else fp16, else fp32: the best engine that was built. Only
    onnxruntime runs an ONNX file as it is; `backend="auto"` is TensorRT where it can run and an
    engine was built for it. `threads` are onnxruntime's, by default one for each core. Raises
    UsageError for an unknown name, BundleError when the bundle lacks the model or engine,
    MachineError when the backend cannot run here or the engine was built elsewhere.
    """
    return _open(bundle, engine, backend, raw=False, threads=threads)


def open_judged(
    bundle: Bundle | str | Path, engine: str = "auto", backend: str = "auto"
) -> Session:
    """As `open_session`, for judging: INT8 on a CPU rounds in every layer, as TensorRT does.

    A CPU engine computes layers in float where those are faster here. It rounds less than what it
    stands for, and would be judged too well.
    """
    return _open(bundle, engine, backend, raw=False, every_rounding=True)


def open_raw_session(
    bundle: Bundle | str | Path, engine: str = "auto", backend: str = "auto"
) -> RawSession:
    """As `open_session`, with the input contract inside: pixels in.

    TensorRT needs an engine that was built so (`EngineOptions(raw=True)`). Raises UsageError too
    for a contract that scales the face.
    """
    return _open(bundle, engine, backend, raw=True)


def _open(
    bundle: Bundle | str | Path,
    engine: str,
    backend: str,
    *,
    raw: bool,
    threads: int | None = None,
    every_rounding: bool = False,
) -> CpuSession | GpuSession:
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    if engine not in ("auto", *PRECISIONS):
        raise UsageError(f"no engine {engine!r}", "engines: auto, fp32, fp16, int8")
    chosen = pick_backend(backend)
    if backend == "auto" and not _built(bundle, chosen, engine, raw):
        chosen = CPU
    raw_file = raw and chosen != CPU  # onnxruntime makes it of any file when it opens one
    built = _built(bundle, chosen, engine, raw_file)
    precision = built[0] if built else "fp32" if engine == "auto" else engine
    name = engine_name(chosen, precision, raw_file)
    if chosen != CPU:
        if threads is not None:
            raise UsageError(f"{chosen} has no threads to choose", "threads are onnxruntime's")
        plan = bundle.file(name)
        facts = check_fingerprint(bundle, name)
        refuse_foreign(plan)
        network = network_of_plan(bundle, facts) if facts.get("stripped") else None
        return GpuSession(plan, precision, chosen, network)
    as_built = bool(built)
    if built:
        check_fingerprint(bundle, name)
        as_built = not (every_rounding and int8_in_float(bundle, name))
    file = bundle.file(name if as_built else SOURCES[precision])
    spec = bundle.spec if raw else None
    return CpuSession(file, precision, as_built=as_built, raw=spec, threads=threads)


def embed_faces(
    session: Session,
    bundle: Bundle,
    faces: Faces,
    track: Track = silent,
    label: str = "embedding",
) -> npt.NDArray[np.float32]:
    """All faces of a source -> `(N, D) float32`, in order."""
    steps = (len(faces) + _BATCH - 1) // _BATCH
    parts = [
        session.embed(preprocess(batch, bundle.spec))
        for batch in track(faces.batches(_BATCH), label, steps)
    ]
    return np.concatenate(parts)


def _built(bundle: Bundle, backend: str, engine: str, raw: bool) -> list[str]:
    """The precisions of `engine` that were built, the best first."""
    wanted = PRECISIONS[::-1] if engine == "auto" else (engine,)
    return [p for p in wanted if engine_name(backend, p, raw) in bundle]
