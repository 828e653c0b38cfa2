"""What a board says of itself at one moment: power, temperatures, clocks, throttling.

What a sensor does not say is missing, never zero. Paths are below a root, so that a tree of
recorded files is read as a machine is.
"""

from dataclasses import dataclass, field
from pathlib import Path

TOTAL = (
    ("VDD_IN",),
    ("POM_5V_IN",),
    ("VIN",),
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
)
"""Rails that are a module's whole power: Orin NX, Orin Nano and Xavier NX; Nano; Thor; the sums for
AGX Orin and AGX Xavier, whose one total no sensor gives."""


@dataclass(frozen=True)
class Reading:
    """`power_mw` by rail, `energy_uj` by counter (it grows, and wraps at `wrap_uj`),
    `temperature_c` by sensor, `clock_mhz` by unit, `throttled` reasons."""

    power_mw: dict[str, float] = field(default_factory=dict)
    energy_uj: dict[str, int] = field(default_factory=dict)
    wrap_uj: dict[str, int] = field(default_factory=dict)
    temperature_c: dict[str, float] = field(default_factory=dict)
    clock_mhz: dict[str, float] = field(default_factory=dict)
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
        power_mw=_ina3221(root),
        energy_uj=energy,
        wrap_uj=wrap,
        temperature_c=_thermal_zones(root),
        clock_mhz=_clocks(root),
    )


def throttle_count(root: Path = Path("/")) -> int | None:
    """How often the CPU's cores were throttled since boot (x86); None where it is not told."""
    counts = [
        value
        for path in root.glob("sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count")
        if (value := _number(path)) is not None
    ]
    return int(sum(counts)) if counts else None


def _ina3221(root: Path) -> dict[str, float]:
    """Milliwatts by rail: millivolts times milliamperes (hwmon, JetPack 5 and later), or as the
    older driver gives it (iio, JetPack 4)."""
    rails: dict[str, float] = {}
    for label in root.glob("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in[1-3]_label"):
        number = label.name[2]
        volts = _number(label.with_name(f"in{number}_input"))
        amperes = _number(label.with_name(f"curr{number}_input"))
        if volts is not None and amperes is not None and (name := _text(label)):
            rails[name] = volts * amperes / 1000
    for label in root.glob("sys/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_[0-2]"):
        power = _number(label.with_name(f"in_power{label.name[-1]}_input"))
        if power is not None and (name := _text(label)):
            rails[name] = power
    return rails


def _rapl(root: Path) -> tuple[dict[str, int], dict[str, int]]:
    energy, wrap = {}, {}
    for zone in sorted(root.glob("sys/class/powercap/intel-rapl:[0-9]")):
        used, most = _number(zone / "energy_uj"), _number(zone / "max_energy_range_uj")
        if used is not None and most is not None:
            name = _text(zone / "name") or zone.name
            energy[name], wrap[name] = int(used), int(most)
    return energy, wrap


def _thermal_zones(root: Path) -> dict[str, float]:
    zones = {}
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        value = _number(zone / "temp")
        if value is not None and value > -50_000:
            zones[_text(zone / "type").lower() or zone.name] = value / 1000
    return zones


def _clocks(root: Path) -> dict[str, float]:
    """The fastest core's clock, for the others may sleep, and that of a Jetson's GPU."""
    places = {
        "cpu": ("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq", 1e3),
        "gpu": ("sys/class/devfreq/*.g[apv0-9u]*/cur_freq", 1e6),
    }
    clocks = {}
    for unit, (pattern, per_mhz) in places.items():
        found = [v / per_mhz for path in root.glob(pattern) if (v := _number(path)) is not None]
        if found:
            clocks[unit] = max(found)
    return clocks


def _number(path: Path) -> float | None:
    try:
        return float(_text(path))
    except ValueError:
        return None


def _text(path: Path) -> str:
    """A sensor that may not be read, or has gone, says nothing."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
