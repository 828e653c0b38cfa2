"""The kernel's small files, read so that a sensor that says nothing is missing, never an error."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GPU = "sys/class/devfreq/*[.-]g[apv0-9u]*"
"""A Jetson's GPU: 17000000.ga10b, 57000000.gpu, gpu-gpc-0."""


def number(path: Path) -> float | None:
    try:
        return float(text(path))
    except ValueError:
        return None


def text(path: Path) -> str:
    """A file that may not be read, or has gone, is empty."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def hwmon(root: Path, name: str, file: str) -> Iterator[Path]:
    """Files of the chips of that name; their numbers change from boot to boot."""
    for chip in sorted(root.glob("sys/class/hwmon/hwmon*")):
        if text(chip / "name") == name:
            yield from sorted(chip.glob(file))


# Signs that a machine runs slower than it was asked to, and its fan.

_OVER_CURRENT = {"oc1": "under-voltage", "oc2": "average over-current", "oc3": "over-current peaks"}
"""The events that a Jetson Orin or Thor counts (the Developer Guide, `soctherm_oc`)."""


def throttle_counts(root: Path = Path("/")) -> dict[str, int]:
    """Events since boot by reason: throttled CPU cores (x86), power supply events (Jetson).

    A reason that this machine does not count is missing.
    """
    counts = {}
    cores = [
        value
        for path in root.glob("sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count")
        if (value := number(path)) is not None
    ]
    if cores:
        counts["the CPU's cores"] = int(sum(cores))
    for path in hwmon(root, "soctherm_oc", "oc[1-3]_event_cnt"):
        if (value := number(path)) is not None:
            counts[_OVER_CURRENT[path.name[:3]]] = int(value)
    return counts


def read_alerts(root: Path = Path("/")) -> tuple[str, ...]:
    """A Jetson's cooling devices of the kind `gpu-throttle-alert` that act now."""
    return tuple(
        kind.removesuffix("-throttle-alert")
        for device in sorted(root.glob("sys/class/thermal/cooling_device*"))
        if (kind := text(device / "type")).endswith("-throttle-alert")
        and (number(device / "cur_state") or 0) > 0
    )


def read_fan(root: Path = Path("/")) -> dict[str, float]:
    """A Jetson's: `percent` of full power, `rpm`."""
    fan = {}
    for path in hwmon(root, "pwmfan", "pwm1"):
        if (value := number(path)) is not None:
            fan["percent"] = round(value / 2.55, 1)
    for path in hwmon(root, "pwm_tach", "rpm"):
        if (value := number(path)) is not None:
            fan["rpm"] = value
    return fan


# How a machine's clocks are set: free to move (DVFS), or held, as `jetson_clocks` holds them.

_UNITS = {
    "cpu": ("sys/devices/system/cpu/cpu[0-9]*/cpufreq", "scaling_", 1e3),
    "gpu": (GPU, "", 1e6),
}


def clock_settings(root: Path = Path("/")) -> dict[str, Any]:
    """By unit (`cpu`, `gpu`): `governor`, `min_mhz`, `max_mhz` as allowed now, and `held` where
    both are the same; a unit whose settings the kernel does not tell is missing."""
    found = {}
    for unit, (pattern, prefix, per_mhz) in _UNITS.items():
        for place in sorted(root.glob(pattern))[:1]:
            least = number(place / f"{prefix}min_freq")
            most = number(place / f"{prefix}max_freq")
            if least is None or most is None:
                continue
            found[unit] = {
                "governor": text(place / f"{prefix}governor") or None,
                "min_mhz": least / per_mhz,
                "max_mhz": most / per_mhz,
                "held": least == most,
            }
    return found


# What a board says of itself at one moment: power, temperatures, clocks, throttling.
#
# What a sensor does not say is missing, never zero. Paths are below a root, so that a tree of
# recorded files is read as a machine is.

TOTAL = (
    ("VDD_IN",),
    ("POM_5V_IN",),
    ("VIN",),
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
)
"""Rails that are a module's whole power: Orin NX, Orin Nano and Xavier NX; Nano; Thor's board input; the
sums for AGX Orin, for Thor where that input is not told, and for AGX Xavier."""


@dataclass(frozen=True)
class Reading:
    """`power_mw` by rail, `energy_uj` by counter (it grows, and wraps at `wrap_uj`),
    `temperature_c` by sensor, `clock_mhz` and `load_percent` by unit, `memory_mb` in use by the
    machine and by this process, `fan` as `percent` and `rpm`, `throttled` reasons."""

    power_mw: dict[str, float] = field(default_factory=dict)
    energy_uj: dict[str, int] = field(default_factory=dict)
    wrap_uj: dict[str, int] = field(default_factory=dict)
    temperature_c: dict[str, float] = field(default_factory=dict)
    clock_mhz: dict[str, float] = field(default_factory=dict)
    load_percent: dict[str, float] = field(default_factory=dict)
    memory_mb: dict[str, float] = field(default_factory=dict)
    fan: dict[str, float] = field(default_factory=dict)
    throttled: tuple[str, ...] = ()

    def total_mw(self) -> tuple[str, float] | None:
        """The whole module's (or the GPU card's) power, and the rails it is of."""
        for rails in TOTAL:
            if all(rail in self.power_mw for rail in rails):
                return " + ".join(rails), sum(self.power_mw[rail] for rail in rails)
        cards = [name for name in self.power_mw if name.startswith("GPU ")]
        return (" + ".join(cards), sum(self.power_mw[c] for c in cards)) if cards else None


