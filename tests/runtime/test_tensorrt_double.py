"""The TensorRT session against doubles of TensorRT and CUDA: shapes, batches, graphs, closing.

The doubles compute on the host. They show what is called with which bytes; speed, fusion and
numbers of a GPU are tested by test_tensorrt_session.py where there is one.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

import numpy as np
import pytest

from fr_edge.errors import BundleError, MachineError, UsageError
from fr_edge.faces.contract import InputSpec, preprocess
from fr_edge.runtime import tensorrt_session
from fr_edge.runtime.cuda.interface import Buffer
from fr_edge.runtime.tensorrt_session import GpuSession

DIM, MIN, MAX = 4, 2, 3
SPEC = InputSpec(height=16, width=16)


class CudaDouble:
    """Host memory as a device that shares it; work runs when it is queued."""

    name = "double"

    def __init__(self, *, graphs: bool) -> None:
        self.buffers: dict[int, np.ndarray] = {}
        self.graphs, self.closed, self.replays, self.clock = graphs, 0, 0, 0.0
        self.replays_compute, self.times_events = True, True
        self.engine: Any = None

    @contextmanager
    def current(self) -> Iterator[None]:
        yield

    def buffer(self, size: int) -> Buffer:
        array = np.zeros(size, np.uint8)
        self.buffers[len(self.buffers)] = array
        return Buffer(array, len(self.buffers) - 1, True, ())

    def stream(self) -> int:
        return 7

    def push(self, buffer: Buffer, size: int, stream: int) -> None:
        assert size <= len(buffer.array)

    pull = push

    def mark(self, stream: int) -> float:
        self.clock += 1.0
        return self.clock

    def elapsed_ms(self, first: float, second: float) -> float:
        if not self.times_events:
            raise MachineError("cuEventElapsedTime is missing")
        return second - first

    def wait(self, stream: int) -> None:
        assert stream == 7

    def record(self, stream: int, work: Callable[[], None]) -> Callable[[], None] | None:
        if not self.graphs:
            return None

        def launch() -> None:
            self.replays += 1
            if self.replays_compute:
                work()

        return launch

    def close(self) -> None:
        self.closed += 1


class EngineDouble:
    """An engine that gives each face's first four numbers, doubled."""

    num_io_tensors = 2

    def __init__(self, cuda: CudaDouble, *, uint8: bool) -> None:
        self.cuda, self.uint8 = cuda, uint8
        self.shape = (112, 112, 3) if uint8 else SPEC.shape
        self.contexts: WeakSet[ContextDouble] = WeakSet()
        self.made: list[int] = []  # batch sizes that each context ran, by its number
        self.max_contexts, self.refuses = 100, ""

    def get_tensor_name(self, index: int) -> str:
        return ("face", "embedding")[index]

    def get_tensor_mode(self, name: str) -> str:
        return {"face": "in", "embedding": "out"}[name]

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        return [(count, *self.shape) for count in (MIN, MIN, MAX)]

    def get_tensor_shape(self, name: str) -> tuple[int, int]:
        return (-1, DIM)

    def get_tensor_dtype(self, name: str) -> str:
        return "uint8" if self.uint8 else "float"

    def create_execution_context(self) -> "ContextDouble":
        return ContextDouble(self)


class ContextDouble:
    """Runs the engine on the bytes that its input address holds.

    As in TensorRT 8, the first context has profile 0; others must ask for it, and get it as long as
    the engine's `max_contexts` are not there.
    """

    profiler: Any = None
    nvtx_verbosity = "detailed"

    def __init__(self, engine: EngineDouble) -> None:
        self.engine = engine
        self.at: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        used = any(c.active_optimization_profile == 0 for c in engine.contexts)
        self.active_optimization_profile = -1 if used else 0
        engine.contexts.add(self)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert (index, stream) == (0, 7)
        users = [c for c in self.engine.contexts if c.active_optimization_profile == 0]
        if len(users) >= self.engine.max_contexts:
            return False
        self.active_optimization_profile = 0
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.at[name] = address
        return self.engine.refuses != "address"

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert MIN <= shape[0] <= MAX
        self.shape = shape
        return self.engine.refuses != "shape"

    def execute_async_v3(self, stream: int) -> bool:
        assert self.active_optimization_profile == 0
        assert self.nvtx_verbosity == "none"
        self.engine.made.append(self.shape[0])
        if self.engine.refuses == "run":
            return False
        buffers, dtype = self.engine.cuda.buffers, np.uint8 if self.engine.uint8 else np.float32
        count, size = self.shape[0], int(np.prod(self.shape))
        faces = buffers[self.at["face"]].view(dtype)[:size].reshape(count, -1)
        out = buffers[self.at["embedding"]].view(np.float32)[: count * DIM]
        out[:] = (2 * faces[:, :DIM].astype(np.float32)).reshape(-1)
        if self.profiler is not None:
            self.profiler.report_layer_time("conv", 2.0)
            self.profiler.report_layer_time("gemm", 0.5)
        return True


