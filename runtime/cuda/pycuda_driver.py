"""The `Cuda` interface over pycuda, which has no CUDA graphs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ...errors import MachineError
from .interface import Buffer, Cuda


def open_pycuda(index: int) -> Cuda:
    """Open a GPU.

    Args:
        index: In the driver's order, from 0.

    Raises:
        ImportError: pycuda or one of its libraries is not installed.
        MachineError: There is no usable GPU.
    """
    import pycuda.driver as driver

    try:
        driver.init()
        return _PyCuda(driver, index)
    except driver.Error as error:
        raise MachineError(
            f"pycuda finds no usable GPU: {error}", "see `fr-edge doctor`"
        ) from error


class _PyCuda:
    name = "pycuda"

    def __init__(self, driver: Any, index: int) -> None:
        self._driver = driver
        device = driver.Device(index)
        self._context = device.retain_primary_context()
        self._shared = bool(device.get_attribute(driver.device_attribute.INTEGRATED))
        self._streams: dict[int, Any] = {}
        self._buffers: list[Buffer] = []

    @contextmanager
    def _checked(self) -> Iterator[None]:
        """The driver's errors as a MachineError, as cuda-python's calls give them."""
        try:
            yield
        except self._driver.Error as error:
            raise MachineError(
                f"the CUDA driver refuses a call: {error}", "`fr-edge doctor` checks the driver"
            ) from error

    def _stream(self, handle: int) -> Any:
        if handle not in self._streams:
            raise MachineError(
                f"stream {handle} is not one of this GPU's", "use it where it was created"
            )
        return self._streams[handle]

    @contextmanager
    def current(self) -> Iterator[None]:
        with self._checked():
            self._context.push()
        try:
            yield
        finally:
            self._driver.Context.pop()

    def buffer(self, size: int) -> Buffer:
        driver = self._driver
        flags = driver.host_alloc_flags.DEVICEMAP if self._shared else 0
        try:
            array = driver.pagelocked_empty(size, np.uint8, mem_flags=flags)
            if self._shared:
                buffer = Buffer(array, int(array.base.get_device_pointer()), True, (array.base,))
            else:
                memory = driver.mem_alloc(size)
                buffer = Buffer(array, int(memory), False, (array.base, memory))
        except driver.MemoryError as error:
            raise MachineError(
                f"the GPU has no {size} bytes left: {error}", "close other programs"
            ) from error
        except driver.Error as error:
            raise MachineError(
                f"the CUDA driver refuses memory: {error}", "`fr-edge doctor` checks the driver"
            ) from error
        self._buffers.append(buffer)
        return buffer

    def stream(self) -> int:
        with self._checked():
            stream = self._driver.Stream()
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def push(self, buffer: Buffer, size: int, stream: int) -> None:
        if not buffer.mapped:
            target = self._stream(stream)
            with self._checked():
                self._driver.memcpy_htod_async(buffer.address, buffer.array[:size], target)

    def pull(self, buffer: Buffer, size: int, stream: int) -> None:
        if not buffer.mapped:
            source = self._stream(stream)
            with self._checked():
                self._driver.memcpy_dtoh_async(buffer.array[:size], buffer.address, source)

    def mark(self, stream: int) -> Any:
        on = self._stream(stream)
        with self._checked():
            event = self._driver.Event()
            event.record(on)
        return event

    def elapsed_ms(self, first: Any, second: Any) -> float:
        with self._checked():
            return float(first.time_till(second))

    def wait(self, stream: int) -> None:
        queue = self._stream(stream)
        with self._checked():
            queue.synchronize()

    def record(self, stream: int, work: Callable[[], None]) -> Callable[[], None] | None:
        return None

    def close(self) -> None:
        with self.current():
            for buffer in self._buffers:
                for owner in buffer.owners:
                    owner.free()
            self._buffers.clear()
            self._streams.clear()
        self._context.detach()
