"""The `onnxruntime` backend's session: an engine or an ONNX graph on the CPU."""

import platform
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..arrays import F32, U8
from ..errors import UsageError
from ..faces.contract import InputSpec, preprocess, resize_faces
from ..graph.cpu_int8 import cpu_model
from ..graph.frame_input import FRAME, LANDMARKS, InputKind
from ..graph.layers import layer_precisions
from ..graph.load import check_finite
from ..graph.uint8_input import UINT8_SHAPE
from ..inference import make_session
from ..onnx_file import parse_onnx
from ..trial_run import ensure_runnable
from .fingerprint import read_expected
from .frames import align_faces, check_frame, needed_part, tile_faces, unit_length
from .machine.device import cores
from .profile import LayerTime, node_times

ONNXRUNTIME = "onnxruntime"

MAX_BATCH = 4  # faces per run: more activations do not fit the cache (docs/results/engines.md)


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
            precision: "fp32", "fp16", "fp8" or "int8".
            spec: The network's input contract.
            artifact: "engine" to run the file exactly as it is, "graph" to let onnxruntime and
                `cpu_model` optimise it first.
            file: The file's name for reports; by default that of `path`.
            expected_sha256: Of the file's bytes; "" accepts any.
            threads: None for one per core.
            int8_layers: An engine's layers with INT8 weights; those of a graph are counted.
            int8_in_float: Of these, the layers that compute in float.

        Raises:
            BundleError: The file is not an ONNX model, or its sha256 is not the expected one.
            ModelError: onnxruntime refuses the model, or weights are not finite.
        """
        self.backend = ONNXRUNTIME
        self.precision, self.artifact = precision, artifact
        self.file = file or path.name
        self.execution = ""
        self._path, self._spec, self._threads = path, spec, threads
        data, self.sha256 = read_expected(path, expected_sha256)
        self.int8_layers, self.int8_in_float = int8_layers, int8_in_float
        self._session: Any = self._load(self._model(data))
        face = self._session.get_inputs()[0]
        self._input, self._shape = face.name, tuple(face.shape[1:])
        self.input_kind: InputKind = "tensor"
        if face.type == "tensor(uint8)":
            self.input_kind = "frame" if face.name == FRAME else "crop"
        self.uint8_input = self.input_kind != "tensor"
        batch = self._session.get_inputs()[-1].shape[0]
        self.largest_batch = batch if isinstance(batch, int) else None
        self._most = self.largest_batch or MAX_BATCH
        self.dim = int(self._session.get_outputs()[0].shape[-1])

    def embed(self, images: U8) -> F32:
        """Embed aligned faces; see `Session.embed`."""
        check_images(images, self._spec)
        self._require_open()
        if 0 < len(images) <= self._most:
            return self._run(self._feeds(images))
        parts = [
            self._run(self._feeds(images[start : start + self._most]))
            for start in range(0, len(images), self._most)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def embed_frame(self, frame: U8, landmarks: F32) -> F32:
        """Embed faces of a frame; see `Session.embed_frame`."""
        check_frame(frame, landmarks)
        if self.input_kind != "frame":
            return unit_length(self.embed(align_faces(frame, landmarks, self._spec.crop_side)))
        self._require_open()
        parts = []
        for start in range(0, len(landmarks), self._most):
            some = landmarks[start : start + self._most]
            part, points = needed_part(frame, some, self._spec.crop_side)
            parts.append(self._run({FRAME: part[None], LANDMARKS: points}))
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def embed_tensor(self, inputs: F32) -> F32:
        """Embed preprocessed faces; see `Session.embed_tensor`."""
        self._require_open()
        refuse_tensor(self.file, self.input_kind)
        check_inputs(inputs, self._shape)
        if 0 < len(inputs) <= self._most:
            return self._run({self._input: inputs})
        parts = [
            self._run({self._input: inputs[start : start + self._most]})
            for start in range(0, len(inputs), self._most)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def _feeds(self, images: U8) -> dict[str, F32 | U8]:
        """The network's inputs for aligned faces."""
        if self.input_kind == "frame":
            frame, landmarks = tile_faces(images, self._spec.crop_side)
            return {FRAME: frame[None], LANDMARKS: landmarks}
        if self.input_kind == "crop":
            return {self._input: resize_faces(images, self._spec.crop_side)}
        return {self._input: preprocess(images, self._spec)}

    def _run(self, feeds: dict[str, F32 | U8]) -> F32:
        out: F32 = self._session.run(None, feeds)[0]
        return out

    def _require_open(self) -> None:
        if self._session is None:
            raise UsageError("the session is closed", "open a new one")

    def device_times(self, images: U8) -> None:
        """None: nothing is copied to a device."""

    def layer_times(self, images: U8, runs: int) -> tuple[LayerTime, ...]:
        """onnxruntime's own profile, of a session of its own; see `Session.layer_times`."""
        check_images(images, self._spec)
        feeds = self._feeds(images[: self._most])
        data, _ = read_expected(self._path, self.sha256)
        with TemporaryDirectory() as folder:
            session = self._load(self._model(data), Path(folder) / "profile")
            for _ in range(runs + 1):
                session.run(None, feeds)
            return node_times(Path(session.end_profiling()))

    def close(self) -> None:
        """Free the network; closing twice does nothing."""
        self._session = None

    def __enter__(self) -> "CpuSession":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _model(self, data: bytes) -> bytes:
        model = parse_onnx(data, str(self._path))
        ensure_runnable(model, str(self._path), self._spec.shape[1:], data)
        if self.artifact == "engine":
            return data
        check_finite(model)
        self.int8_layers = layer_precisions(model)["int8"]
        optimised: bytes = cpu_model(model).SerializeToString()
        return optimised

    def _load(self, model: bytes, profile: Path | None = None) -> Any:
        optimize = self.artifact != "engine"
        return make_cpu_session(
            model, str(self._path), self._threads, optimize=optimize, profile=profile
        )


