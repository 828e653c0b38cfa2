"""The `tensorrt` backends' session: a plan, its buffers and one stream on a GPU.

This project has not run it on a GPU yet; the tests marked `gpu` do on a machine that has one.
"""

import threading
import time
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays import F32, U8
from ..errors import MachineError, UsageError
from ..faces.contract import InputSpec, preprocess
from .cuda.interface import Buffer, Cuda, open_cuda
from .fingerprint import read_expected
from .onnxruntime_session import check_images, check_inputs
from .profile import DeviceTimes, LayerTime
from .trt.builder import load_library, recorder

if TYPE_CHECKING:
    import tensorrt


class GpuSession:
    """A `runtime.session.Session` on one GPU; from any thread, one call at a time.

    A batch size that comes again is recorded as a CUDA graph and replayed, where the CUDA package
    has graphs.

    Attributes: those of `Session`.
    """

    def __init__(
        self,
        path: Path,
        precision: str,
        backend: str,
        spec: InputSpec,
        *,
        file: str = "",
        expected_sha256: str = "",
        int8_layers: int = 0,
    ) -> None:
        """Load a plan onto the GPU.

        Args:
            path: The plan.
            precision: "fp32", "fp16" or "int8".
            backend: "tensorrt" or "tensorrt-rtx".
            spec: The network's input contract.
            file: The file's name for reports; by default that of `path`.
            expected_sha256: Of the plan's bytes; "" accepts any.
            int8_layers: Layers with INT8 weights.

        Raises:
            BundleError: The plan's sha256 is not the expected one.
            MachineError: There is no GPU, TensorRT refuses the plan, or memory does not suffice.
        """
        self.backend, self.precision, self.artifact = backend, precision, "engine"
        self.file = file or path.name
        self.int8_layers, self.int8_in_float = int8_layers, 0
        self._spec = spec
        self._lock = threading.Lock()
        plan, self.sha256 = read_expected(path, expected_sha256)
        self._cuda: Cuda | None = open_cuda()
        try:
            with self._cuda.current():
                self._load(load_library(backend), plan)
        except BaseException:
            self.close()
            raise

    def _load(self, trt: Any, plan: bytes) -> None:
        assert self._cuda is not None  # for the type checker: `__init__` opened it
        self._log = log = recorder(trt)
        self._runtime: tensorrt.Runtime = trt.Runtime(log)
        engine: tensorrt.ICudaEngine | None = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise MachineError(
                f"TensorRT cannot load {self.file}: {' '.join(log.problems)[:400]}",
                f"build it here: `fr-edge build-engine BUNDLE --{self.precision}`",
            )
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        modes = {engine.get_tensor_mode(name): name for name in names}
        self._face, self._embedding = modes[trt.TensorIOMode.INPUT], modes[trt.TensorIOMode.OUTPUT]
        smallest, _, largest = engine.get_tensor_profile_shape(self._face, 0)
        self._min, self._max = int(smallest[0]), int(largest[0])
        self.largest_batch: int | None = self._max
        self._shape = tuple(int(largest[i]) for i in range(1, len(largest)))
        self.dim = int(engine.get_tensor_shape(self._embedding)[1])
        self._engine = engine
        context: tensorrt.IExecutionContext | None = engine.create_execution_context()
        if context is None:
            raise MachineError(
                f"the GPU has too little memory to run {self.file}: {' '.join(log.problems)[:400]}",
                "close other programs, or build with a smaller --batch",
            )
        self._context = context
        self._count = 0
        # Not trt.nptype: TensorRT 8's fails with NumPy 1.24 and later.
        uint8 = getattr(trt.DataType, "UINT8", None)
        self.uint8_input = engine.get_tensor_dtype(self._face) == uint8
        self._type = np.dtype(np.uint8 if self.uint8_input else np.float32)
        self._bytes = self._type.itemsize * prod(self._shape)
        self._faces: Buffer = self._cuda.buffer(self._max * self._bytes)
        self._embeddings: Buffer = self._cuda.buffer(4 * self._max * self.dim)
        self._context.set_tensor_address(self._face, self._faces.address)
        self._context.set_tensor_address(self._embedding, self._embeddings.address)
        self._stream = self._cuda.stream()
        self._graphs: dict[int, Callable[[], None] | None] = {}

    def embed(self, images: U8) -> F32:
        """Embed aligned faces; see `Session.embed`."""
        check_images(images)
        if self.uint8_input:
            return self._embed(images)
        parts = [
            self._embed(preprocess(images[start : start + self._max], self._spec))
            for start in range(0, max(1, len(images)), self._max)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def embed_tensor(self, inputs: F32) -> F32:
        """Embed preprocessed faces; see `Session.embed_tensor`."""
        if self.uint8_input:
            raise UsageError(
                f"{self.file} takes pixels and applies the input contract itself",
                "use `embed`, or build the engine without --uint8-input",
            )
        check_inputs(inputs, self._shape)
        return self._embed(inputs)

    def _embed(self, faces: F32 | U8) -> F32:
        with self._lock:
            if self._cuda is None:
                raise UsageError("the session is closed", "open a new one")
            out = np.empty((len(faces), self.dim), np.float32)
            with self._cuda.current():
                for start in range(0, len(faces), self._max):
                    part = faces[start : start + self._max]
                    self._run(self._cuda, part, out[start : start + len(part)])
            return out

    def _run(self, cuda: Cuda, faces: F32 | U8, out: F32) -> None:
        """At most the profile's largest batch; below its smallest the rest of the buffer is old data."""
        count = max(len(faces), self._min)
        self._faces.array.view(self._type)[: faces.size] = faces.reshape(-1)
        first, launch = count not in self._graphs, self._graphs.get(count)
        if launch is None:
            self._queue(cuda, count)
        else:
            launch()
        cuda.wait(self._stream)
        if first:  # after a plain run: TensorRT sets up what may not be recorded
            self._graphs[count] = cuda.record(self._stream, lambda: self._queue(cuda, count))
        out[:] = self._embeddings.array.view(np.float32)[: out.size].reshape(out.shape)

    def _queue(self, cuda: Cuda, count: int, mark: Callable[[], None] = lambda: None) -> None:
        mark()
        cuda.push(self._faces, count * self._bytes, self._stream)
        if self._count != count:
            self._context.set_input_shape(self._face, (count, *self._shape))
            self._count = count
        mark()
        if not self._context.execute_async_v3(self._stream):
            raise MachineError(
                "TensorRT could not run the engine", "build it again on this machine"
            )
        mark()
        cuda.pull(self._embeddings, 4 * count * self.dim, self._stream)
        mark()

    def device_times(self, images: U8) -> DeviceTimes:
        """One run in trtexec's terms; see `Session.device_times`.

        The three times on the GPU are those of events in a run that is queued call by call;
        `enqueue_ms` is what `embed` does: replaying a CUDA graph where there is one.
        """
        check_images(images)
        images = images[: self._max]
        faces = images if self.uint8_input else preprocess(images, self._spec)
        with self._lock:
            if self._cuda is None:
                raise UsageError("the session is closed", "open a new one")
            cuda, count = self._cuda, max(len(faces), self._min)
            self._faces.array.view(self._type)[: faces.size] = faces.reshape(-1)
            with cuda.current():
                marks: list[Any] = []
                self._queue(cuda, count, lambda: marks.append(cuda.mark(self._stream)))
                cuda.wait(self._stream)
                sent, computed, fetched = map(cuda.elapsed_ms, marks, marks[1:])
                start = time.perf_counter_ns()
                (self._graphs.get(count) or partial(self._queue, cuda, count))()
                queued = time.perf_counter_ns() - start
                cuda.wait(self._stream)
            return DeviceTimes(queued / 1e6, sent, computed, fetched, bool(self._graphs.get(count)))

    def layer_times(self, images: U8, runs: int) -> tuple[LayerTime, ...]:
        """TensorRT's own profile, of runs that wait for each layer; see `Session.layer_times`."""
        check_images(images)
        times: dict[str, float] = {}
        base: Any = load_library(self.backend).IProfiler

        class Profiler(base):  # type: ignore[misc]
            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times[layer_name] = times.get(layer_name, 0.0) + ms / runs

        with self._lock:
            if self._cuda is None:
                raise UsageError("the session is closed", "open a new one")
            cuda, count = self._cuda, max(min(len(images), self._max), self._min)
            plain = self._context
            with cuda.current():
                # A context of its own: a profiler, once set, slows every later run.
                self._context, self._count = self._engine.create_execution_context(), 0
                try:
                    self._context.set_tensor_address(self._face, self._faces.address)
                    self._context.set_tensor_address(self._embedding, self._embeddings.address)
                    self._queue(cuda, count)
                    cuda.wait(self._stream)
                    self._context.profiler = profiler = Profiler()
                    for _ in range(runs):
                        self._queue(cuda, count)
                        cuda.wait(self._stream)
                finally:
                    self._context, self._count = plain, 0
            del profiler  # it had to live until here
            rows = [LayerTime(name, "", ms) for name, ms in times.items()]
        return tuple(sorted(rows, key=lambda row: -row.ms))

    def __enter__(self) -> "GpuSession":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the engine and its memory; closing twice does nothing."""
        with self._lock:
            cuda, self._cuda = self._cuda, None
            if cuda is None:
                return
            with cuda.current():
                for name in ("_context", "_engine", "_runtime"):  # TensorRT wants this order
                    vars(self).pop(name, None)
            cuda.close()
