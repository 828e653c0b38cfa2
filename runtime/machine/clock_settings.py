"""How a machine's clocks are set: free to move (DVFS), or held, as `jetson_clocks` holds them."""

from pathlib import Path
from typing import Any

from .sysfs import GPU, number, text

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