Open = Callable[..., tuple[GpuSession, CudaDouble]]


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """`opened(uint8=False, graphs=True)`: a session on the doubles, and its CUDA."""

    def make(*, uint8: bool = False, graphs: bool = True) -> tuple[GpuSession, CudaDouble]:
        cuda = CudaDouble(graphs=graphs)
        engine = EngineDouble(cuda, uint8=uint8)
        trt = SimpleNamespace(
            ILogger=type("ILogger", (), {"__init__": lambda self: None}),
            IProfiler=type("IProfiler", (), {}),
            Runtime=lambda log: SimpleNamespace(
                deserialize_cuda_engine=lambda data: engine if data == b"plan" else None
            ),
            ProfilingVerbosity=SimpleNamespace(NONE="none"),
            TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
            DataType=SimpleNamespace(UINT8="uint8"),
        )
        monkeypatch.setattr(tensorrt_session, "open_cuda", lambda: cuda)
        monkeypatch.setattr(tensorrt_session, "load_library", lambda backend: trt)
        (tmp_path / "e.plan").write_bytes(b"plan")
        session = GpuSession(tmp_path / "e.plan", "int8", "tensorrt", SPEC, int8_layers=3)
        cuda.engine = engine
        return session, cuda

    return make


def _images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 112, 112, 3), np.uint8)


def _expected(images: np.ndarray, *, uint8: bool) -> np.ndarray:
    faces = images if uint8 else preprocess(images, SPEC)
    flat = faces.reshape(len(faces), int(np.prod(faces.shape[1:])))
    return 2 * flat[:, :DIM].astype(np.float32)


@pytest.mark.parametrize("uint8", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 8])
def test_batches_of_any_size(opened: Open, count: int, uint8: bool) -> None:
    session, _ = opened(uint8=uint8)
    assert (session.uint8_input, session.dim, session.largest_batch) == (uint8, DIM, MAX)
    for _ in range(2):
        result = session.embed(_images(count))
        assert result.shape == (count, DIM)
        assert np.array_equal(result, _expected(_images(count), uint8=uint8))


def test_a_batch_size_that_comes_again_is_replayed(opened: Open) -> None:
    session, cuda = opened()
    for _ in range(4):
        session.embed(_images(3))
    assert cuda.replays == 1 + 3  # the first is compared with the plain run
    plain, without = opened(graphs=False)
    for _ in range(4):
        assert np.array_equal(plain.embed(_images(3)), _expected(_images(3), uint8=False))
    assert without.replays == 0


def test_tensors_and_pixels(opened: Open) -> None:
    session, _ = opened()
    inputs = preprocess(_images(5), SPEC)
    assert np.array_equal(session.embed_tensor(inputs), _expected(_images(5), uint8=False))
    with pytest.raises(UsageError, match=r"expected inputs \(N, 3, 16, 16\) float32"):
        session.embed_tensor(inputs.astype(np.float64))
    with pytest.raises(UsageError, match=r"expected images \(N, 112, 112, 3\) uint8"):
        session.embed(inputs)  # type: ignore[arg-type]
    pixels, _ = opened(uint8=True)
    with pytest.raises(UsageError, match=r"e\.plan takes pixels"):
        pixels.embed_tensor(inputs)


def test_where_the_time_goes(opened: Open) -> None:
    session, _ = opened()
    times = session.device_times(_images(5))  # of which the first three run
    assert (times.h2d_ms, times.compute_ms, times.d2h_ms) == (1.0, 1.0, 1.0)
    assert not times.graph
    before = session.embed(_images(3))
    assert session.device_times(_images(3)).graph
    layers = session.layer_times(_images(1), runs=4)
    assert [(layer.name, layer.ms) for layer in layers] == [("conv", 2.0), ("gemm", 0.5)]
    assert np.array_equal(session.embed(_images(3)), before)


