"""What a benchmark demands of the machine, and what it finds: power mode, others on the GPU."""

from collections.abc import Iterator
from pathlib import Path

from ...bundle.manifest import Bundle
from ...documents import read_toml
from ...errors import DataError
from ..machine.monitor import SensorTrace
from ..machine.sensors import Reading

POLICY = "policy.toml"
"""The bundle's gates; its table `[benchmark]` is this file's, the rest `verify`'s."""

_BUSY_PERCENT = 10.0


def demanded_power_mode(bundle: Bundle) -> str | None:
    """`power_mode` of the policy's table `[benchmark]`; None without one.

    Raises DataError for a policy that is none, or another key.
    """
    if POLICY not in bundle:
        return None
    path = bundle.file(POLICY)
    return check_table(read_toml(path).get("benchmark", {}), path)


def check_table(table: object, path: Path) -> str | None:
    if not isinstance(table, dict) or set(table) - {"power_mode"}:
        raise DataError(f"{path}: [benchmark] holds {table}, expected power_mode alone")
    mode = table.get("power_mode")
    if mode is not None and not isinstance(mode, str):
        raise DataError(f"{path}: power_mode is a text such as MAXN, found {mode!r}")
    return mode


def wrong_power_mode(watched: SensorTrace, demanded: str | None) -> Iterator[str]:
    """A sentence where the run's mode is not the one demanded, or cannot be known."""
    if demanded is None:
        return
    if not watched.power_modes:
        yield f"power mode {demanded} is demanded, and this machine tells none (nvpmodel)"
    for mode in dict.fromkeys(watched.power_modes):
        if mode.upper() != demanded.upper():
            yield f"wrong power mode: {mode}, {demanded} is demanded"


def occupied(before: Reading, others: tuple[str, ...]) -> tuple[str, ...]:
    """Who uses the GPU before the benchmark does, by NVML or the kernel's gauge."""
    found = [f"other load on the GPU: {program}" for program in others]
    load = before.load_percent.get("gpu", 0.0)
    if load > _BUSY_PERCENT:
        found.append(f"other load on the GPU: {load:.0f} % busy before the run")
    return tuple(found)
