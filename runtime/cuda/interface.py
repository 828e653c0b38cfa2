"""Memory, streams and graphs of one GPU behind one small interface, and how it is opened.

cuda-python is taken first, because it has CUDA graphs, else pycuda; neither is imported before a
GPU is found. Everything runs in the device's primary context, which TensorRT uses too, and may be
used from any thread.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from traceback import clear_frames
from typing import Any, Protocol

from ...arrays import U8
from ...errors import MachineError
from ..machine.device import cuda_python_install, find_gpus, selected_index


@dataclass(frozen=True)
class Buffer:
    """Page-locked host memory and its counterpart on the device.

    Attributes:
        array: `(bytes,) uint8`, on the host.
        address: On the device.
        mapped: Whether both are the same bytes: the GPU shares the CPU's memory (Jetson).
        owners: What keeps the memory alive.
    """

    array: U8
    address: int
    mapped: bool
    owners: tuple[Any, ...]


class Cuda(Protocol):
    """What a session needs of a GPU; all but `current` and `close` need `current` to be entered.

    Attributes:
        name: The package behind it.
    """

    name: str

    def current(self) -> AbstractContextManager[None]:
        """Make the GPU's context current for this thread and this block."""

    def buffer(self, size: int) -> Buffer:
        """Allocate `size` bytes; raises MachineError when the GPU has too little memory left."""

    def stream(self) -> int:
        """Create a stream; returns the handle that TensorRT takes."""

    def push(self, buffer: Buffer, size: int, stream: int) -> None:
        """Queue the copy of the first `size` bytes to the device."""

    def pull(self, buffer: Buffer, size: int, stream: int) -> None:
        """Queue the copy of the first `size` bytes to the host."""

    def mark(self, stream: int) -> Any:
        """Queue an event; the GPU stamps it with the time when it gets there."""

    def elapsed_ms(self, first: Any, second: Any) -> float:
        """Milliseconds between two events that have passed."""

    def wait(self, stream: int) -> None:
        """Wait until everything that is queued is done."""

    def record(self, stream: int, work: Callable[[], None]) -> Callable[[], None] | None:
        """Record `work` as a CUDA graph; returns a function that queues it at once, or None."""

    def close(self) -> None:
        """Free all buffers, streams, events and graphs."""


def open_cuda() -> Cuda:
    """Open the selected GPU, by default the first, with the package that is installed.

    Raises:
        MachineError: There is no GPU, or no package to use it.
    """
    if lack := find_gpus().lack:
        raise MachineError(lack, "run this on a machine with an NVIDIA GPU; see `fr-edge doctor`")
    from .cuda_python import open_cuda_python
    from .pycuda_driver import open_pycuda

    reasons = []
    for open_package in (open_cuda_python, open_pycuda):
        try:
            return open_package(selected_index())
        except ImportError as error:
            reasons.append(str(error))
    raise MachineError(
        f"there is a GPU, but no package to use it: {'; '.join(reasons)}",
        f"{cuda_python_install(find_gpus().driver)}; pycuda works too, without CUDA graphs",
    )


@contextmanager
def on_selected_gpu() -> Iterator[None]:
    """Let libraries work on the selected GPU while the block runs; by themselves they take 0.

    Raises:
        MachineError: As `open_cuda`.
    """
    if selected_index() == 0:
        yield
        return
    cuda = open_cuda()
    try:
        with cuda.current():
            yield
    except BaseException as error:
        # The frames may hold objects of TensorRT, which have to go before the GPU's context does.
        clear_frames(error.__traceback__)
        raise
    finally:
        cuda.close()
