"""The `onnxruntime` backend: sessions and engines on the CPU.

It runs the same network as TensorRT does, with onnxruntime's arithmetic. `cpu_graph` says what is
written differently so that it is fast; which operators then ran is part of the engine's
fingerprint.
"""

import platform
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays import F32, U8
from ..errors import BundleError, MachineError, ModelError, UsageError
from ..faces.contract import InputSpec, preprocess
from ..graph.cpu_int8 import cpu_model
from ..graph.layers import layer_precisions
from ..graph.load import check_finite
from ..graph.uint8_input import UINT8_SHAPE
from .cpu_kernel_selection import KernelSelection, TimedCall, select_kernels
from .fingerprint import read_expected
from .machine.device import cores
from .profile import LayerTime, node_times

if TYPE_CHECKING:
    from onnx import ModelProto

ONNXRUNTIME = "onnxruntime"

_MAX_BATCH = 4  # faces per run: more activations do not fit the cache (docs/results/engines.md)


class CpuSession:
    """A `runtime.session.Session` on onnxruntime's CPU provider.

    Attributes: those of `Session`.
    """

    def __init__(
        self,
        path: Path,
        precision: str,
        spec: InputSpec,
        *,
        artifact: str = "graph",
        file: str = "",
        expected_sha256: str = "",
        threads: int | None = None,
        int8_layers: int = 0,
        int8_in_float: int = 0,
    ) -> None:
        """Open an ONNX file.

        Args:
            path: The file.
            precision: "fp32", "fp16" or "int8".
            spec: The network's input contract.
            artifact: "engine" to run the file exactly as it is, "graph" to let onnxruntime and
                `cpu_model` optimise it first.
            file: The file's name for reports; by default that of `path`.
            expected_sha256: Of the file's bytes; "" accepts any.
            threads: None for one per core.
            int8_layers: An engine's layers with INT8 weights; those of a graph are counted.
            int8_in_float: Of these, the layers that compute in float.

        Raises:
            BundleError: The file is no ONNX model, or its sha256 is not the expected one.
            ModelError: onnxruntime refuses the model, or weights are not finite.
        """
        self.backend = ONNXRUNTIME
        self.precision, self.artifact = precision, artifact
        self.file = file or path.name
        self.largest_batch: int | None = None
        self.uint8_input = False
        self._path, self._spec, self._threads = path, spec, threads
        data, self.sha256 = read_expected(path, expected_sha256)
        self.int8_layers, self.int8_in_float = int8_layers, int8_in_float
        self._session: Any = self._load(self._model(data))
        face = self._session.get_inputs()[0]
        self._input, self._shape = face.name, tuple(face.shape[1:])
        self.dim = int(self._session.get_outputs()[0].shape[-1])

    def embed(self, images: U8) -> F32:
        """Embed aligned faces; see `Session.embed`."""
        check_images(images)
        if 0 < len(images) <= _MAX_BATCH:
            return self.embed_tensor(preprocess(images, self._spec))
        parts = [
            self.embed_tensor(preprocess(images[start : start + _MAX_BATCH], self._spec))
            for start in range(0, max(1, len(images)), _MAX_BATCH)
        ]
        return np.concatenate(parts)

    def embed_tensor(self, inputs: F32) -> F32:
        """Embed preprocessed faces; see `Session.embed_tensor`."""
        if self._session is None:
            raise UsageError("the session is closed", "open a new one")
        check_inputs(inputs, self._shape)
        if 0 < len(inputs) <= _MAX_BATCH:
            out: F32 = self._session.run(None, {self._input: inputs})[0]
            return out
        parts = [
            self._session.run(None, {self._input: inputs[start : start + _MAX_BATCH]})[0]
            for start in range(0, len(inputs), _MAX_BATCH)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def device_times(self, images: U8) -> None:
        """None: nothing is copied to a device."""

    def layer_times(self, images: U8, runs: int) -> tuple[LayerTime, ...]:
        """onnxruntime's own profile, of a session of its own; see `Session.layer_times`."""
        check_images(images)
        inputs = preprocess(images[:_MAX_BATCH], self._spec)
        data, _ = read_expected(self._path, self.sha256)
        with TemporaryDirectory() as folder:
            session = self._load(self._model(data), Path(folder) / "profile")
            for _ in range(runs + 1):
                session.run(None, {self._input: inputs})
            return node_times(Path(session.end_profiling()))

    def close(self) -> None:
        """Free the network; closing twice does nothing."""
        self._session = None

    def __enter__(self) -> "CpuSession":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _model(self, data: bytes) -> bytes:
        if self.artifact == "engine":
            return data
        model = _parsed(data, self._path)
        self.int8_layers = layer_precisions(model)["int8"]
        optimised: bytes = cpu_model(model).SerializeToString()
        return optimised

    def _load(self, model: bytes, profile: Path | None = None) -> Any:
        options = _options(self._threads)
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        if self.artifact == "engine":
            import onnxruntime as ort

            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return _load(model, options, self._path.name)


def check_images(images: U8) -> None:
    """Raise unless images are aligned faces.

    Args:
        images: `(N, 112, 112, 3) uint8` expected.

    Raises:
        UsageError: Another shape or type.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != UINT8_SHAPE:
        raise UsageError(
            f"expected images (N, {', '.join(map(str, UINT8_SHAPE))}) uint8,"
            f" found {images.shape} {images.dtype}",
            "`align` cuts them out of photographs; preprocessed faces go into `embed_tensor`",
        )


def check_inputs(inputs: F32, shape: tuple[int, ...]) -> None:
    """Raise unless inputs are what a network takes.

    Args:
        inputs: `(N, *shape) float32` expected.
        shape: Of one preprocessed face, `(3, H, W)`.

    Raises:
        UsageError: Another shape or type.
    """
    if inputs.dtype != np.float32 or inputs.ndim != 4 or inputs.shape[1:] != shape:
        raise UsageError(
            f"expected inputs (N, {', '.join(map(str, shape))}) float32,"
            f" found {inputs.shape} {inputs.dtype}",
            "`embed` takes aligned faces (N, 112, 112, 3) uint8 and applies the input contract",
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

    model = _parsed(source.read_bytes(), source)
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


def _parsed(data: bytes, path: Path) -> "ModelProto":
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise BundleError(f"{path} is not an ONNX model: {error}", "export again") from error
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


def _load(model: bytes, options: Any, name: str) -> Any:
    import onnxruntime as ort

    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base of their own
        raise ModelError(f"onnxruntime cannot load {name}: {error}") from error
