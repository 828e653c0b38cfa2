"""A machine's sensors, read from the kernel's files: power, temperatures, clocks, throttling, fan.

A sensor that is absent or cannot be read is missing, never zero and never an error. Every function
takes the root of the file system, so that a tree of recorded files is read as a machine is.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

TOTAL = (
    ("VDD_IN",),  # Orin NX, Orin Nano, Xavier NX
    ("POM_5V_IN",),  # Nano
    ("VIN",),  # Thor's board input; its other rails are no whole: 83 W together, at 124 W of VIN
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)
"""Rails that together are a module's whole power."""

_GPU = "sys/class/devfreq/*[.-]g[apv0-9u]*"  # a Jetson's: 17000000.ga10b, 57000000.gpu, gpu-gpc-0
_OVER_CURRENT = {"oc1": "under-voltage", "oc2": "average over-current", "oc3": "over-current peaks"}
"""Events that a Jetson Orin or Thor counts (the Developer Guide, `soctherm_oc`)."""
_FREQUENCIES = {
    "cpu": ("sys/devices/system/cpu/cpu[0-9]*/cpufreq", "scaling_", 1e3),
    "gpu": (_GPU, "", 1e6),
}
"""Unit -> folders with its clocks, prefix of the files' names, their units per MHz."""
_COLDEST = -50_000  # thousandths of a degree Celsius; a sensor that is off reports -256 degrees


@dataclass(frozen=True)
class Reading:
    """What a machine's sensors report at one moment; what they do not report is missing.

    Attributes:
        power_mw: By rail, or by GPU card.
        energy_uj: By counter, which grows and wraps at `wrap_uj`.
        temperature_c: By sensor.
        clock_mhz: By unit.
        load_percent: By unit.
        memory_mb: In use by the machine, by this process, and on each GPU card.
        fan: `percent` of full power, and `rpm`.
        throttled: Reasons that slow the machine down now.
    """

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
        """The rails of the whole module (or the GPU cards), and their power in mW."""
        for rails in TOTAL:
            if all(rail in self.power_mw for rail in rails):
                return " + ".join(rails), sum(self.power_mw[rail] for rail in rails)
        cards = [name for name in self.power_mw if name.startswith("GPU ")]
        return (" + ".join(cards), sum(self.power_mw[c] for c in cards)) if cards else None


@dataclass(frozen=True)
class ClockSetting:
    """How a unit's clock is set: free to move (DVFS), or held, as `jetson_clocks` holds it.

    Attributes:
        governor: The kernel's policy, None where it is not reported.
        min_mhz: Lowest clock allowed now.
        max_mhz: Highest clock allowed now.
        held: Whether both are the same.
    """

    governor: str | None
    min_mhz: float
    max_mhz: float
    held: bool


def read_sysfs(root: Path = Path("/")) -> Reading:
    """Read the kernel's files: INA3221 rails, RAPL counters, thermal zones, clocks, memory.

    Args:
        root: Of the file system.
    """
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
    """Power sensors that exist and that this user may not read.

    Args:
        root: Of the file system.

    Returns:
        Their paths.
    """
    counters = sorted(root.glob("sys/class/powercap/intel-rapl:[0-9]/energy_uj"))
    return tuple(str(path) for path in counters if not os.access(path, os.R_OK))


def throttle_counts(root: Path = Path("/")) -> dict[str, int]:
    """Events since boot that slowed the machine: throttled CPU cores (x86), power supply (Jetson).

    Args:
        root: Of the file system.

    Returns:
        Reason -> count; a reason that this machine does not count is missing.
    """
    counts = {}
    cores = [
        value
        for path in root.glob("sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count")
        if (value := _number(path)) is not None
    ]
    if cores:
        counts["the CPU's cores"] = int(sum(cores))
    for path in _hwmon(root, "soctherm_oc", "oc[1-3]_event_cnt"):
        if (value := _number(path)) is not None:
            counts[_OVER_CURRENT[path.name[:3]]] = int(value)
    return counts


def read_alerts(root: Path = Path("/")) -> tuple[str, ...]:
    """A Jetson's throttle alerts that are active now.

    Args:
        root: Of the file system.

    Returns:
        The units that are slowed down, such as "gpu".
    """
    return tuple(
        kind.removesuffix("-throttle-alert")
        for device in sorted(root.glob("sys/class/thermal/cooling_device*"))
        if (kind := read_text(device / "type")).endswith("-throttle-alert")
        and (_number(device / "cur_state") or 0) > 0
    )