def read_sysfs(root: Path = Path("/")) -> Reading:
    """What the kernel's files tell: INA3221 rails, RAPL counters, thermal zones, clocks."""
    energy, wrap = _rapl(root)
    return Reading(
        power_mw={**_ina3221(root), **_ina238(root)},
        energy_uj=energy,
        wrap_uj=wrap,
        temperature_c=_thermal_zones(root),
        clock_mhz=_clocks(root),
        load_percent=_loads(root),
        memory_mb=_memory(root),
        fan=read_fan(root),
        throttled=read_alerts(root),
    )


def denied(root: Path = Path("/")) -> tuple[str, ...]:
    """Power sensors that are there and may not be read by this user."""
    counters = sorted(root.glob("sys/class/powercap/intel-rapl:[0-9]/energy_uj"))
    return tuple(str(path) for path in counters if not os.access(path, os.R_OK))


def _ina3221(root: Path) -> dict[str, float]:
    """Milliwatts by rail: millivolts times milliamperes (hwmon, JetPack 5 and later), or as the
    older driver gives it (iio, JetPack 4)."""
    rails: dict[str, float] = {}
    for label in root.glob("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in[1-3]_label"):
        channel = label.name[2]
        volts = number(label.with_name(f"in{channel}_input"))
        amperes = number(label.with_name(f"curr{channel}_input"))
        if volts is not None and amperes is not None and (name := text(label)):
            rails[name] = volts * amperes / 1000
    for label in root.glob("sys/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_[0-2]"):
        power = number(label.with_name(f"in_power{label.name[-1]}_input"))
        if power is not None and (name := text(label)):
            rails[name] = power
    return rails


def _ina238(root: Path) -> dict[str, float]:
    """Thor's board input; the chip gives microwatts itself."""
    rails = {}
    for label in hwmon(root, "ina238", "in1_label"):
        microwatts = number(label.with_name("power1_input"))
        if microwatts is not None and (name := text(label)):
            rails[name] = microwatts / 1000
    return rails


def _rapl(root: Path) -> tuple[dict[str, int], dict[str, int]]:
    energy, wrap = {}, {}
    for zone in sorted(root.glob("sys/class/powercap/intel-rapl:[0-9]")):
        used, most = number(zone / "energy_uj"), number(zone / "max_energy_range_uj")
        if used is not None and most is not None:
            name = text(zone / "name") or zone.name
            energy[name], wrap[name] = int(used), int(most)
    return energy, wrap


def _thermal_zones(root: Path) -> dict[str, float]:
    zones = {}
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        value = number(zone / "temp")
        if value is not None and value > -50_000:
            zones[text(zone / "type").lower() or zone.name] = value / 1000
    return zones


def _clocks(root: Path) -> dict[str, float]:
    """The fastest core's clock, for the others may sleep, and that of a Jetson's GPU."""
    places = {
        "cpu": ("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq", 1e3),
        "gpu": (f"{GPU}/cur_freq", 1e6),
    }
    clocks = {}
    for unit, (pattern, per_mhz) in places.items():
        found = [v / per_mhz for path in root.glob(pattern) if (v := number(path)) is not None]
        if found:
            clocks[unit] = max(found)
    return clocks


def _loads(root: Path) -> dict[str, float]:
    """A Jetson's GPU's, which the kernel gives in thousandths."""
    found = [v / 10 for path in root.glob(f"{GPU}/device/load") if (v := number(path)) is not None]
    return {"gpu": max(found)} if found else {}


def _memory(root: Path) -> dict[str, float]:
    """What is in use, the GPU's too where it shares the CPU's memory (Jetson)."""
    machine, process = _kilobytes(root / "proc/meminfo"), _kilobytes(root / "proc/self/status")
    memory = {}
    if {"MemTotal", "MemAvailable"} <= set(machine):
        memory["machine"] = (machine["MemTotal"] - machine["MemAvailable"]) / 1024
    if "VmRSS" in process:
        memory["process"] = process["VmRSS"] / 1024
    return memory


def _kilobytes(path: Path) -> dict[str, float]:
    rows = [line.split() for line in text(path).splitlines()]
    return {row[0].rstrip(":"): float(row[1]) for row in rows if len(row) == 3 and row[2] == "kB"}
