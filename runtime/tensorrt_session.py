"""The `tensorrt` backend's session: a plan, its buffers and one stream.

Never run on a GPU by this project so far; tests marked `gpu` are there for whoever has one.
"""

import threading
import time
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays import F32
from ..errors import MachineError, UsageError
from .cuda.interface import Buffer, Cuda
from .cuda.open import open_cuda
from .onnxruntime_session import InputBatch, check_faces
from .profile import DeviceTimes, LayerTime
from .trt.builder import load_library, recorder
from .trt.refit import refit

if TYPE_CHECKING:
    import tensorrt


class GpuSession:
    """A `runtime.session.Session` on one GPU; from any thread, one call at a time.

    On a plan that was built `raw` it is a `RawSession`.
    On one without weights, `network` is the ONNX file that brings them.
    A batch size that comes again is recorded as a CUDA graph and replayed, where the CUDA package
    has graphs.
    """

    def __init__(
        self, plan: Path, precision: str, backend: str, network: bytes | None = None
    ) -> None:
        self.backend, self.precision = backend, precision
        self._lock = threading.Lock()
        self._cuda: Cuda | None = open_cuda()
        try:
            with self._cuda.current():
                self._load(load_library(backend), plan, network)
        except BaseException:
            self.close()
            raise

    def _load(self, trt: Any, plan: Path, network: bytes | None) -> None:
        assert self._cuda is not None  # for the type checker: `__init__` opened it
        self._log = log = recorder(trt)
        self._runtime: tensorrt.Runtime = trt.Runtime(log)
        engine: tensorrt.ICudaEngine | None = self._runtime.deserialize_cuda_engine(
            plan.read_bytes()
        )
        if engine is None:
            raise MachineError(
                f"TensorRT cannot load {plan.name}: {' '.join(log.problems)[:400]}",
                f"build it here: `fr-edge build-engine BUNDLE --{self.precision}`",
            )
        if network is not None:
            refit(trt, engine, log, network, plan.name)
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        modes = {engine.get_tensor_mode(name): name for name in names}
        self._face, self._embedding = modes[trt.TensorIOMode.INPUT], modes[trt.TensorIOMode.OUTPUT]
        least, _, most = engine.get_tensor_profile_shape(self._face, 0)
        self._least, self._most = int(least[0]), int(most[0])
        self.largest_batch: int | None = self._most
        self._shape = tuple(int(most[i]) for i in range(1, len(most)))
        self.dim = int(engine.get_tensor_shape(self._embedding)[1])
        self._engine = engine
        context: tensorrt.IExecutionContext | None = engine.create_execution_context()
        if context is None:
            raise MachineError(
                f"the GPU has too little memory to run {plan.name}: {' '.join(log.problems)[:400]}",
                "close other programs, or build with a smaller --batch",
            )
        self._context = context
        self._count = 0
        # Not trt.nptype: TensorRT 8's fails with NumPy 1.24 and later.
        pixels = engine.get_tensor_dtype(self._face) == getattr(trt.DataType, "UINT8", None)
        self._type = np.dtype(np.uint8 if pixels else np.float32)
        self._bytes = self._type.itemsize * prod(self._shape)
        self._faces: Buffer = self._cuda.buffer(self._most * self._bytes)
        self._embeddings: Buffer = self._cuda.buffer(4 * self._most * self.dim)
        self._context.set_tensor_address(self._face, self._faces.address)
        self._context.set_tensor_address(self._embedding, self._embeddings.address)
        self._stream = self._cuda.stream()
        self._graphs: dict[int, Callable[[], None] | None] = {}

    def embed(self, faces: InputBatch) -> F32:
        """`(N, 3, H, W) float32` -> `(N, D) float32`, as the network gives it; N may be 0.

        Raises UsageError for another shape or type, or after `close`.
        """
        with self._lock:
            if self._cuda is None:
                raise UsageError("the session is closed", "open a new one")
            check_faces(faces, self._shape, self._type)
            out = np.empty((len(faces), self.dim), np.float32)
            with self._cuda.current():
                for start in range(0, len(faces), self._most):
                    part = faces[start : start + self._most]
                    self._run(self._cuda, part, out[start : start + len(part)])
            return out

    def _run(self, cuda: Cuda, faces: InputBatch, out: F32) -> None:
        """At most a profile's worth of faces; fewer than its least are filled up with anything."""
        count = max(len(faces), self._least)
        self._faces.array.view(self._type)[: faces.size] = faces.reshape(-1)
        first, launch = count not in self._graphs, self._graphs.get(count)
        if launch is None:
            self._queue(cuda, count)
        else:
            launch()
        cuda.wait(self._stream)
        if first:  # after a plain run: TensorRT sets up what may not be recorded
            self._graphs[count] = cuda.record(self._stream, lambda: self._queue(cuda, count))
        found = self._embeddings.array.view(np.float32)[: out.size]
        out[:] = found.reshape(out.shape)

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

    def split(self, faces: InputBatch) -> DeviceTimes:
        """One run, of at most a profile's worth of faces, in trtexec's terms.

        The three times on the GPU are events' of a run that is queued call by call; `enqueue_ms` is
        what this session does: replaying a CUDA graph where there is one.
        """
        with self._lock:
            if self._cuda is None:
                raise UsageError("the session is closed", "open a new one")
            check_faces(faces, self._shape, self._type)
            cuda, count = self._cuda, max(min(len(faces), self._most), self._least)
            self._faces.array.view(self._type)[: faces[:count].size] = faces[:count].reshape(-1)
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

    def layers(self, faces: InputBatch, runs: int) -> tuple[LayerTime, ...]:
        """TensorRT's own profile, of runs that wait for each layer."""
        times: dict[str, float] = {}
        base: Any = load_library(self.backend).IProfiler

        class Profiler(base):  # type: ignore[misc]
            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times[layer_name] = times.get(layer_name, 0.0) + ms / runs

        with self._lock:
            if self._cuda is None:
                raise UsageError("the session is closed", "open a new one")
            check_faces(faces, self._shape, self._type)
            cuda, count = self._cuda, max(min(len(faces), self._most), self._least)
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
