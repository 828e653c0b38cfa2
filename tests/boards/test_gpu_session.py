"""The TensorRT session on the doubles of TensorRT and CUDA: shapes, batches, graphs, closing.

They show what is called with which bytes; speed, fusion and numbers of a GPU are tested by
test_tensorrt_session.py where there is one.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cuda_double import CudaDouble
from networks import write_network
from pretend import PretendBoard
from tensorrt_double import TensorRTDouble
from tiny_network import write_tiny_bundle

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.bundle.golden import read_golden
from fr_edge.errors import BundleError, MachineError, UsageError
from fr_edge.faces.contract import InputSpec, preprocess
from fr_edge.graph.frame_input import with_frame_input
from fr_edge.graph.uint8_input import UINT8_SHAPE, with_uint8_input
from fr_edge.runtime import tensorrt_session
from fr_edge.runtime.build import build_engine
from fr_edge.runtime.engine_record import session_record
from fr_edge.runtime.frames import draw_frame, tile_faces
from fr_edge.runtime.session import open_session
from fr_edge.runtime.tensorrt_session import GpuSession
from fr_edge.runtime.trt import config
from fr_edge.runtime.trt.builder import compile_plan
from fr_edge.runtime.trt.config import EngineOptions

DIM, MIN, MAX = 5, 2, 3
SPEC = InputSpec(height=16, width=16)


class Opened:
    """A session, and the doubles under it."""

    def __init__(self, trt: TensorRTDouble, cuda: CudaDouble, model: onnx.ModelProto) -> None:
        self.trt, self.cuda = trt, cuda
        self.graph = onnx.ModelProto()
        self.graph.CopyFrom(model)
        self.session: Any = None

    def expected(self, images: np.ndarray, *, uint8: bool) -> np.ndarray:
        """What onnxruntime computes of the same network."""
        import onnxruntime as ort

        faces = images if uint8 else preprocess(images, SPEC)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        data = self.graph.SerializeToString()
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        if not len(faces):
            return np.zeros((0, DIM), np.float32)
        return np.asarray(session.run(None, {session.get_inputs()[0].name: faces})[0])


Open = Callable[..., Opened]


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Any) -> Open:
    """`opened(uint8=False, graphs=True, version="10.3.0")`: a session on the doubles."""

    def make(*, uint8: bool = False, graphs: bool = True, version: str = "10.3.0") -> Opened:
        trt, cuda = TensorRTDouble(version), CudaDouble(graphs=graphs)
        model = tiny()
        if uint8:  # takes faces of 112 pixels only
            network = write_network(tmp_path / "wide.onnx", dim=DIM, batch="batch")
            model = with_uint8_input(onnx.load(network), InputSpec())
        board = Opened(trt, cuda, model)
        shape = UINT8_SHAPE if uint8 else SPEC.shape
        options = EngineOptions(batch=(MIN, MIN, MAX), input_kind="crop" if uint8 else "tensor")
        data = model.SerializeToString()
        plan = compile_plan(trt.module, data, shape, "fp32", options).plan
        trt.transcript.clear()
        monkeypatch.setattr(tensorrt_session, "open_cuda", lambda: cuda)
        monkeypatch.setattr(tensorrt_session, "load_library", lambda backend: trt.module)
        (tmp_path / "e.plan").write_bytes(plan)
        board.session = GpuSession(tmp_path / "e.plan", "int8", "tensorrt", SPEC, int8_layers=3)
        return board

    return make


def _images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 112, 112, 3), np.uint8)


def _near(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-4, atol=1e-5))


@pytest.mark.parametrize("uint8", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 8])
def test_batches_of_any_size(opened: Open, count: int, uint8: bool) -> None:
    board = opened(uint8=uint8)
    session = board.session
    assert (session.uint8_input, session.dim, session.largest_batch) == (uint8, DIM, MAX)
    for _ in range(2):
        result = session.embed(_images(count))
        assert result.shape == (count, DIM)
        assert _near(result, board.expected(_images(count), uint8=uint8))


def test_a_batch_size_that_comes_again_is_replayed(opened: Open) -> None:
    board = opened()
    for _ in range(4):
        board.session.embed(_images(3))
    assert board.cuda.replays == 1 + 3  # the first is compared with the plain run
    plain = opened(graphs=False)
    for _ in range(4):
        expected = plain.expected(_images(3), uint8=False)
        assert _near(plain.session.embed(_images(3)), expected)
    assert plain.cuda.replays == 0


def test_a_graph_that_keeps_the_input_it_was_recorded_with_is_not_used(opened: Open) -> None:
    board = opened()
    board.cuda.reads_input = False
    for seed in range(3):
        images = _images(3, seed)
        assert _near(board.session.embed(images), board.expected(images, uint8=False))
    assert (board.cuda.replays, board.session.execution) == (1, "queued calls")


def test_the_first_embeddings_are_the_replays_too(opened: Open) -> None:
    board = opened()
    board.cuda.replay_factor = np.float32(1 + 2**-9)
    first = board.session.embed(_images(3))
    assert np.array_equal(first, board.session.embed(_images(3)))
    assert np.allclose(first, board.expected(_images(3), uint8=False) * (1 + 2**-9), 1e-5, 1e-6)


def test_black_faces_do_not_hide_a_graph_that_computes_nothing(opened: Open) -> None:
    """The graph is recorded over zeros, which black pixels are too."""
    board = opened(uint8=True)
    board.cuda.replays_compute = False
    black = np.zeros((3, 112, 112, 3), np.uint8)
    assert _near(board.session.embed(black), board.expected(black, uint8=True))
    assert board.session.execution == "queued calls"


def test_it_knows_how_embeddings_were_computed(opened: Open) -> None:
    session = opened().session
    assert session.execution == ""
    session.embed(_images(3))  # the first run of a batch size is a replay already
    assert session.execution == "CUDA graph"
    session._records = False
    session.embed(_images(2))
    assert session.execution == "CUDA graph and queued calls"
    plain = opened(graphs=False).session
    plain.embed(_images(3))
    assert plain.execution == "queued calls"


def test_tensors_and_pixels(opened: Open) -> None:
    board = opened()
    inputs = preprocess(_images(5), SPEC)
    expected = board.expected(_images(5), uint8=False)
    assert _near(board.session.embed_tensor(inputs), expected)
    with pytest.raises(UsageError, match=r"expected inputs \(N, 3, 16, 16\) float32"):
        board.session.embed_tensor(inputs.astype(np.float64))
    with pytest.raises(UsageError, match=r"expected images \(N, 112, 112, 3\) uint8"):
        board.session.embed(inputs)
    pixels = opened(uint8=True)
    with pytest.raises(UsageError, match=r"e\.plan takes pixels"):
        pixels.session.embed_tensor(inputs)


def test_where_the_time_goes(opened: Open) -> None:
    session = opened().session
    times = session.device_times(_images(5))  # of which the first three run
    assert (times.h2d_ms, times.compute_ms, times.d2h_ms) == (1.0, 1.0, 1.0)
    assert not times.graph
    before = session.embed(_images(3))
    assert session.device_times(_images(3)).graph
    layers = session.layer_times(_images(1), runs=4)
    assert [(layer.name, layer.ms) for layer in layers[:2]] == [("c1", 0.5), ("c2", 0.25)]
    assert np.array_equal(session.embed(_images(3)), before)


def test_a_profiler_slows_no_run_but_its_own(opened: Open) -> None:
    board = opened()
    for _ in range(2):
        board.session.embed(_images(3))
    board.session.layer_times(_images(3), runs=2)
    made = len(board.trt.called("ICudaEngine.create_execution_context"))
    assert made == 3  # runs that are queued, the graph, and the profile
    assert board.trt.called("IExecutionContext.profiler =") == [
        "IExecutionContext.profiler = Profiler  of context 3"
    ]


def test_each_graph_has_a_context_of_its_own(opened: Open) -> None:
    board = opened()
    for count in (2, 3, 2, 3):
        board.session.embed(_images(count))
    # The one that queues call by call, and two graphs.
    assert len(board.trt.called("ICudaEngine.create_execution_context")) == 1 + 2
    before = board.cuda.replays
    for seed, count in ((5, 2), (6, 3), (7, 2)):
        images = _images(count, seed)
        assert _near(board.session.embed(images), board.expected(images, uint8=False))
    assert board.cuda.replays == before + 3


def test_replays_that_compute_nothing_are_not_used(opened: Open, caplog: Any) -> None:
    board = opened()
    board.cuda.replays_compute = False
    for seed in range(3):
        images = _images(3, seed)
        assert _near(board.session.embed(images), board.expected(images, uint8=False))
    assert board.cuda.replays == 1
    assert "graph of batch 3 does not compute what the same run computes" in caplog.text
    assert not board.session.device_times(_images(3)).graph


def test_a_profile_that_serves_one_context(opened: Open, monkeypatch: Any) -> None:
    """TensorRT 8.6 without shared profiles: no graphs, and layers are profiled all the same."""
    monkeypatch.setattr(config, "_share_profile", lambda trt, config: None)
    board = opened(version="8.6.1")
    expected = board.expected(_images(3), uint8=False)
    for _ in range(3):
        assert _near(board.session.embed(_images(3)), expected)
    assert board.cuda.replays == 0
    assert len(board.session.layer_times(_images(3), runs=2)) == 7
    assert _near(board.session.embed(_images(3)), expected)


def test_a_shared_profile_of_8_6_serves_graphs(opened: Open) -> None:
    board = opened(version="8.6.1")
    for _ in range(3):
        board.session.embed(_images(3))
    assert board.cuda.replays == 3
    assert len(board.trt.called("IExecutionContext.set_optimization_profile_async")) == 1


@pytest.mark.parametrize(
    ("refuses", "message"),
    [
        ("set_input_shape", r"set 'face' to \(3, 3, 16, 16\)"),
        ("set_tensor_address", "bind 'face'"),
        ("execute_async_v3", "run the engine"),
    ],
)
def test_what_tensorrt_refuses_is_not_ignored(opened: Open, refuses: str, message: str) -> None:
    board = opened()
    board.session.layer_times(_images(3), runs=1)
    board.trt.refuses = {f"IExecutionContext.{refuses}"}
    if refuses == "set_tensor_address":
        assert board.session.layer_times(_images(3), runs=1) == ()
        board.session._plain = None
    with pytest.raises(MachineError, match=f"TensorRT could not {message} of e.plan"):
        board.session.embed(_images(3))


def test_no_memory_for_a_context(opened: Open, tmp_path: Path) -> None:
    board = opened()
    board.trt.contexts = 1  # that of the runs; none for a graph
    for _ in range(3):
        expected = board.expected(_images(3), uint8=False)
        assert _near(board.session.embed(_images(3)), expected)
    assert board.cuda.replays == 0
    board.trt.contexts = 0
    alive: list[dict[str, int]] = []
    board.cuda.before_close = lambda: alive.append(board.trt.alive())
    with pytest.raises(MachineError, match=r"too little memory to run e.plan: .*out of memory"):
        GpuSession(tmp_path / "e.plan", "int8", "tensorrt", SPEC)
    assert board.cuda.closed == 1
    # Those of the first session: an error's frames keep nothing beyond the GPU's context.
    assert alive == [{"Runtime": 1, "ICudaEngine": 1, "IExecutionContext": 1}]


@pytest.mark.parametrize("refuses", ["execute_async_v3", "set_tensor_address"])
def test_nothing_of_tensorrt_outlives_the_gpus_context(opened: Open, refuses: str) -> None:
    board = opened()
    board.session.embed(_images(2))
    board.trt.refuses = {f"IExecutionContext.{refuses}"}
    alive: list[dict[str, int]] = []
    board.cuda.before_close = lambda: alive.append(board.trt.alive())
    board.session._plain = None
    with pytest.raises(MachineError) as error, board.session:
        board.session.embed(_images(3))
    assert error.tb is not None  # its frames live
    assert alive == [{}]


def test_messages_arrive_when_the_first_session_is_closed(opened: Open, tmp_path: Path) -> None:
    board = opened()
    second = GpuSession(tmp_path / "e.plan", "int8", "tensorrt", SPEC)
    board.session.close()
    board.trt.contexts, second._plain = 0, None
    with pytest.raises(MachineError, match=r"too little memory to run e.plan: .*out of memory"):
        second.embed(_images(3))
    board.trt.contexts, board.trt.refuses = 9, {"IExecutionContext.execute_async_v3"}
    with pytest.raises(MachineError, match="run the engine of e.plan: it gives no reason"):
        second.embed(_images(3))  # the reason of the other error is not this one's


@pytest.mark.parametrize(("name", "kind"), [("face", "HALF"), ("embedding", "UINT8")])
def test_types_that_buffers_are_not_made_for(
    opened: Open, tmp_path: Path, name: str, kind: str
) -> None:
    board = opened()
    board.trt.types = {name: kind}
    with pytest.raises(MachineError, match=f"'{name}' of e.plan has the type {kind}, expected"):
        GpuSession(tmp_path / "e.plan", "int8", "tensorrt", SPEC)


def test_times_that_the_driver_does_not_give_cost_no_run(opened: Open, caplog: Any) -> None:
    board = opened()
    board.cuda.times_events = False
    assert board.session.device_times(_images(3)) is None
    assert "not measured: cuEventElapsedTime is missing" in caplog.text
    expected = board.expected(_images(3), uint8=False)
    assert _near(board.session.embed(_images(3)), expected)


def test_code_in_a_plan_is_loaded_from_a_trusted_bundle_only(
    opened: Open, tmp_path: Path, tiny: Any
) -> None:
    board = opened()
    options = EngineOptions(batch=(1, 2, 2), version_compatible=True)
    data = tiny().SerializeToString()
    plan = compile_plan(board.trt.module, data, SPEC.shape, "fp32", options).plan
    (tmp_path / "e.plan").write_bytes(plan)
    digest = hashlib.sha256(plan).hexdigest()

    def open_plan(**trust: Any) -> None:
        GpuSession(tmp_path / "e.plan", "fp32", "tensorrt", SPEC, **trust).close()

    board.trt.transcript.clear()
    open_plan(expected_sha256=digest, version_compatible=True)
    assert board.trt.called("Runtime.engine_host_code_allowed") != []
    for trust in ({"expected_sha256": digest}, {"version_compatible": True}):
        with pytest.raises(MachineError, match="engine_host_code_allowed is false"):
            open_plan(**trust)


def test_a_plan_is_what_tensorrt_reports_and_not_what_its_name_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FP16 bytes under an INT8 engine's name, with manifest and fingerprint that agree."""
    PretendBoard("jetpack6.2", monkeypatch)
    bundle = write_tiny_bundle(tmp_path / "b")
    plans = {p: build_engine(bundle, p, "tensorrt").engine for p in ("int8", "fp16")}

    def problem(precision: str) -> str:
        opened = open_bundle(bundle.root)
        with open_session(opened, precision, "tensorrt") as session:
            record = session_record(opened, session)
        assert record is not None
        return record.problem()

    assert (problem("int8"), problem("fp16")) == ("", "")
    sidecar = bundle.root / f"{plans['int8']}.json"
    data = (bundle.root / plans["fp16"]).read_bytes()
    facts = json.loads(sidecar.read_text())
    facts |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    with transaction(bundle.root, "tamper", {}) as change:
        change.path(plans["int8"], "engine").write_bytes(data)
        change.path(f"{plans['int8']}.json", "engine fingerprint").write_text(json.dumps(facts))
    assert problem("int8") == "no layer of this engine computes in INT8"