def read_fan(root: Path = Path("/")) -> dict[str, float]:
    """A Jetson's fan.

    Args:
        root: Of the file system.

    Returns:
        `percent` of full power, and `rpm`, as far as they are reported.
    """
    fan = {}
    for path in _hwmon(root, "pwmfan", "pwm1"):
        if (value := _number(path)) is not None:
            fan["percent"] = round(value / 2.55, 1)
    for path in _hwmon(root, "pwm_tach", "rpm"):
        if (value := _number(path)) is not None:
            fan["rpm"] = value
    return fan


def clock_settings(root: Path = Path("/")) -> dict[str, ClockSetting]:
    """How the clocks of the CPU and of a Jetson's GPU are set.

    Args:
        root: Of the file system.

    Returns:
        "cpu" and "gpu" -> setting; a unit whose settings are not reported is missing.
    """
    settings = {}
    for unit, (pattern, prefix, per_mhz) in _FREQUENCIES.items():
        for folder in sorted(root.glob(pattern))[:1]:
            low = _number(folder / f"{prefix}min_freq")
            high = _number(folder / f"{prefix}max_freq")
            if low is None or high is None:
                continue
            governor = read_text(folder / f"{prefix}governor") or None
            settings[unit] = ClockSetting(governor, low / per_mhz, high / per_mhz, low == high)
    return settings


def read_text(path: Path) -> str:
    """A small file's text, stripped; "" where it does not exist or may not be read.

    Args:
        path: The file.
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(read_text(path))
    except ValueError:
        return None


def _hwmon(root: Path, name: str, file: str) -> Iterator[Path]:
    """Files of the chips of that name; their numbers change from boot to boot."""
    for chip in sorted(root.glob("sys/class/hwmon/hwmon*")):
        if read_text(chip / "name") == name:
            yield from sorted(chip.glob(file))


def _ina3221(root: Path) -> dict[str, float]:
    """Milliwatts by rail: millivolts times milliamperes (hwmon, JetPack 5 and later), or as the
    older driver gives it (iio, JetPack 4)."""
    rails: dict[str, float] = {}
    for label in root.glob("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in[1-3]_label"):
        channel = label.name[2]
        volts = _number(label.with_name(f"in{channel}_input"))
        amperes = _number(label.with_name(f"curr{channel}_input"))
        if volts is not None and amperes is not None and (name := read_text(label)):
            rails[name] = volts * amperes / 1000
    for label in root.glob("sys/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_[0-2]"):
        power = _number(label.with_name(f"in_power{label.name[-1]}_input"))
        if power is not None and (name := read_text(label)):
            rails[name] = power
    return rails


def _ina238(root: Path) -> dict[str, float]:
    """Thor's board input; the chip gives microwatts itself. No tree of a Thor is on record: the name
    is read from the channel's label, or from the chip's, as the kernel may give either."""
    rails = {}
    for power in _hwmon(root, "ina238", "power1_input"):
        microwatts = _number(power)
        name = read_text(power.with_name("in1_label")) or read_text(power.with_name("label"))
        if microwatts is not None and name:
            rails[name] = microwatts / 1000
    return rails


def _rapl(root: Path) -> tuple[dict[str, int], dict[str, int]]:
    energy, wrap = {}, {}
    for zone in sorted(root.glob("sys/class/powercap/intel-rapl:[0-9]")):
        used, limit = _number(zone / "energy_uj"), _number(zone / "max_energy_range_uj")
        if used is not None and limit is not None:
            name = read_text(zone / "name") or zone.name
            energy[name], wrap[name] = int(used), int(limit)
    return energy, wrap


def _thermal_zones(root: Path) -> dict[str, float]:
    zones = {}
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        value = _number(zone / "temp")
        if value is not None and value > _COLDEST:
            zones[read_text(zone / "type").lower() or zone.name] = value / 1000
    return zones


def _clocks(root: Path) -> dict[str, float]:
    """The fastest core's clock, for the others may sleep, and that of a Jetson's GPU."""
    files = {
        "cpu": ("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq", 1e3),
        "gpu": (f"{_GPU}/cur_freq", 1e6),
    }
    clocks = {}
    for unit, (pattern, per_mhz) in files.items():
        values = [v / per_mhz for path in root.glob(pattern) if (v := _number(path)) is not None]
        if values:
            clocks[unit] = max(values)
    return clocks


def _loads(root: Path) -> dict[str, float]:
    """A Jetson's GPU load, which the kernel gives in thousandths."""
    paths = root.glob(f"{_GPU}/device/load")
    values = [v / 10 for path in paths if (v := _number(path)) is not None]
    return {"gpu": max(values)} if values else {}


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
    rows = [line.split() for line in read_text(path).splitlines()]
    return {row[0].rstrip(":"): float(row[1]) for row in rows if len(row) == 3 and row[2] == "kB"}
