"""NVIDIA GPU cards through NVML, the driver's management library (package nvidia-ml-py).

Without the package, the library or a card everything is missing, never an error. NVML answers in
the process itself: no nvidia-smi is started.
"""

from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

from .device import selected_gpu
from .sensors import Reading

_THROTTLED = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""Bits of nvmlClocksEventReasons (nvml.h) that mean less speed than asked for."""


class NvidiaCards:
    """NVIDIA cards with NVML handles that are opened once; close it after use.

    These are the card that `use_gpu` selected, else CUDA's first; all of the machine's where CUDA
    finds none.
    """

    def __init__(self) -> None:
        """Open NVML; where that is not possible there are no cards."""
        self._nvml: Any = None
        self._handles: dict[int, Any] = {}  # by NVML's own number of the card
        try:
            nvml = import_module("pynvml")
        except ImportError:
            return
        try:
            nvml.nvmlInit()
        except nvml.NVMLError:
            return
        self._nvml = nvml
        # NVML numbers cards by the PCI bus, CUDA the fastest first: the bus identifies a card.
        gpu, count = selected_gpu(), self._ask(nvml.nvmlDeviceGetCount) or 0
        if gpu and gpu.bus_id and count > 1:
            handle = self._ask(nvml.nvmlDeviceGetHandleByPciBusId, gpu.bus_id)
            index = None if handle is None else self._ask(nvml.nvmlDeviceGetIndex, handle)
            self._handles = {} if index is None else {index: handle}
            return
        handles = {n: self._ask(nvml.nvmlDeviceGetHandleByIndex, n) for n in range(count)}
        self._handles = {n: handle for n, handle in handles.items() if handle is not None}

    def read(self) -> Reading:
        """Power, clocks, temperature, memory in use and throttling of the cards now."""
        power, clocks, temperatures, memory = {}, {}, {}, {}
        throttled: list[str] = []
        for index, handle in self._handles.items():
            nvml, card = self._nvml, f"gpu {index}"
            if (milliwatts := self._ask(nvml.nvmlDeviceGetPowerUsage, handle)) is not None:
                power[f"GPU {index}"] = float(milliwatts)
            for unit, clock in (("gpu", nvml.NVML_CLOCK_SM), ("memory", nvml.NVML_CLOCK_MEM)):
                if (mhz := self._ask(nvml.nvmlDeviceGetClockInfo, handle, clock)) is not None:
                    clocks[f"{unit} {index}"] = float(mhz)
            sensor = nvml.NVML_TEMPERATURE_GPU
            degrees = self._ask(nvml.nvmlDeviceGetTemperature, handle, sensor)
            if degrees is not None:
                temperatures[card] = float(degrees)
            if (info := self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)) is not None:
                memory[card] = info.used / 2**20
            # The name that old and new drivers know; the newer one needs driver 535.
            reasons = self._ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle) or 0
            throttled += [f"GPU {index}: {why}" for bit, why in _THROTTLED.items() if reasons & bit]
        return Reading(
            power_mw=power,
            temperature_c=temperatures,
            clock_mhz=clocks,
            memory_mb=memory,
            throttled=tuple(throttled),
        )

    def processes(self) -> tuple[str, ...]:
        """Programs that compute on a card now, as "name (pid)"."""
        programs: dict[int, str] = {}
        for handle in self._handles.values():
            for process in self._ask(self._nvml.nvmlDeviceGetComputeRunningProcesses, handle) or ():
                name = self._ask(self._nvml.nvmlSystemGetProcessName, process.pid)
                if isinstance(name, bytes):
                    name = name.decode(errors="replace")
                programs[process.pid] = f"{name or 'a process'} ({process.pid})"
        return tuple(programs.values())

    def close(self) -> None:
        """Close NVML; closing twice does nothing."""
        nvml, self._nvml, self._handles = self._nvml, None, {}
        if nvml is not None:
            with suppress(nvml.NVMLError):
                nvml.nvmlShutdown()

    def __enter__(self) -> "NvidiaCards":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _ask(self, query: Callable[..., Any], *args: Any) -> Any:
        """A query's answer, None where the card or driver does not give one."""
        try:
            return query(*args)
        except self._nvml.NVMLError:
            return None


def gpu_processes() -> tuple[str, ...]:
    """Programs that compute on a GPU card now; before a session is opened these are others'.

    Returns:
        "name (pid)" each; empty too where NVML does not report them, as on a Jetson.
    """
    with NvidiaCards() as cards:
        return cards.processes()