def test_what_it_opened_and_closing(opened: Open, tmp_path: Path) -> None:
    board = opened()
    plan = (tmp_path / "e.plan").read_bytes()
    with board.session as session:
        assert (session.backend, session.precision, session.artifact) == (
            *("tensorrt", "int8", "engine"),
        )
        assert (session.file, session.sha256) == ("e.plan", hashlib.sha256(plan).hexdigest())
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


def test_a_frame_engine_aligns_on_the_gpu_what_the_host_aligns(
    tmp_path: Path, mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = PretendBoard("jetpack6.2", monkeypatch)
    options = EngineOptions(batch=(1, 2, 3), frame=((200, 300), (480, 640), (500, 700)))
    build_engine(mini, "fp32", "tensorrt", options=options, input_kind="frame")
    random = np.random.default_rng(0)
    faces = read_golden(open_bundle(mini)).faces[:4]
    frame, landmarks = draw_frame(faces[0], random)
    large = np.pad(frame, ((900, 0), (0, 400), (0, 0)))
    small, template = tile_faces(faces[:1])
    with (
        open_session(mini, "fp32-frame", "tensorrt") as session,
        open_session(mini, "fp32", artifact="graph") as host,
    ):
        assert (session.input_kind, session.largest_batch) == ("frame", 3)
        expected = host.embed_frame(frame, landmarks)
        for _ in range(2):  # the second time a replay
            assert (session.embed_frame(frame, landmarks) * expected).sum() > 0.9999
        assert session.execution == "CUDA graph"
        moved = landmarks + np.array([0, 900], np.float32)
        assert (session.embed_frame(large, moved) * expected).sum() > 0.9999
        expected = host.embed_frame(small, template)
        assert (session.embed_frame(small, template) * expected).sum() > 0.9999
        unit = host.embed(faces)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        assert (session.embed(faces) * unit).sum(1).min() > 0.9999
        five = np.repeat(landmarks, 5, 0)  # more than the profile takes
        assert session.embed_frame(frame, five).shape == (5, session.dim)
        assert session.embed_frame(frame, five[:0]).shape == (0, session.dim)
        giant = np.zeros((2000, 2000, 3), np.uint8)
        with pytest.raises(UsageError, match="takes frames of 700x500 pixels at most"):
            session.embed_frame(giant, (landmarks - landmarks.mean(1)) * 9 + 1000)
    assert not board.trt.called("ILayer.precision")


def test_flags_lower_no_pixels_place_where_the_network_is_weakly_typed(
    mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = PretendBoard("jetpack6.0", monkeypatch)
    build_engine(mini, "fp16", "tensorrt", input_kind="frame")
    assert "IBuilderConfig.set_flag(flag=OBEY_PRECISION_CONSTRAINTS)" in board.trt.transcript
    model = with_frame_input(onnx.load(mini / "model.onnx"), open_bundle(mini).spec)
    names = [node.name for node in model.graph.node if node.name.startswith("frame_")]
    other = ("_Shape", "size_Gather", "_Greater", "_Less", "_And")  # not of floats
    places = [name for name in names if not name.endswith(other)]
    pinned = board.trt.transcript.count("ILayer.precision = FLOAT")
    assert pinned == len(places) > 50
