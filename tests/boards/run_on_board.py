"""A process on a pretend board: it runs `fr-edge` commands that a FIFO brings, one after the other.

    python run_on_board.py HOME    with HOME/board.json, HOME/request and HOME/done as FIFOs

The driver is libcuda_double.c, the files are board_files_double.c's, TensorRT is its double, whose
work is queued through the driver. The clock is a double too: a run of an engine takes 50 ms and 1.5 ms
for each face, whatever it takes here; the figures mean nothing.
"""

import contextlib
import ctypes
import json
import os
import subprocess  # noqa: F401  (before the clock is replaced)
import sys
import tempfile  # noqa: F401
import threading  # noqa: F401
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy  # noqa: F401  (before the board's files are in place)
import onnxruntime  # noqa: F401

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE)]
from tensorrt_double import TensorRTDouble  # noqa: E402

_REST_S = 0.2
_RUN_S, _FACE_S = 0.050, 0.0015


class ClockDouble:
    """What the runs of engines are said to take, and the time that really goes by unless held.

    Held, it is the same on a busy machine as on an idle one: a microsecond for each look at it.
    """

    def __init__(self) -> None:
        self.extra_s, self.factor, self.held = 0.0, 1.0, False
        self.monotonic, self.wall = time.monotonic, time.time
        self.base_s, self.off_s = self.monotonic(), self.wall() - self.monotonic()
        time.perf_counter = time.monotonic = self.now
        time.perf_counter_ns = time.monotonic_ns = lambda: round(1e9 * self.now())
        time.time = lambda: self.now() + self.off_s
        sleep = time.sleep
        # A loop that waits for another process waits; a rest is over at once.
        time.sleep = lambda seconds: sleep(seconds) if seconds < _REST_S else self.add(seconds)

    def now(self) -> float:
        if not self.held:
            self.base_s = self.monotonic()
        self.add(1e-6)
        return self.base_s + self.extra_s

    def hold(self, held: bool) -> None:
        if self.held and not held:  # what went by meanwhile is not made up for
            self.extra_s -= self.monotonic() - self.base_s
        self.held = held

    def add(self, seconds: float) -> None:
        self.extra_s += seconds

    def run(self, batch: int) -> None:
        self.add(self.factor * (_RUN_S + batch * _FACE_S))


class Device:
    """The driver's double as TensorRT uses it: the current context, streams, captures."""

    def __init__(self) -> None:
        self.cuda = ctypes.CDLL("libcuda.so.1")
        self.cuda.cuInit(0)
        self.callbacks: list[Any] = []
        self.kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

    def gpu(self) -> tuple[str, str]:
        """Of the current context, else of the first device, as CUDA's runtime takes it."""
        number = ctypes.c_int()
        if self.cuda.cuCtxGetDevice(ctypes.byref(number)):
            number.value = 0
        name, parts = ctypes.create_string_buffer(64), []
        self.cuda.cuDeviceGetName(name, 64, number)
        for attribute in (75, 76):  # compute capability, major and minor
            value = ctypes.c_int()
            self.cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, number)
            parts.append(str(value.value))
        return name.value.decode(), ".".join(parts)

    def too_old(self) -> bool:
        """For TensorRT built with CUDA 12, the oldest of these boards."""
        version = ctypes.c_int()
        self.cuda.cuDriverGetVersion(ctypes.byref(version))
        return version.value < 12000

    def launch(self, stream: int, work: Callable[[], None]) -> None:
        callback = self.kind(lambda data: work())
        if self.capturing(stream):
            self.callbacks.append(callback)  # a graph calls it again
        status = self.cuda.cuLaunchHostFunc(ctypes.c_void_p(stream), callback, None)
        assert status == 0, f"the driver's double refuses the launch: {status}"

    def capturing(self, stream: int) -> bool:
        status = ctypes.c_int()
        self.cuda.cuStreamIsCapturing(ctypes.c_void_p(stream), ctypes.byref(status))
        return bool(status.value)


def install(home: Path, board: dict[str, Any], clock: ClockDouble) -> TensorRTDouble:
    """TensorRT's double in this process."""
    os.environ["DOUBLE_FILES"] = str(home / "files")
    trt, device = TensorRTDouble(board["tensorrt"], tuple(board["header"])), Device()
    trt.gpu, trt.launch, trt.capturing = device.gpu, device.launch, device.capturing
    trt.on_run, trt.driver_too_old = clock.run, device.too_old
    if board["keeps"]:
        trt.keeps = lambda node, kind, depthwise: board["keeps"] if kind == "int8" else None
    trt.contexts = board["contexts"]
    if not board["rtx"]:
        sys.modules["tensorrt_rtx"] = None  # type: ignore[assignment]
    return trt


def main(home: Path) -> None:
    """Serve until the FIFO brings nothing."""
    board = json.loads((home / "board.json").read_text())
    clock = ClockDouble()
    trt = install(home, board, clock)
    from fr_edge.cli.main import run

    while request := (home / "request").read_text():
        folder, path, *args = request.split("\0")[:-1]
        os.chdir(folder)
        os.environ["PATH"] = path
        # What the installed packages of this board are, as of now.
        state = (home / "installed").read_text().split() if (home / "installed").exists() else []
        sys.modules["tensorrt"] = trt.module if "tensorrt" in state else None  # type: ignore[assignment]
        # About as many runs in an hour as elsewhere in a minute; `accept` has ten minutes for all.
        clock.factor = 15.0 if "1h" in args else 0.2 if args[0] == "accept" else 1.0
        clock.hold(args[0] in ("benchmark", "accept"))
        with (
            (home / "out").open("w") as out,
            (home / "err").open("w") as err,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                code = run(args)
            except BaseException:
                traceback.print_exc()
                code = 99
        (home / "transcript").write_text("\n".join(trt.transcript))
        (home / "done").write_text(f"{code}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
