"""A Jetson's own tools, tegrastats and nvpmodel, for what its files do not report."""

import os
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from .sensors import Reading, read_text

_FIRST_LINE_S = 2.0  # tegrastats may take to write its first line
_ANSWER_S = 5.0  # nvpmodel may take
_MAX_TEXT = 1 << 14  # bytes kept of what it wrote
_COLDEST_C = -50  # a sensor that is off reports -256

_silent: set[str] = set()  # tools that did not answer in time, which this process asks no more


def parse_tegrastats(line: str) -> Reading:
    """Read one line of tegrastats, of JetPack 4 to 7.

    Args:
        line: The line; any other text gives an empty reading.
    """
    power = {
        name: float(now)
        for name, now in re.findall(
            r"\b((?:V|POM)\w*|GPU|CPU|SOC|CV|SYS5V) (-?\d+)(?:mW)?/-?\d+", line
        )
    }
    temperatures = {
        name.lower(): float(value)
        for name, value in re.findall(r"\b(\w+)@(-?\d+(?:\.\d+)?)C\b", line)
        if float(value) > _COLDEST_C and name != "PMIC"  # which reports 100 or 50 always
    }
    clocks: dict[str, float] = {}
    cpus = re.search(r"\bCPU \[([^\]]*)\](?:@\d+)?", line)  # each core's own clock, or one of all
    if cpus and (values := re.findall(r"@(\d+)", cpus[0])):
        clocks["cpu"] = float(max(map(int, values)))
    if gpu := re.search(r"\bGR3D_FREQ (?:\d+%)?@\[?(\d+)", line):
        clocks["gpu"] = float(gpu[1])
    if memory := re.search(r"\bEMC_FREQ (?:\d+%)?@(\d+)", line):
        clocks["memory"] = float(memory[1])
    loads = re.search(r"\bGR3D_FREQ (\d+)%", line)
    return Reading(
        power_mw=power,
        temperature_c=temperatures,
        clock_mhz=clocks,
        load_percent={"gpu": float(loads[1])} if loads else {},
    )


class Tegrastats:
    """tegrastats, started when it is first read and running until it is closed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._started = False
        self._text = b""

    def read(self) -> Reading:
        """The newest line; an empty reading where there is no tegrastats or no line."""
        if not self._started:
            self._started = True
            self._process = _start()
        if self._process is None or self._process.stdout is None:
            return Reading()
        stream, end = self._process.stdout, time.monotonic() + _FIRST_LINE_S
        while select.select([stream], [], [], self._patience_s(end))[0]:
            block = os.read(stream.fileno(), 1 << 16)
            if not block:
                break
            self._text = (self._text + block)[-_MAX_TEXT:]
        if b"\n" not in self._text:
            _silent.add(str(self._process.args[0]))  # type: ignore[index]
            self.close()
        lines = self._text.split(b"\n")[:-1]  # the last may not be complete
        return parse_tegrastats(lines[-1].decode(errors="replace")) if lines else Reading()

    def _patience_s(self, end: float) -> float:
        return 0.0 if b"\n" in self._text else max(0.0, end - time.monotonic())

    def close(self) -> None:
        """End tegrastats; closing twice does nothing."""
        process, self._process = self._process, None
        if process is not None:
            _end(process)

    def __enter__(self) -> "Tegrastats":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _start() -> "subprocess.Popen[bytes] | None":
    return _open("tegrastats", "--interval", "100")


def _open(name: str, *args: str) -> "subprocess.Popen[bytes] | None":
    """A tool in a process group of its own; None where it is missing or did not answer before."""
    tool = shutil.which(name)
    if not tool or tool in _silent:
        return None
    try:
        return subprocess.Popen(
            [tool, *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        return None


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a tool and what it started, without waiting for a pipe that somebody else holds."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdout is not None:
        process.stdout.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_ANSWER_S)


def power_modes(root: Path = Path("/")) -> dict[int, str]:
    """The power modes of this board's nvpmodel table: number -> name.

    Args:
        root: Of the file system.

    Returns:
        For example {0: "15W", 1: "25W", 2: "MAXN_SUPER"}; empty where there is no table.
    """
    rows = re.findall(
        r"^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>",
        read_text(root / "etc" / "nvpmodel.conf"),
        re.MULTILINE,
    )
    return {int(number): name for number, name in rows}


def fastest_mode(modes: Mapping[int, str]) -> tuple[int, str] | None:
    """The power mode without a limit (MAXN_SUPER, else MAXN), else the one of most watts.

    Args:
        modes: Number -> name, as `power_modes` reads them. The numbers differ between boards: 0 is
            MAXN on an AGX Orin, and 15W on an Orin Nano Super.

    Returns:
        Number and name, None where there is no mode.
    """

    def rank(mode: tuple[int, str]) -> tuple[bool, bool, int]:
        name = mode[1].upper()
        watts = re.search(r"(\d+)W", name)
        return "MAXN_SUPER" in name, "MAXN" in name, int(watts[1]) if watts else 0

    return max(modes.items(), key=rank, default=None)


def power_mode() -> str:
    """The mode that `nvpmodel -q` names, such as 15W or MAXN; "" where it cannot be asked."""
    process = _open("nvpmodel", "-q")
    if process is None:
        return ""
    try:
        text, _ = process.communicate(timeout=_ANSWER_S)
    except subprocess.TimeoutExpired:
        _silent.add(str(process.args[0]))  # type: ignore[index]
        _end(process)
        return ""
    mode = re.search(r"NV Power Mode: *(.+)", text.decode(errors="replace"))
    return mode[1].strip() if mode and process.returncode == 0 else ""
