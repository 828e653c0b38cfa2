"""A double of the `Cuda` interface in Python, for tests within one process: no driver is behind it.

Host memory stands for a device that shares it, as on a Jetson; work runs when it is queued, and a
replay queues again what was recorded. libcuda_double.c is the double of the driver itself.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from fr_edge.errors import MachineError
from fr_edge.runtime.cuda.interface import Buffer


class CudaDouble:
    """One GPU.

    Attributes:
        replays: Graphs that were launched.
        replays_compute: Whether launching one does its work.
        working_replays: Replays after so many do none: their buffers stay as they were.
        reads_input: Whether a replay reads its input anew; else it takes the recorded one.
        replay_factor: By which a replay's numbers differ from those of the same run without it.
        times_events: Whether the driver gives the time between events.
        closed: How often `close` was called.
        before_close: Called then.
    """

    name = "double"

    def __init__(self, *, graphs: bool = True) -> None:
        self.graphs, self.replays, self.closed, self.clock = graphs, 0, 0, 0.0
        self.replays_compute = self.times_events = self.reads_input = True
        self.working_replays, self.replay_factor = sys.maxsize, np.float32(1.0)
        self.arrays: list[np.ndarray] = []
        self.before_close: Callable[[], object] = lambda: None

    @contextmanager
    def current(self) -> Iterator[None]:
        yield

    def buffer(self, size: int) -> Buffer:
        whole = np.zeros(size + 256, np.uint8)  # addresses are multiples of 256, as the driver's
        start = -whole.ctypes.data % 256
        self.arrays.append(whole[start : start + size])
        return Buffer(self.arrays[-1], self.arrays[-1].ctypes.data, True, ())

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

        recorded = self.arrays[0].copy()  # the session's input

        def launch() -> None:
            self.replays += 1
            if not self.reads_input:
                self.arrays[0][:] = recorded
            if self.replays_compute and self.replays <= self.working_replays:
                work()
                embeddings = self.arrays[1].view(np.float32)
                embeddings *= self.replay_factor

        return launch

    def close(self) -> None:
        self.before_close()
        self.closed += 1
