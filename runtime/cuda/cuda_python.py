"""The `Cuda` interface over NVIDIA's cuda-python: the driver API, whose calls return a status."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import numpy as np

from ...errors import MachineError
from ..machine.device import cuda_python_install, find_gpus
from .interface import Buffer, Cuda


def open_cuda_python(index: int) -> Cuda:
    """Open a GPU.

    Args:
        index: In the driver's order, from 0.

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
    return _CudaPython(driver, index)


def take(result: tuple[Any, ...]) -> Any:
    """The value of a driver call, its status checked.

    Args:
        result: What the call returned: status, then values.

    Returns:
        The first value; None if the call returned no value.

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


@cache
def _driver_function(name: str) -> Any:
    """A function of the driver's library itself, None where it is not there.

    cuda-python 12.9 and 13 ask every driver for `cuEventElapsedTime_v2`, which is new in CUDA 12.8;
    `cuEventElapsedTime` is in all of them.
    """
    try:
        function = getattr(ctypes.CDLL("libcuda.so.1"), name)
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.POINTER(ctypes.c_float), ctypes.c_void_p, ctypes.c_void_p)
    return function


class _CudaPython:
    name = "cuda-python"

    def __init__(self, driver: Any, index: int) -> None:
        self._driver = driver
        self._device = self._call("cuDeviceGet", index)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        integrated = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_INTEGRATED
        self._shared = bool(self._call("cuDeviceGetAttribute", integrated, self._device))
        self._streams: list[Any] = []
        self._graphs: list[Any] = []
        self._events: list[Any] = []
        self._buffers: list[Buffer] = []

    def _call(self, name: str, *args: Any) -> Any:
        """A driver function's value; a function that the driver lacks is a MachineError."""
        try:
            result = getattr(self._driver, name)(*args)
        except (AttributeError, RuntimeError) as error:
            driver = find_gpus().driver
            raise MachineError(
                f"the installed cuda-python cannot call {name} of this driver (CUDA {driver}):"
                f" {error}",
                f"{cuda_python_install(driver)}: not newer than the driver",
            ) from error
        return take(result)

    @contextmanager
    def current(self) -> Iterator[None]:
        self._call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent")

    def buffer(self, size: int) -> Buffer:
        driver = self._driver
        pointer = int(self._call("cuMemHostAlloc", size, driver.CU_MEMHOSTALLOC_DEVICEMAP))
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))
        if self._shared:
            address = int(self._call("cuMemHostGetDevicePointer", pointer, 0))
        else:
            try:
                address = int(self._call("cuMemAlloc", size))
            except MachineError:
                self._call("cuMemFreeHost", pointer)
                raise
        buffer = Buffer(array, address, self._shared, (pointer,))
        self._buffers.append(buffer)
        return buffer

    def stream(self) -> int:
        # Not blocking: other work on the default stream does not wait for this stream.
        flags = int(self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        stream = self._call("cuStreamCreate", flags)
        self._streams.append(stream)
        return int(stream)

    def push(self, buffer: Buffer, size: int, stream: int) -> None:
        if not buffer.mapped:
            source = buffer.array.ctypes.data
            self._call("cuMemcpyHtoDAsync", buffer.address, source, size, stream)

    def pull(self, buffer: Buffer, size: int, stream: int) -> None:
        if not buffer.mapped:
            target = buffer.array.ctypes.data
            self._call("cuMemcpyDtoHAsync", target, buffer.address, size, stream)

    def mark(self, stream: int) -> Any:
        event = self._call("cuEventCreate", 0)
        self._events.append(event)
        self._call("cuEventRecord", event, stream)
        return event

    def elapsed_ms(self, first: Any, second: Any) -> float:
        milliseconds = ctypes.c_float()
        if function := _driver_function("cuEventElapsedTime"):
            status = function(ctypes.byref(milliseconds), int(first), int(second))
            take((self._driver.CUresult(status),))
            return milliseconds.value
        return float(self._call("cuEventElapsedTime", first, second))

    def wait(self, stream: int) -> None:
        self._call("cuStreamSynchronize", stream)

    def record(self, stream: int, work: Callable[[], None]) -> Callable[[], None] | None:
        driver = self._driver
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", stream, mode)
        recorded = False
        try:
            with suppress(MachineError):  # not everything can be recorded; then it is queued singly
                work()
                recorded = True
        finally:  # the stream lives on, whatever was raised
            status, graph = driver.cuStreamEndCapture(stream)
            if not recorded and not int(status):
                self._call("cuGraphDestroy", graph)
        if not recorded or int(status):
            return None
        try:
            ready = self._call("cuGraphInstantiate", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)
        self._graphs.append(ready)

        def launch() -> None:
            self._call("cuGraphLaunch", ready, stream)

        return launch

    def _free(self, name: str, handle: Any) -> None:
        """Give something back; after a fault the context refuses that, and its end frees all."""
        with suppress(MachineError):
            self._call(name, handle)

    def close(self) -> None:
        with suppress(MachineError), self.current():
            for graph in self._graphs:
                self._free("cuGraphExecDestroy", graph)
            for event in self._events:
                self._free("cuEventDestroy", event)
            for stream in self._streams:
                self._free("cuStreamDestroy", stream)
            for buffer in self._buffers:
                if not buffer.mapped:
                    self._free("cuMemFree", buffer.address)
                self._free("cuMemFreeHost", buffer.owners[0])
        self._graphs.clear()
        self._events.clear()
        self._streams.clear()
        self._buffers.clear()
        self._free("cuDevicePrimaryCtxRelease", self._device)
