"""The `tensorrt` backends' session: a plan, its buffers and one stream on a GPU.

This project has not run it on a GPU yet; the tests marked `gpu` do on a machine that has one.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from traceback import clear_frames
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np

from ..arrays import F32, U8
from ..errors import MachineError, UsageError
from ..faces.contract import InputSpec
from .cuda.interface import Buffer, Cuda, open_cuda
from .fingerprint import read_expected
from .frames import align_faces, check_frame, needed_part, unit_length
from .onnxruntime_session import check_images, check_inputs, refuse_tensor
from .profile import DeviceTimes, LayerTime
from .trt.bindings import Inputs, Shape, bind_inputs, tensor_type
from .trt.builder import inspect_engine, load_engine, load_library, open_runtime
from .trt.errors import recorder

if TYPE_CHECKING:
    import tensorrt

logger = logging.getLogger(__name__)

_MAX_GRAPHS = 8  # batch sizes with a graph; each has a context, and with it memory of its own
_MAX_REPLAY_ERROR = 0.01  # of the largest number; kernels may add up in another order

REPLAYED, QUEUED = "CUDA graph", "queued calls"  # how runs are executed, `Session.execution`


@dataclass(eq=False)
class _Context:
    """TensorRT's execution context until the session is closed, and its inputs' shapes now."""

    trt: "tensorrt.IExecutionContext"
    shapes: tuple[Shape, ...] = ()


@dataclass(frozen=True)
class _Replay:
    """A recorded CUDA graph, and the context that has to live as long."""

    context: _Context
    launch: Callable[[], None]


class GpuSession:
    """A `runtime.session.Session` on one GPU; from any thread, one call at a time.

    The first run of a batch size (and frame size) is queued call by call and recorded as a CUDA
    graph, with an execution context of its own as NVIDIA advises. The graph is recorded over another input, and its
    replay on this one must give what the run without it gave. From then on, the first run included,
    all embeddings come from replays. Where the CUDA package has no graphs, memory does not suffice
    for the context, or the replay computes something else, runs are queued call by call.

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
        version_compatible: bool = False,
        dla: int | None = None,
    ) -> None:
        """Load a plan onto the GPU.

        Args:
            path: The plan.
            precision: "fp32", "fp16", "fp8" or "int8".
            backend: "tensorrt" or "tensorrt-rtx".
            spec: The network's input contract.
            file: The file's name for reports; by default that of `path`.
            expected_sha256: Of the plan's bytes; "" accepts any.
            int8_layers: Layers with INT8 weights.
            version_compatible: The plan carries NVIDIA's lean runtime, that is code for the CPU.
                TensorRT may load it only if `expected_sha256` is given, of a plan that the caller
                trusts: one that this user built, or that a trusted key has signed.
            dla: The DLA core that it was built for, None for the GPU.

        Raises:
            BundleError: The plan's sha256 is not the expected one.
            MachineError: There is no GPU, TensorRT refuses the plan, or memory does not suffice.
        """
        self.backend, self.precision, self.artifact = backend, precision, "engine"
        self.file, self._execution = file or path.name, set[str]()
        self.int8_layers, self.int8_in_float = int8_layers, 0
        self._spec, self._lock = spec, threading.Lock()
        plan, self.sha256 = read_expected(path, expected_sha256)
        self._cuda: Cuda | None = open_cuda()
        try:
            with self._cuda.current():
                trusted = version_compatible and bool(expected_sha256)
                self._load(load_library(backend), plan, host_code=trusted, dla=dla)
        except BaseException as error:  # whose frames hold objects of TensorRT: see `close`
            clear_frames(error.__traceback__)
            self.close()
            raise

    def _load(self, trt: Any, plan: bytes, *, host_code: bool, dla: int | None) -> None:
        assert self._cuda is not None  # for the type checker: `__init__` opened it
        self._trt, self._log = trt, recorder(trt)
        if host_code:
            logger.info("%s is version-compatible: the code that it carries is loaded", self.file)
        self._runtime = open_runtime(trt, self._log, host_code=host_code, dla=dla)
        hint = f"build it here: `fr-edge build-engine BUNDLE --{self.precision}`"
        engine = load_engine(trt, self._runtime, self._log, plan, self.file, hint)
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        modes = {engine.get_tensor_mode(name): name for name in names}
        self._embedding = modes[trt.TensorIOMode.OUTPUT]
        tensor_type(trt, engine, self._embedding, self.file)
        self._inputs = bind_inputs(trt, engine, self._cuda, self.file)
        self.input_kind = self._inputs.kind
        self.uint8_input = self.input_kind != "tensor"
        self.largest_batch: int | None = self._inputs.largest_batch
        self.dim, self._engine = int(engine.get_tensor_shape(self._embedding)[1]), engine
        self._embeddings: Buffer = self._cuda.buffer(4 * self._inputs.largest_batch * self.dim)
        self._stream = self._cuda.stream()
        self._contexts: WeakSet[_Context] = WeakSet()
        self._plain: _Context | None = self._new_context()
        self._replays: dict[tuple[Shape, ...], _Replay | None] = {}
        self._records = True

    def _new_context(self) -> "_Context":
        """An execution context of the engine's profile that reads and writes the buffers."""
        context = _Context(self._engine.create_execution_context())
        if context.trt is None:
            raise MachineError(
                f"the GPU has too little memory to run {self.file}: {self._problems()}",
                "close other programs, or build with a smaller --batch",
            )
        self._contexts.add(context)
        # TensorRT 8 gives the profile to the first context only.
        if context.trt.active_optimization_profile != 0:
            done = context.trt.set_optimization_profile_async(0, self._stream)
            self._require(done, "set the optimisation profile")
        # Built with details, so that layers can be inspected; at run time they cost latency.
        context.trt.nvtx_verbosity = self._trt.ProfilingVerbosity.NONE
        buffers = {binding.name: binding.buffer for binding in self._inputs.bindings}
        buffers[self._embedding] = self._embeddings
        for name, buffer in buffers.items():
            self._require(context.trt.set_tensor_address(name, buffer.address), f"bind {name!r}")
        return context

    def _require(self, done: bool, what: str) -> None:
        if not done:
            raise MachineError(
                f"TensorRT could not {what} of {self.file}: {self._problems()}",
                f"build it again on this machine: `fr-edge build-engine BUNDLE --{self.precision}`",
            )

    def _problems(self) -> str:
        return " ".join(self._log.problems)[-400:] or "it gives no reason"

    @property
    def execution(self) -> str:
        """How embeddings were computed so far; see `Session.execution`."""
        return " and ".join(sorted(self._execution))

    def embed(self, images: U8) -> F32:
        """Embed aligned faces; see `Session.embed`."""
        check_images(images, self._spec)
        return self._embed_parts(images, lambda part: self._inputs.of_faces(part, self._spec))

    def embed_frame(self, frame: U8, landmarks: F32) -> F32:
        """Embed faces of a frame; see `Session.embed_frame`."""
        check_frame(frame, landmarks)
        if self.input_kind != "frame":
            return unit_length(self.embed(align_faces(frame, landmarks, self._spec.crop_side)))
        if np.any(np.greater(frame.shape, self._inputs.bindings[0].largest[1:])):
            frame, landmarks = needed_part(frame, landmarks, self._spec.crop_side)
        return self._embed_parts(landmarks, lambda part: self._inputs.of_frame(frame, part))

    def embed_tensor(self, inputs: F32) -> F32:
        """Embed preprocessed faces; see `Session.embed_tensor`."""
        refuse_tensor(self.file, self.input_kind)
        check_inputs(inputs, self._inputs.bindings[-1].largest[1:])
        return self._embed_parts(inputs, lambda part: (part,))

    def _embed_parts(self, faces: F32 | U8, inputs_of: Callable[[Any], Inputs]) -> F32:
        self._require_open()
        rows = [self._embed(inputs_of(part)) for part in self._inputs.split(faces, self._spec)]
        if len(rows) == 1:
            return rows[0]
        return np.concatenate(rows) if rows else np.zeros((0, self.dim), np.float32)

    def _require_open(self) -> Cuda:
        if self._cuda is None:
            raise UsageError("the session is closed", "open a new one")
        return self._cuda

    def _embed(self, arrays: Inputs) -> F32:
        with self._lock:
            cuda = self._require_open()
            self._log.problems.clear()
            out = np.empty((len(arrays[-1]), self.dim), np.float32)
            with cuda.current():
                self._run(cuda, arrays, out)
            return out

    def _run(self, cuda: Cuda, arrays: Inputs, out: F32) -> None:
        """At most the profile's largest batch; below its smallest the rest of the buffer is old data."""
        shapes = self._inputs.write(arrays)
        if replay := self._replays.get(shapes):
            replay.launch()
        else:
            self._queue(cuda, self._plain_context(), shapes)
        cuda.wait(self._stream)
        self._fetch(out)
        if shapes not in self._replays:
            replay = self._record(cuda, shapes)
            if replay or len(self._replays) < _MAX_GRAPHS:
                self._replays[shapes] = replay
            if replay:  # what it computed is in the buffer
                self._fetch(out)
        self._execution.add(REPLAYED if replay else QUEUED)

    def _fetch(self, out: F32) -> None:
        out[:] = self._embeddings.array.view(np.float32)[: out.size].reshape(out.shape)

    def _plain_context(self) -> "_Context":
        if self._plain is None:
            self._plain = self._new_context()
        return self._plain

    def _record(self, cuda: Cuda, shapes: tuple[Shape, ...]) -> "_Replay | None":
        """Record the run that has just been and replay it; None where that is not possible.

        The graph is recorded while the buffer holds another input: one that does not read its input
        anew, or computes nothing, gives other embeddings than the run without it.
        """
        if not self._records or len(self._replays) >= _MAX_GRAPHS:
            return None
        count, size = shapes[-1][0], 4 * shapes[-1][0] * self.dim
        expected = self._embeddings.array[:size].view(np.float32).copy()
        used = self._inputs.used(shapes)
        before = [array.copy() for array in used]
        try:
            context = self._new_context()
            for array in used:
                array[:] = 0
            # A run before: TensorRT sets up what may not be recorded.
            self._queue(cuda, context, shapes)
            cuda.wait(self._stream)
            launch = cuda.record(self._stream, lambda: self._queue(cuda, context, shapes))
        except MachineError as error:
            logger.info("batch %d is queued call by call, not replayed: %s", count, error.message)
            return None
        finally:
            for array, data in zip(used, before, strict=True):
                array[:] = data
        if launch is None:
            self._records = cuda.name != "pycuda"
            return None
        self._embeddings.array[:size] = 0xFF  # not a number
        cuda.push(self._embeddings, size, self._stream)
        launch()
        cuda.wait(self._stream)
        replayed = self._embeddings.array[:size].view(np.float32)
        largest = float(np.abs(expected).max())
        if not np.abs(replayed - expected).max() <= _MAX_REPLAY_ERROR * largest:
            logger.warning(
                "the CUDA graph of batch %d does not compute what the same run computes without it;"
                " runs are queued call by call",
                count,
            )
            self._records = False
            return None
        return _Replay(context, launch)

    def _queue(
        self,
        cuda: Cuda,
        context: "_Context",
        shapes: tuple[Shape, ...],
        mark: Callable[[], None] = lambda: None,
    ) -> None:
        mark()
        bindings = self._inputs.bindings
        for binding, data in zip(bindings, self._inputs.used(shapes), strict=True):
            cuda.push(binding.buffer, data.nbytes, self._stream)
        if context.shapes != shapes:
            for binding, shape in zip(bindings, shapes, strict=True):
                done = context.trt.set_input_shape(binding.name, shape)
                self._require(done, f"set {binding.name!r} to {shape}")
            context.shapes = shapes
        mark()
        self._require(context.trt.execute_async_v3(self._stream), "run the engine")
        mark()
        cuda.pull(self._embeddings, 4 * shapes[-1][0] * self.dim, self._stream)
        mark()

    def device_times(self, images: U8) -> DeviceTimes | None:
        """One run in trtexec's terms; see `Session.device_times`. None where the GPU cannot be asked.

        The three times on the GPU are those of events in a run that is queued call by call;
        `enqueue_ms` is what `embed` does: replaying a CUDA graph where there is one.
        """
        check_images(images, self._spec)
        arrays = self._inputs.of_faces(self._inputs.split(images, self._spec)[0], self._spec)
        with self._lock:
            cuda, shapes = self._require_open(), self._inputs.write(arrays)
            replay = self._replays.get(shapes)
            with cuda.current():
                plain = self._plain_context()
                marks: list[Any] = []
                try:
                    self._queue(cuda, plain, shapes, lambda: marks.append(cuda.mark(self._stream)))
                    cuda.wait(self._stream)
                    sent, computed, fetched = map(cuda.elapsed_ms, marks, marks[1:])
                except MachineError as error:
                    logger.warning("times on the GPU are not measured: %s", error.message)
                    return None
                start = time.perf_counter_ns()
                (replay.launch if replay else partial(self._queue, cuda, plain, shapes))()
                queued = time.perf_counter_ns() - start
                cuda.wait(self._stream)
            return DeviceTimes(queued / 1e6, sent, computed, fetched, replay is not None)

    def layer_table(self) -> str:
        """TensorRT's own table of the engine's layers, JSON (`trt.layers.layers_in_json`)."""
        with self._lock, self._require_open().current():
            return inspect_engine(self._trt, self._engine)

    def layer_times(self, images: U8, runs: int) -> tuple[LayerTime, ...]:
        """TensorRT's own profile, of runs that wait for each layer, or (); see `Session.layer_times`."""
        check_images(images, self._spec)
        times: dict[str, float] = {}
        base: Any = load_library(self.backend).IProfiler

        class Profiler(base):  # type: ignore[misc]
            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times[layer_name] = times.get(layer_name, 0.0) + ms / runs

        arrays = self._inputs.of_faces(self._inputs.split(images, self._spec)[0], self._spec)
        with self._lock:
            cuda, shapes = self._require_open(), self._inputs.write(arrays)
            profiler = Profiler()  # outlives the context, which holds no reference to it
            with cuda.current():
                try:
                    self._profile(cuda, shapes, runs, profiler)
                except MachineError as error:
                    logger.warning("layers are not profiled: %s", error.message)
                    return ()
            rows = [LayerTime(name, "", ms) for name, ms in times.items()]
        return tuple(sorted(rows, key=lambda row: -row.ms))

    def _profile(self, cuda: Cuda, shapes: tuple[Shape, ...], runs: int, profiler: Any) -> None:
        """Run in a context of its own: a profiler, once set, slows every later run."""
        context = None
        with suppress(MachineError):
            context = self._new_context()
        if context is None:  # of TensorRT 8, whose profile serves one context at a time
            self._replays.clear()
            self._plain = None
            context = self._new_context()
        self._queue(cuda, context, shapes)
        cuda.wait(self._stream)
        context.trt.profiler = profiler
        for _ in range(runs):
            self._queue(cuda, context, shapes)
            cuda.wait(self._stream)

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
                # Before the GPU's context, in this order; an error's frames may hold contexts still.
                for context in vars(self).get("_contexts", ()):
                    del context.trt
                for name in ("_replays", "_plain", "_engine", "_runtime"):
                    vars(self).pop(name, None)
            cuda.close()