def check_images(images: U8, spec: InputSpec) -> None:
    """Raise unless images are aligned faces.

    Args:
        images: `(N, 112, 112, 3) uint8` expected, or of the network's own size where that is larger.
        spec: The network's contract.

    Raises:
        UsageError: Another shape or type.
    """
    shapes = {UINT8_SHAPE, (spec.crop_side, spec.crop_side, 3)}
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] not in shapes:
        sizes = " or ".join(f"(N, {', '.join(map(str, shape))})" for shape in sorted(shapes))
        raise UsageError(
            f"expected images {sizes} uint8, found {images.shape} {images.dtype}",
            "`align` cuts them out of photographs; preprocessed faces go into `embed_tensor`",
        )


def refuse_tensor(file: str, kind: InputKind) -> None:
    """Raise where an engine applies the input contract itself.

    Args:
        file: The engine's name.
        kind: What it takes.

    Raises:
        UsageError: It takes pixels.
    """
    if kind != "tensor":
        raise UsageError(
            f"{file} takes pixels and applies the input contract itself",
            "use `embed`, or build the engine without --input",
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


def make_cpu_session(
    model: bytes,
    name: str,
    threads: int | None = None,
    *,
    optimize: bool = True,
    save_optimized: Path | None = None,
    profile: Path | None = None,
) -> Any:
    """Make an onnxruntime session as the runtime uses them: this process's cores, exact INT8.

    Args:
        model: The serialized model.
        name: What error messages call it.
        threads: None for one per core that this process may use.
        optimize: Whether onnxruntime rewrites the graph.
        save_optimized: Where to write the optimised graph, if anywhere.
        profile: Prefix of the trace file to write while running, if any.

    Returns:
        The `onnxruntime.InferenceSession`.

    Raises:
        ModelError: onnxruntime does not load the model.
    """
    return make_session(
        model,
        name=name,
        threads=threads or cores(),
        optimize=optimize,
        save_optimized=save_optimized,
        profile=profile,
        config={"session.x64quantprecision": "1"} if _overflows() else {},
    )


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
