"""GPU cards through NVML: what a card does not report is missing, and handles are opened once."""

import sys
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fr_edge.runtime.machine import device
from fr_edge.runtime.machine.device import Gpu, GpuList, find_gpus, use_gpu
from fr_edge.runtime.machine.monitor import watch
from fr_edge.runtime.machine.nvml import NvidiaCards, gpu_processes
from fr_edge.runtime.machine.sensors import Reading


class NvmlDouble(ModuleType):
    """A double of pynvml's functions: three cards, of which the last reports a temperature alone."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.cards: list[dict[str, Any]] = [
            {"power": 71_230, 1: 1980, 2: 2619, "celsius": 34, "reasons": 0, "used": 512},
            {"power": 350_100, 1: 1410, 2: 1593, "celsius": 83, "reasons": 0x24, "used": 2048},
            {"celsius": 45},
        ]
        self.pids: dict[int, list[int]] = {0: [4711, 12], 1: [4711]}
        self.names: dict[int, bytes | str] = {4711: b"/usr/bin/python3"}
        self.inits, self.shutdowns, self.handles = 0, 0, 0
        self.no_driver = False

    def nvmlInit(self) -> None:  # noqa: N802
        if self.no_driver:
            raise self.NVMLError("NVML Shared Library Not Found")
        self.inits += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.shutdowns += 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.cards)

    def nvmlDeviceGetHandleByPciBusId(self, bus: str) -> int:  # noqa: N802
        self.handles += 1
        cards = {"0000:01:00.0": 0, "0000:41:00.0": 1}
        if bus not in cards:
            raise self.NVMLError("Not Found")
        return cards[bus]

    def nvmlDeviceGetIndex(self, card: int) -> int:  # noqa: N802
        return card

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        self.handles += 1
        return index

    def _of(self, card: int, key: Any) -> Any:
        if key not in self.cards[card]:
            raise self.NVMLError("Not Supported")
        return self.cards[card][key]

    def nvmlDeviceGetPowerUsage(self, card: int) -> Any:  # noqa: N802
        return self._of(card, "power")

    def nvmlDeviceGetClockInfo(self, card: int, clock: int) -> Any:  # noqa: N802
        return self._of(card, clock)

    def nvmlDeviceGetTemperature(self, card: int, sensor: int) -> Any:  # noqa: N802
        assert sensor == self.NVML_TEMPERATURE_GPU
        return self._of(card, "celsius")

    def nvmlDeviceGetMemoryInfo(self, card: int) -> Any:  # noqa: N802
        return SimpleNamespace(used=self._of(card, "used") * 2**20)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, card: int) -> Any:  # noqa: N802
        return self._of(card, "reasons")

    def nvmlDeviceGetComputeRunningProcesses(self, card: int) -> Any:  # noqa: N802
        if card not in self.pids:
            raise self.NVMLError("Not Supported")
        return [SimpleNamespace(pid=pid) for pid in self.pids[card]]

    def nvmlSystemGetProcessName(self, pid: int) -> Any:  # noqa: N802
        if pid not in self.names:  # as in a container, which sees other process numbers
            raise self.NVMLError("Not Found")
        return self.names[pid]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> NvmlDouble:
    double = NvmlDouble()
    monkeypatch.setitem(sys.modules, "pynvml", double)
    return double


def test_cards(nvml: NvmlDouble) -> None:
    with NvidiaCards() as cards:
        reading = cards.read()
    assert reading.total_mw() == ("GPU 0 + GPU 1", 71_230 + 350_100)
    assert reading.clock_mhz == {"gpu 0": 1980, "memory 0": 2619, "gpu 1": 1410, "memory 1": 1593}
    assert reading.temperature_c == {"gpu 0": 34, "gpu 1": 83, "gpu 2": 45}
    assert reading.memory_mb == {"gpu 0": 512, "gpu 1": 2048}
    assert reading.throttled == ("GPU 1: power cap", "GPU 1: software thermal slowdown")
    assert (nvml.inits, nvml.shutdowns) == (1, 1)


def test_only_the_selected_card_counts(nvml: NvmlDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's first card is NVML's second: numbers differ, the PCI bus does not."""
    fast = Gpu("H100", "9.0", 81559, integrated=False, bus_id="0000:41:00.0")
    slow = Gpu("T4", "7.5", 15360, integrated=False, bus_id="0000:01:00.0")
    monkeypatch.setattr(device, "find_gpus", lambda: GpuList((fast, slow), "12.6", ""))
    with NvidiaCards() as cards:
        assert cards.read().total_mw() == ("GPU 1", 350_100)
        assert cards.read().throttled == ("GPU 1: power cap", "GPU 1: software thermal slowdown")
        assert cards.processes() == ("/usr/bin/python3 (4711)",)
    with use_gpu(1), NvidiaCards() as cards:
        reading = cards.read()
    assert reading.total_mw() == ("GPU 0", 71_230)
    assert reading.throttled == ()
    assert reading.clock_mhz == {"gpu 0": 1980, "memory 0": 2619}


def test_the_only_card_needs_no_bus(nvml: NvmlDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Jetson's GPU is on no PCI bus; whatever CUDA reports for it, NVML finds nothing there."""
    orin = Gpu("Orin", "8.7", 7620, integrated=True, bus_id="0000:00:00.0")
    monkeypatch.setattr(device, "find_gpus", lambda: GpuList((orin,), "12.6", ""))
    with NvidiaCards() as cards:
        assert cards.read().power_mw == {}  # none of several cards is it
    del nvml.cards[1:]
    with NvidiaCards() as cards:
        assert cards.read().power_mw == {"GPU 0": 71_230}


def test_programs_on_a_card(nvml: NvmlDouble) -> None:
    assert gpu_processes() == ("/usr/bin/python3 (4711)", "a process (12)")


def test_a_trace_opens_the_cards_once(nvml: NvmlDouble) -> None:
    with watch() as trace:
        time.sleep(1.2)
    assert len(trace.readings) >= 3
    assert all(reading.clock_mhz["gpu 1"] == 1410 for reading in trace.readings)
    assert (nvml.inits, nvml.shutdowns, nvml.handles) == (1, 1, 3)


def test_without_a_driver_everything_is_missing(nvml: NvmlDouble) -> None:
    nvml.no_driver = True
    cards = NvidiaCards()
    assert (cards.read(), cards.processes()) == (Reading(), ())
    cards.close()
    cards.close()
    assert nvml.shutdowns == 0


def test_without_the_package_everything_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as Python marks what cannot be imported
    with NvidiaCards() as cards:
        assert cards.read() == Reading()
    assert gpu_processes() == ()


@pytest.mark.skipif(bool(find_gpus().gpus), reason="asks the real library without a driver")
def test_the_real_library_without_a_driver() -> None:
    pytest.importorskip("pynvml")
    with NvidiaCards() as cards:
        assert (cards.read(), cards.processes()) == (Reading(), ())


@pytest.mark.skipif(not find_gpus().gpus, reason="needs an NVIDIA GPU")
def test_the_real_library_on_a_gpu() -> None:
    pytest.importorskip("pynvml")
    with NvidiaCards() as cards:
        reading = cards.read()
    assert 0 < reading.temperature_c["gpu 0"] < 120
    assert reading.memory_mb["gpu 0"] > 0
