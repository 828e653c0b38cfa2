"""The `onnxruntime` backend: sessions and engines on the CPU.

It runs the same network as TensorRT does, with onnxruntime's arithmetic. `cpu_graph` says what is
written differently so that it is fast; which operators then ran is part of the engine's
fingerprint.
"""

import platform
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import BundleError, MachineError, ModelError, UsageError
from ..faces.contract import InputSpec
from ..graph.cpu_int8 import cpu_model
from ..graph.load import check_finite
from ..graph.uint8_input import with_uint8_input
from .cpu_kernel_selection import KernelSelection, TimedCall, select_kernels
from .machine.device import cores
from .profile import LayerTime, node_times

if TYPE_CHECKING:
    from onnx import ModelProto

InputBatch = npt.NDArray[np.float32] | npt.NDArray[np.uint8]

ONNXRUNTIME = "onnxruntime"

_MAX_BATCH = 4
"""Faces per run: the activations of more do not fit the cache (docs/results/engines.md)."""


class CpuSession:
    """A `runtime.session.Session` on onnxruntime's CPU provider.

    With `raw`, the input contract, it is a `RawSession`: pixels in.
    """

    def __init__(
        self,
        file: Path,
        precision: str,
        *,
        as_built: bool = False,
        raw: InputSpec | None = None,
        threads: int | None = None,
    ) -> None:
        self.backend = ONNXRUNTIME
        self.precision = precision
        self.largest_batch: int | None = None
        self._open = partial(_open, file, as_built, raw, threads)
        self._session: Any = self._open()
        face = self._session.get_inputs()[0]
        self._input, self._shape = face.name, tuple(face.shape[1:])
        self._type = np.dtype(np.uint8 if raw else np.float32)
        self.dim = int(self._session.get_outputs()[0].shape[-1])

    def embed(self, faces: InputBatch) -> npt.NDArray[np.float32]:
        """`(N, 3, H, W) float32` -> `(N, D) float32`, as the network gives it; N may be 0.

        Raises UsageError for another shape or type, or after `close`.
        """
        if self._session is None:
            raise UsageError("the session is closed", "open a new one")
        check_faces(faces, self._shape, self._type)
        if 0 < len(faces) <= _MAX_BATCH:
            out: npt.NDArray[np.float32] = self._session.run(None, {self._input: faces})[0]
            return out
        parts = [
            self._session.run(None, {self._input: faces[start : start + _MAX_BATCH]})[0]
            for start in range(0, len(faces), _MAX_BATCH)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def split(self, faces: InputBatch) -> None:
        """Nothing crosses to a device."""

    def layers(self, faces: InputBatch, runs: int) -> tuple[LayerTime, ...]:
        """onnxruntime's own profile of that many runs, in a session of its own."""
        with TemporaryDirectory() as folder:
            session = self._open(Path(folder) / "profile")
            for _ in range(runs + 1):
                session.run(None, {self._input: faces[:_MAX_BATCH]})
            return node_times(Path(session.end_profiling()))

    def close(self) -> None:
        """Free the network; closing twice does nothing."""
        self._session = None


def check_faces(faces: InputBatch, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise UsageError unless `faces` is `(N, *shape)` of that type."""
    if faces.dtype != dtype or faces.ndim != 4 or faces.shape[1:] != shape:
        raise UsageError(
            f"expected faces (N, {', '.join(map(str, shape))}) {dtype},"
            f" found {faces.shape} {faces.dtype}",
            "aligned faces are (N, 112, 112, 3) uint8; `preprocess(faces, bundle.spec)` makes"
            " float32 of them, a raw session takes them as they are",
        )


@dataclass(frozen=True)
class Executed:
    """What an engine runs: how often each operator, and the INT8 layers in integer kernels by name
    of their output; `raced` is all that was tried to find those, the best first."""

    operators: dict[str, int]
    integer: tuple[str, ...]
    raced: tuple[KernelSelection, ...]


def build(source: Path, target: Path) -> Executed:
    """Optimise `source` for this CPU and keep the result; of an INT8 model what runs fastest here.

    Raises ModelError when onnxruntime refuses it, MachineError when the engine cannot be written.
    """
    import onnx

    model = _read(source)
    quantised = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    raced = select_kernels(model, runner, (1, _MAX_BATCH)) if quantised else []
    integer = raced[0].layers if quantised else None
    options = _options()
    options.optimized_model_filepath = str(target)
    try:
        _load(cpu_model(model, integer).SerializeToString(), options, source.name)
    except ModelError as error:
        if "serializ" not in error.message:
            raise
        raise MachineError(
            f"onnxruntime cannot write the engine to {target.parent}", "is the disk full?"
        ) from error
    operators = dict(Counter(node.op_type for node in onnx.load(target).graph.node))
    return Executed(operators, integer or (), tuple(raced))


def runner(model: bytes) -> TimedCall:
    """What runs an ONNX model as it is written."""
    session = _load(model, _options(), "a flavour of the model")
    face = session.get_inputs()[0].name
    return lambda faces: session.run(None, {face: faces})


def _open(
    file: Path,
    as_built: bool,
    raw: InputSpec | None,
    threads: int | None,
    profile: Path | None = None,
) -> Any:
    options = _options(threads)
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if as_built:
        import onnxruntime as ort

        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _load(_written(file, as_built, raw), options, file.name)


def _written(file: Path, as_built: bool, raw: InputSpec | None) -> str | bytes:
    if as_built and not raw:
        return str(file)
    model = _read(file)
    if not as_built:
        model = cpu_model(model)
    data: bytes = (with_uint8_input(model, raw) if raw else model).SerializeToString()
    return data


def _read(file: Path) -> "ModelProto":
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(file)
    except DecodeError as error:
        raise BundleError(f"{file} is not an ONNX model: {error}", "export again") from error
    check_finite(model)
    return model


def _options(threads: int | None = None) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised; stderr belongs to the command line
    options.intra_op_num_threads = threads or cores()
    if _overflows():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _overflows() -> bool:
    """Whether this CPU adds uint8 x int8 products in 16 bits, which overflow: x86 without VNNI.

    onnxruntime has a slower exact way, and takes it on every x86 where it is asked to.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return True
    return not flags & {"avx512_vnni", "avx_vnni", "amx_int8"}


def _load(model: str | bytes, options: Any, name: str) -> Any:
    import onnxruntime as ort

    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base of their own
        raise ModelError(f"onnxruntime cannot load {name}: {error}") from error
