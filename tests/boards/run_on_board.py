"""Processes on pretend boards: each runs `fr-edge` commands that a FIFO brings, one after the other.

    python run_on_board.py    begins a board for each HOME that a line of stdin names

HOME has board.json, environment.json, and request and done as FIFOs. A board is a fork of this
process, which has loaded the libraries: loading them again for every board would take longer than
what the boards do.

The driver is libcuda_double.c, the files are board_files_double.c's, TensorRT is its double, whose
work is queued through the driver. The clock is a double too: a run of an engine takes 90 ms and 0.2 ms
for each face, whatever it takes here, so that ten seconds hold the hundred runs that a benchmark needs
and few more; the figures mean nothing.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess  # noqa: F401  (before the clock is replaced)
import sys
import tempfile  # noqa: F401
import threading  # noqa: F401
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy  # noqa: F401  (before the board's files are in place)
import onnxruntime  # noqa: F401

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from tensorrt_double import TensorRTDouble  # noqa: E402

LOADED = (
    *("fr_edge.cli.main", "fr_edge.runtime.acceptance.accept"),
    *("fr_edge.calibration.calibrate", "fr_edge.export.export", "fr_edge.runtime.build"),
    *("fr_edge.runtime.benchmark.benchmark", "fr_edge.runtime.machine.doctor"),
    *("fr_edge.runtime.evaluation.evaluate", "fr_edge.runtime.evaluation.verify"),
    *("fr_edge.runtime.report.report", "fr_edge.runtime.tensorrt_session", "rich.table"),
)
if find_spec("matplotlib"):
    LOADED = (*LOADED, "matplotlib.figure", "matplotlib.backends.backend_svg")

_REST_S = 0.2
_RUN_S, _FACE_S = 0.090, 0.0002


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
    if board["sample"]:
        import_module("fr_edge.runtime.acceptance.accept").make_sample_bundle = lambda root, track: (
            shutil.copytree(board["sample"], root)
        )
    if not board["rtx"]:
        sys.modules["tensorrt_rtx"] = None  # type: ignore[assignment]
    return trt


def main(home: Path, clock: ClockDouble) -> None:
    """Serve until the FIFO brings nothing."""
    board = json.loads((home / "board.json").read_text())
    trt = install(home, board, clock)
    from fr_edge.cli.main import run

    while request := (home / "request").read_text():
        folder, path, *args = request.split("\0")[:-1]
        os.chdir(folder)
        os.environ["PATH"] = path
        # What the installed packages of this board are, as of now.
        state = (home / "installed").read_text().split() if (home / "installed").exists() else []
        sys.modules["tensorrt"] = trt.module if "tensorrt" in state else None  # type: ignore[assignment]
        # About as many runs in an hour as elsewhere in a minute.
        clock.factor = 8.5 if "1h" in args else 1.0
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


def begin(home: Path, clock: ClockDouble) -> int:
    """Fork a board; gives its number."""
    if process := os.fork():
        return process
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(json.loads((home / "environment.json").read_text()))
    log = os.open(home / "log", os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = 1
    try:
        main(home, clock)
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def serve() -> None:
    """Begin boards until stdin ends."""
    clock = ClockDouble()  # first: modules keep the functions that tell the time
    for name in LOADED:
        import_module(name)
    commands: Any = import_module("fr_edge.cli.main").COMMANDS
    for name in commands:
        import_module(f"fr_edge.cli.{name.replace('-', '_')}")
    if find_spec("matplotlib"):
        import_module("fr_edge.runtime.report.report")._template()
    choice = import_module("kernel_choice")
    vars(import_module("fr_edge.runtime.cpu_kernel_selection"))[choice.RACE.rpartition(".")[2]] = (
        choice.one_on_integers
    )
    # The parts of a run take what the clock says: they are timed in short.
    vars(import_module("fr_edge.runtime.benchmark.breakdown"))["_REPEATS"] = 3
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the parent does not wait for them
    for line in iter(sys.stdin.readline, ""):
        print(begin(Path(line.rstrip("\n")), clock), flush=True)


if __name__ == "__main__":
    serve()
