"""Sessions on a real GPU compute what onnxruntime computes. Nothing here is mocked."""

import threading

import numpy as np
import pytest

from fr_edge.errors import UsageError
from fr_edge.runtime.build import build_engine
from fr_edge.runtime.session import open_session
from fr_edge.runtime.tensorrt_session import GpuSession
from fr_edge.runtime.trt.config import EngineOptions

pytestmark = pytest.mark.gpu
TOLERANCE = {"fp32": 1e-4, "fp16": 0.02, "int8": 0.1}


@pytest.fixture
def expected(bundle, faces):
    """`expected(n)`: the FP32 network's `(n, 5)` on onnxruntime."""
    session = open_session(bundle, "fp32", artifact="graph")
    return lambda count: session.embed_tensor(faces(count))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_it_agrees_with_the_cpu(bundle, faces, expected, gpu_backend, precision):
    build_engine(bundle, precision, gpu_backend, options=EngineOptions(batch=(1, 4, 8)))
    session = open_session(bundle.root, precision, gpu_backend)
    assert isinstance(session, GpuSession)
    assert session.embed_tensor(faces(0)).shape == (0, 5)
    for count in (1, 3, 8, 9, 20, 3, 3, 8):  # a size that comes again is replayed
        result = session.embed_tensor(faces(count))
        assert result.shape == (count, 5)
        largest = np.abs(expected(count)).max()
        assert np.abs(result - expected(count)).max() <= TOLERANCE[precision] * largest
    session.close()


def test_a_batch_below_the_smallest_is_filled_up(bundle, faces, expected, gpu_backend):
    build_engine(bundle, "fp32", gpu_backend, options=EngineOptions(batch=(4, 4, 8)))
    result = open_session(bundle.root, "fp32", gpu_backend).embed_tensor(faces(2))
    assert np.abs(result - expected(2)).max() <= 1e-4 * np.abs(expected(2)).max()


def test_two_sessions_threads_and_closing(bundle, faces, expected, gpu_backend):
    build_engine(bundle, "fp32", gpu_backend)
    first, second = (open_session(bundle.root, "fp32", gpu_backend) for _ in range(2))
    results: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda s=session: results.append(s.embed_tensor(faces(5))))
        for session in (first, second, first, second)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for result in results:
        assert np.abs(result - expected(5)).max() <= 1e-4 * np.abs(expected(5)).max()
    first.close()
    first.close()
    with pytest.raises(UsageError, match="closed"):
        first.embed_tensor(faces(1))
    assert second.embed_tensor(faces(1)).shape == (1, 5)
    second.close()


@pytest.mark.parametrize("count", [1, 8])
def test_where_the_time_goes(bundle, gpu_backend, count):
    build_engine(bundle, "fp32", gpu_backend, options=EngineOptions(batch=(1, 4, 8)))
    images = np.random.default_rng(5).integers(0, 256, (count, 112, 112, 3), np.uint8)
    session = open_session(bundle.root, "fp32", gpu_backend)
    assert session.largest_batch == 8
    before = session.embed(images)
    for _ in range(3):  # with a graph and without one
        times = session.device_times(images)
        assert times.compute_ms > 0
        assert times.enqueue_ms > 0
        assert min(times.h2d_ms, times.d2h_ms) >= 0
        assert np.array_equal(session.embed(images), before)
    layers = session.layer_times(images, 5)
    assert layers
    assert list(layers) == sorted(layers, key=lambda layer: -layer.ms)
    assert np.array_equal(session.embed(images), before)
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.device_times(images)
