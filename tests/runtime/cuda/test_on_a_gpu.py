"""The driver layer on a real NVIDIA GPU; TensorRT is not needed.

    python -m pytest -m cuda tests/runtime/cuda

tests/boards/test_gpu_tests.py runs the same tests over a double of the driver, to show that they can
pass and fail; only a GPU shows that they are true.
"""

import ctypes
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fr_edge.errors import MachineError
from fr_edge.runtime.cuda.interface import Buffer, Cuda, open_cuda
from fr_edge.runtime.machine.device import (
    find_gpus,
    gpu_names,
    package_version,
    selected_gpu,
    use_gpu,
)

pytestmark = pytest.mark.cuda
SIZE = 1 << 16


@pytest.fixture
def cuda() -> Iterator[Cuda]:
    """The first GPU, current for the test; skips with what is missing."""
    if lack := find_gpus().lack:
        pytest.skip(lack)
    try:
        opened = open_cuda()
    except MachineError as error:
        pytest.skip(error.message)
    with opened.current():
        yield opened
    opened.close()


def filled(buffer: Buffer, seed: int) -> np.ndarray:
    """Put random bytes into a buffer; gives a copy of them."""
    values = np.random.default_rng(seed).integers(0, 256, len(buffer.array), np.uint8)
    buffer.array[:] = values
    return values


def come_back(cuda: Cuda, buffer: Buffer, stream: int, seed: int) -> bool:
    """Whether bytes that went to the device are there when the host has forgotten them."""
    values = filled(buffer, seed)
    cuda.push(buffer, len(values), stream)
    cuda.wait(stream)
    if not buffer.mapped:
        buffer.array[:] = 0
    cuda.pull(buffer, len(values), stream)
    cuda.wait(stream)
    return bool(np.array_equal(buffer.array, values))


def test_bytes_come_back_from_the_device(cuda: Cuda) -> None:
    stream = cuda.stream()
    for seed, size in enumerate((1, 4, 4097, SIZE, 3 * 112 * 112 * 4 * 32)):
        buffer = cuda.buffer(size)
        assert buffer.array.shape == (size,)
        assert buffer.array.dtype == np.uint8
        assert come_back(cuda, buffer, stream, seed)