def test_each_graph_has_a_context_of_its_own(opened: Open) -> None:
    session, cuda = opened()
    for count in (2, 3, 2, 3):
        session.embed(_images(count))
    assert len(cuda.engine.contexts) == 1 + 2  # the one that queues call by call, and two graphs
    before = cuda.replays
    for seed, count in ((5, 2), (6, 3), (7, 2)):
        images = np.random.default_rng(seed).integers(0, 256, (count, 112, 112, 3), np.uint8)
        assert np.array_equal(session.embed(images), _expected(images, uint8=False))
    assert cuda.replays == before + 3


def test_replays_that_compute_nothing_are_not_used(opened: Open, caplog: Any) -> None:
    session, cuda = opened()
    cuda.replays_compute = False
    for seed in range(3):
        images = np.random.default_rng(seed).integers(0, 256, (3, 112, 112, 3), np.uint8)
        assert np.array_equal(session.embed(images), _expected(images, uint8=False))
    assert cuda.replays == 1
    assert "graph of batch 3 does not compute what the same run computes" in caplog.text
    assert not session.device_times(_images(3)).graph


def test_a_profile_that_serves_one_context(opened: Open) -> None:
    """TensorRT 8.6 without shared profiles: no graphs, and layers are profiled all the same."""
    session, cuda = opened()
    cuda.engine.max_contexts = 1
    for _ in range(3):
        assert np.array_equal(session.embed(_images(3)), _expected(_images(3), uint8=False))
    assert cuda.replays == 0
    assert len(session.layer_times(_images(3), runs=2)) == 2
    assert np.array_equal(session.embed(_images(3)), _expected(_images(3), uint8=False))


@pytest.mark.parametrize(
    ("refuses", "message"),
    [("shape", "set the batch to 3"), ("address", "bind 'face'"), ("run", "run the engine")],
)
def test_what_tensorrt_refuses_is_not_ignored(opened: Open, refuses: str, message: str) -> None:
    session, cuda = opened()
    session.layer_times(_images(3), runs=1)
    cuda.engine.refuses = refuses
    if refuses == "address":
        assert session.layer_times(_images(3), runs=1) == ()
        session._plain = None
    with pytest.raises(MachineError, match=f"TensorRT could not {message} of e.plan"):
        session.embed(_images(3))


def test_times_that_the_driver_does_not_give_cost_no_run(opened: Open, caplog: Any) -> None:
    session, cuda = opened()
    cuda.times_events = False
    assert session.device_times(_images(3)) is None
    assert "not measured: cuEventElapsedTime is missing" in caplog.text
    assert np.array_equal(session.embed(_images(3)), _expected(_images(3), uint8=False))


def test_code_in_a_plan_is_loaded_from_a_trusted_bundle_only(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, cuda = opened()
    allowed: list[bool] = []

    def runtime(trt: Any, log: Any, *, host_code: bool, dla: int | None) -> Any:
        allowed.append(host_code)
        return SimpleNamespace(deserialize_cuda_engine=lambda data: cuda.engine)

    monkeypatch.setattr(tensorrt_session, "open_runtime", runtime)
    for compatible, digest in ((True, session.sha256), (True, ""), (False, session.sha256)):
        GpuSession(
            tmp_path / "e.plan", "int8", "tensorrt", SPEC,
            expected_sha256=digest, version_compatible=compatible,
        ).close()  # fmt: skip
    assert allowed == [True, False, False]


def test_what_it_opened_and_closing(opened: Open, tmp_path: Path) -> None:
    with opened()[0] as session:
        assert (session.backend, session.precision, session.artifact) == (
            *("tensorrt", "int8", "engine"),
        )
        assert (session.file, session.sha256) == ("e.plan", hashlib.sha256(b"plan").hexdigest())
        assert (session.int8_layers, session.int8_in_float) == (3, 0)
    session.close()
    for call in (session.embed, session.device_times):
        with pytest.raises(UsageError, match="closed"):
            call(_images(1))
    (tmp_path / "e.plan").write_bytes(b"other")
    with pytest.raises(BundleError, match="was changed"):
        GpuSession(tmp_path / "e.plan", "int8", "tensorrt", SPEC, expected_sha256=session.sha256)
    with pytest.raises(MachineError, match=r"TensorRT cannot load e\.plan"):
        GpuSession(tmp_path / "e.plan", "int8", "tensorrt", SPEC)
