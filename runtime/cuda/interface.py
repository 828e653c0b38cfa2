"""Memory, streams and graphs of one GPU behind one small interface.

pycuda is taken first, cuda-python where that is not installed; neither is imported before a GPU
was found. Everything runs in the device's primary context, which TensorRT uses too, and may be
used from any thread.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Buffer:
    """Page-locked host memory `array (nbytes,) uint8` and its counterpart on the device.

    Where the GPU shares the CPU's memory (Jetson) both are the same bytes: `mapped`.
    """

    array: npt.NDArray[np.uint8]
    address: int
    mapped: bool
    owners: tuple[Any, ...]


class Cuda(Protocol):
    """What a session needs of a GPU; all but `current` and `close` want `current` entered."""

    name: str

    def current(self) -> AbstractContextManager[None]:
        """The GPU's context, for this thread and this block."""

    def buffer(self, size: int) -> Buffer:
        """`size` bytes; raises MachineError when the GPU has not that much left."""

    def stream(self) -> int:
        """A new stream, as the handle that TensorRT takes."""

    def push(self, buffer: Buffer, size: int, stream: int) -> None:
        """Queue the copy of the first `size` bytes to the device."""

    def pull(self, buffer: Buffer, size: int, stream: int) -> None:
        """Queue the copy of the first `size` bytes to the host."""

    def mark(self, stream: int) -> Any:
        """Queue a moment: an event that the GPU stamps when it comes to it."""

    def elapsed_ms(self, first: Any, second: Any) -> float:
        """Milliseconds between two moments that have passed."""

    def wait(self, stream: int) -> None:
        """Until everything queued is done."""

    def record(self, stream: int, work: Callable[[], None]) -> Callable[[], None] | None:
        """`work` as a CUDA graph: a function that queues all of it at once, or None."""

    def close(self) -> None:
        """Free everything that was handed out."""