def test_a_part_of_a_buffer_is_moved_alone(cuda: Cuda) -> None:
    stream, buffer = cuda.stream(), cuda.buffer(SIZE)
    if buffer.mapped:
        pytest.skip("this GPU shares the CPU's memory: nothing is copied")
    first = filled(buffer, 1)
    cuda.push(buffer, SIZE, stream)
    cuda.wait(stream)
    second = filled(buffer, 2)
    cuda.push(buffer, SIZE // 2, stream)
    cuda.wait(stream)
    buffer.array[:] = 0
    cuda.pull(buffer, SIZE, stream)
    cuda.wait(stream)
    np.testing.assert_array_equal(buffer.array[: SIZE // 2], second[: SIZE // 2])
    np.testing.assert_array_equal(buffer.array[SIZE // 2 :], first[SIZE // 2 :])


def test_a_buffer_is_shared_exactly_where_the_gpu_is_integrated(cuda: Cuda) -> None:
    buffer, gpu = cuda.buffer(SIZE), selected_gpu()
    assert gpu is not None
    assert buffer.mapped is gpu.integrated
    assert buffer.address != 0


def test_host_memory_is_page_locked(cuda: Cuda) -> None:
    """Only then copies run beside the CPU (cuMemHostGetFlags refuses other memory)."""
    driver, flags = ctypes.CDLL("libcuda.so.1"), ctypes.c_uint()
    buffer = cuda.buffer(SIZE)
    address = ctypes.c_void_p(buffer.array.ctypes.data)
    assert driver.cuMemHostGetFlags(ctypes.byref(flags), address) == 0
    pageable = np.zeros(SIZE, np.uint8)
    address = ctypes.c_void_p(pageable.ctypes.data)
    assert driver.cuMemHostGetFlags(ctypes.byref(flags), address) != 0


def test_streams_are_independent_and_keep_their_order(cuda: Cuda) -> None:
    streams = [cuda.stream(), cuda.stream()]
    assert len(set(streams)) == 2
    buffers = [cuda.buffer(SIZE), cuda.buffer(SIZE)]
    for turn in range(5):
        values = [filled(buffer, 10 * turn + i) for i, buffer in enumerate(buffers)]
        for buffer, stream in zip(buffers, streams, strict=True):
            cuda.push(buffer, SIZE, stream)
            cuda.pull(buffer, SIZE, stream)
        for stream in streams:
            cuda.wait(stream)
        for buffer, expected in zip(buffers, values, strict=True):
            np.testing.assert_array_equal(buffer.array, expected)


def test_events_stamp_the_order_of_the_work(cuda: Cuda) -> None:
    stream, buffer = cuda.stream(), cuda.buffer(16 << 20)
    marks = [cuda.mark(stream)]
    for _ in range(3):
        cuda.push(buffer, len(buffer.array), stream)
        marks.append(cuda.mark(stream))
    cuda.wait(stream)
    parts = [cuda.elapsed_ms(a, b) for a, b in zip(marks, marks[1:], strict=False)]
    whole = cuda.elapsed_ms(marks[0], marks[-1])
    assert min(parts) >= 0
    assert whole == pytest.approx(sum(parts), rel=0.01, abs=0.01)
    assert buffer.mapped or whole > 0


def test_graphs_replay_with_what_is_in_the_buffers_then(cuda: Cuda) -> None:
    stream, buffers = cuda.stream(), [cuda.buffer(SIZE), cuda.buffer(SIZE)]
    if buffers[0].mapped:
        pytest.skip("this GPU shares the CPU's memory: a copy leaves nothing to be seen")

    def there(index: int) -> None:
        cuda.push(buffers[index], SIZE, stream)

    recorded = [cuda.record(stream, lambda index=i: there(index)) for i in range(2)]
    if cuda.name == "pycuda":
        assert recorded == [None, None]
        return
    launches = [launch for launch in recorded if launch is not None]
    assert len(launches) == 2
    for turn in range(4):
        expected = [filled(buffer, 100 + 2 * turn + i) for i, buffer in enumerate(buffers)]
        launches[turn % 2]()
        launches[1 - turn % 2]()
        cuda.wait(stream)
        for buffer, values in zip(buffers, expected, strict=True):
            buffer.array[:] = 0
            cuda.pull(buffer, SIZE, stream)
            cuda.wait(stream)
            np.testing.assert_array_equal(buffer.array, values)


def test_what_cannot_be_recorded_is_none_and_the_stream_lives_on(cuda: Cuda) -> None:
    if cuda.name == "pycuda":
        pytest.skip("pycuda has no graphs")
    stream, buffer = cuda.stream(), cuda.buffer(SIZE)
    assert cuda.record(stream, lambda: cuda.wait(stream)) is None
    assert come_back(cuda, buffer, stream, 7)


def test_another_thread_allocates_while_a_graph_is_recorded(cuda: Cuda) -> None:
    if cuda.name == "pycuda":
        pytest.skip("pycuda has no graphs")
    stream, buffer, errors = cuda.stream(), cuda.buffer(SIZE), []

    def allocate() -> None:
        try:
            with cuda.current():
                cuda.buffer(SIZE)
        except MachineError as error:
            errors.append(error.message)

    def work() -> None:
        thread = threading.Thread(target=allocate)
        thread.start()
        thread.join()
        cuda.push(buffer, SIZE, stream)

    assert cuda.record(stream, work) is not None
    assert errors == []


def test_too_much_memory_is_an_error_and_not_a_crash(cuda: Cuda) -> None:
    with pytest.raises(MachineError) as error:
        cuda.buffer(1 << 50)
    assert "close other programs" in error.value.hint
    assert come_back(cuda, cuda.buffer(SIZE), cuda.stream(), 8)


def test_another_thread_works_once_the_context_is_current(cuda: Cuda) -> None:
    results: list[Any] = []

    def work() -> None:
        try:
            cuda.buffer(SIZE)
        except MachineError as error:
            results.append(error.message)
        with cuda.current():
            results.append(come_back(cuda, cuda.buffer(SIZE), cuda.stream(), 9))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results[-1] is True
    if len(results) == 2:  # a driver may also keep a context current for every thread
        assert "CUDA_ERROR_INVALID_CONTEXT" in results[0] or "context" in results[0]


def test_two_gpus_are_kept_apart(cuda: Cuda) -> None:
    gpus = find_gpus().gpus
    if len(gpus) < 2:
        pytest.skip("one GPU")
    with use_gpu(1):
        assert selected_gpu() == gpus[1]
        assert gpu_names()[0] == gpus[1].name
        second = open_cuda()
    try:
        with second.current():
            buffer, stream = second.buffer(SIZE), second.stream()
            assert come_back(second, buffer, stream, 10)
        assert come_back(cuda, cuda.buffer(SIZE), cuda.stream(), 11)
        with pytest.raises(MachineError):
            cuda.mark(stream)  # the other GPU's
    finally:
        second.close()
    assert come_back(cuda, cuda.buffer(SIZE), cuda.stream(), 12)


def test_torch_shares_the_context_and_survives_its_end(cuda: Cuda) -> None:
    """Both take the device's primary context: an address of one is good in the other."""
    if package_version("torch").endswith("+cpu"):  # asked first: importing it takes seconds
        pytest.skip("this torch is built for the CPU")
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("this torch finds no GPU")
    tensor = torch.arange(SIZE, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    opened = open_cuda()
    with opened.current():
        stream, buffer = opened.stream(), opened.buffer(SIZE)
        theirs = Buffer(buffer.array, tensor.data_ptr(), False, ())
        opened.pull(theirs, SIZE, stream)
        opened.wait(stream)
    np.testing.assert_array_equal(buffer.array, np.arange(SIZE).astype(np.uint8))
    opened.close()
    doubled = (tensor.int() * 2).cpu().numpy()
    np.testing.assert_array_equal(doubled, np.arange(SIZE).astype(np.uint8).astype(int) * 2)
