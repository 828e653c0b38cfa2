"""The `Cuda` interface over NVIDIA's cuda-python: the driver API, whose calls return a status."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ...errors import MachineError
from .interface import Buffer, Cuda


def open_cuda_python() -> Cuda:
    """Open the first GPU.

    Raises:
        ImportError: cuda-python is not installed.
        MachineError: There is no driver or no usable GPU.
    """
    try:
        from cuda.bindings import driver
    except ImportError:
        from cuda import cuda as driver  # its name before cuda-python 12.8
    try:
        take(driver.cuInit(0))
    except RuntimeError as error:  # cuda-python 13 loads the driver's library when it is needed
        raise MachineError(f"no NVIDIA driver: {error}", "see `fr-edge doctor`") from error
    return _CudaPython(driver)


def take(result: tuple[Any, ...]) -> Any:
    """The value of a driver call, its status checked.

    Args:
        result: What the call returned: status, then values.

    Returns:
        The first value, None where there is none.

    Raises:
        MachineError: The status is an error; the message names it.
    """
    status, *values = result
    if int(status):
        raise MachineError(
            f"the CUDA driver returned {status.name} ({int(status)})",
            "close other programs"
            if "MEMORY" in status.name
            else "`fr-edge doctor` checks the driver",
        )
    return values[0] if values else None


class _CudaPython:
    name = "cuda-python"

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._device = take(driver.cuDeviceGet(0))
        self._context = take(driver.cuDevicePrimaryCtxRetain(self._device))
        integrated = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_INTEGRATED
        self._shared = bool(take(driver.cuDeviceGetAttribute(integrated, self._device)))
        self._streams: list[Any] = []
        self._graphs: list[Any] = []
        self._events: list[Any] = []
        self._buffers: list[Buffer] = []

    @contextmanager
    def current(self) -> Iterator[None]:
        take(self._driver.cuCtxPushCurrent(self._context))
        try:
            yield
        finally:
            take(self._driver.cuCtxPopCurrent())

    def buffer(self, size: int) -> Buffer:
        driver = self._driver
        pointer = int(take(driver.cuMemHostAlloc(size, driver.CU_MEMHOSTALLOC_DEVICEMAP)))
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))
        if self._shared:
            address = int(take(driver.cuMemHostGetDevicePointer(pointer, 0)))
        else:
            try:
                address = int(take(driver.cuMemAlloc(size)))
            except MachineError:
                take(driver.cuMemFreeHost(pointer))
                raise
        buffer = Buffer(array, address, self._shared, (pointer,))
        self._buffers.append(buffer)
        return buffer

    def stream(self) -> int:
        # Not blocking: other work on the default stream does not wait for this stream.
        flags = int(self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        stream = take(self._driver.cuStreamCreate(flags))
        self._streams.append(stream)
        return int(stream)

    def push(self, buffer: Buffer, size: int, stream: int) -> None:
        if not buffer.mapped:
            source = buffer.array.ctypes.data
            take(self._driver.cuMemcpyHtoDAsync(buffer.address, source, size, stream))

    def pull(self, buffer: Buffer, size: int, stream: int) -> None:
        if not buffer.mapped:
            target = buffer.array.ctypes.data
            take(self._driver.cuMemcpyDtoHAsync(target, buffer.address, size, stream))

    def mark(self, stream: int) -> Any:
        event = take(self._driver.cuEventCreate(0))
        self._events.append(event)
        take(self._driver.cuEventRecord(event, stream))
        return event

    def elapsed_ms(self, first: Any, second: Any) -> float:
        # Its name since CUDA 12.8, where the old one is bound to the new call in CUDA 13.
        elapsed = getattr(self._driver, "cuEventElapsedTime_v2", self._driver.cuEventElapsedTime)
        return float(take(elapsed(first, second)))

    def wait(self, stream: int) -> None:
        take(self._driver.cuStreamSynchronize(stream))

    def record(self, stream: int, work: Callable[[], None]) -> Callable[[], None] | None:
        driver = self._driver
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        take(driver.cuStreamBeginCapture(stream, mode))
        recorded = True
        try:
            work()
        except MachineError:  # not everything can be recorded; then it is queued call by call
            recorded = False
        status, graph = driver.cuStreamEndCapture(stream)
        if int(status) or not recorded:
            return None
        ready = take(driver.cuGraphInstantiate(graph, 0))
        take(driver.cuGraphDestroy(graph))
        self._graphs.append(ready)

        def launch() -> None:
            take(driver.cuGraphLaunch(ready, stream))

        return launch

    def close(self) -> None:
        driver = self._driver
        with self.current():
            for graph in self._graphs:
                take(driver.cuGraphExecDestroy(graph))
            for event in self._events:
                take(driver.cuEventDestroy(event))
            for stream in self._streams:
                take(driver.cuStreamDestroy(stream))
            for buffer in self._buffers:
                if not buffer.mapped:
                    take(driver.cuMemFree(buffer.address))
                take(driver.cuMemFreeHost(buffer.owners[0]))
        self._graphs.clear()
        self._events.clear()
        self._streams.clear()
        self._buffers.clear()
        take(driver.cuDevicePrimaryCtxRelease(self._device))
