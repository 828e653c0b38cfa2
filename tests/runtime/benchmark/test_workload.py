"""What is timed is what it says: other faces every time, JPEG bytes where asked, several sessions."""

import threading
import time

import numpy as np
import pytest

from fr_edge.faces.images import decode_image
from fr_edge.runtime.benchmark.workload import (
    Workload,
    as_jpegs,
    encoded_batches,
    ready_batches,
    turns,
)


class _Sums:
    """A session that gives each face's sums, and remembers who asked and when."""

    backend, precision, dim = "onnxruntime", "fp32", 2

    def __init__(self, seconds: float = 0.0) -> None:
        self.seen: list[bytes] = []
        self.spans: list[tuple[float, float]] = []
        self.threads: set[int] = set()
        self._seconds = seconds

    def embed_tensor(self, faces: np.ndarray) -> np.ndarray:
        begin = time.monotonic()
        time.sleep(self._seconds)
        self.seen.append(faces.tobytes())
        self.threads.add(threading.get_ident())
        self.spans.append((begin, time.monotonic()))
        return np.stack([faces.sum((1, 2, 3)), faces[:, 0].sum((1, 2)) + 1], axis=1)


@pytest.fixture
def faces() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (5, 112, 112, 3), np.uint8)


def test_no_two_runs_in_a_row_see_the_same_batch() -> None:
    inputs = np.random.default_rng(0).normal(size=(5, 3, 4, 4)).astype(np.float32)
    session = _Sums()
    expected = session.embed_tensor(inputs)
    session.seen.clear()
    work = Workload(
        [session.embed_tensor], ready_batches(inputs, 2), [expected[p] for p in turns(5, 2)]
    )
    for index in range(40):
        work.run(index)
        work.check(index)
    assert len(set(session.seen)) == 5
    assert all(a != b for a, b in zip(session.seen, session.seen[1:], strict=False))
    assert work.min_cosine == pytest.approx(1.0)


def test_from_jpeg_bytes(faces: np.ndarray) -> None:
    files = as_jpegs(faces)
    assert all(data.startswith(b"\xff\xd8") for data in files)
    plain = np.stack([decode_image(data, "x") for data in files])
    for batch, pick in zip(encoded_batches(files, 3), turns(5, 3), strict=True):
        assert np.array_equal(batch(), plain[pick])


def test_streams_run_at_the_same_time_and_end_together() -> None:
    inputs = np.random.default_rng(0).normal(size=(4, 3, 4, 4)).astype(np.float32)
    sessions = [_Sums(0.05), _Sums(0.05)]
    expected = sessions[0].embed_tensor(inputs)
    for session in sessions:
        session.spans.clear()
        session.threads.clear()
    work = Workload(
        [s.embed_tensor for s in sessions],
        ready_batches(inputs, 1),
        [expected[p] for p in turns(4, 1)],
    )
    work.run(0)
    end = time.monotonic()
    work.check(0)
    work.close()
    (one,), (other,) = (session.spans for session in sessions)
    assert max(one[0], other[0]) < min(one[1], other[1]) <= max(one[1], other[1]) <= end
    assert sessions[0].threads != sessions[1].threads
    assert work.min_cosine == pytest.approx(1.0)
