"""Signs that a machine runs slower than it was asked to, and its fan."""

from pathlib import Path

from .sysfs import hwmon, number, text

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
