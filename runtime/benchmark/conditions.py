"""What a benchmark asks of the machine: the power mode, and no other load on the GPU."""

from collections.abc import Iterator
from pathlib import Path

from ...bundle.manifest import Bundle
from ...documents import read_toml
from ...errors import DataError
from ..evaluation.limits import POLICY_NAME, BenchmarkLimits, read_policy
from ..machine.monitor import SensorTrace
from ..machine.sensors import Reading

_BUSY_PERCENT = 10.0  # load of the GPU before the run, from which others use it


def required_power_mode(bundle: Bundle, policy: Path | None = None) -> str | None:
    """The power mode that a policy asks for in its table `[benchmark]`.

    Args:
        bundle: An open bundle.
        policy: A TOML file that takes the place of the bundle's own policy; None for the latter.

    Returns:
        `power_mode`, None where the policy names none.

    Raises:
        DataError: The policy cannot be read, or the table holds another key.
    """
    if policy is None and POLICY_NAME not in bundle:
        return None
    path = policy or bundle.file(POLICY_NAME)
    read_policy(path, "int8", BenchmarkLimits)  # checks the keys of every table
    return _power_mode(read_toml(path).get("benchmark", {}), path)


def power_mode_problems(trace: SensorTrace, required: str | None) -> Iterator[str]:
    """Why a run was not in the required power mode.

    Args:
        trace: The readings during the run.
        required: The power mode as nvpmodel names it, None for any.

    Yields:
        A sentence for each other mode, or where the machine has none.
    """
    if required is None:
        return
    if not trace.power_modes:
        yield f"power mode {required} is required, and this machine reports none (nvpmodel)"
    for mode in dict.fromkeys(trace.power_modes):
        if mode.upper() != required.upper():
            yield f"wrong power mode: {mode}, {required} is required"


def other_gpu_load(before: Reading, processes: tuple[str, ...]) -> tuple[str, ...]:
    """Who used the GPU before the benchmark did.

    Args:
        before: The board's sensors before the run.
        processes: Other processes on the GPU, as the driver lists them.

    Returns:
        A sentence for each.
    """
    problems = [f"other load on the GPU: {program}" for program in processes]
    load = before.load_percent.get("gpu", 0.0)
    if load > _BUSY_PERCENT:
        problems.append(f"other load on the GPU: {load:.0f} % busy before the run")
    return tuple(problems)


def _power_mode(table: object, path: Path) -> str | None:
    if not isinstance(table, dict):
        raise DataError(f"{path}: [benchmark] holds {table!r}, expected a table")
    mode = table.get("power_mode")
    if mode is not None and not isinstance(mode, str):
        raise DataError(f"{path}: power_mode is a text such as MAXN, found {mode!r}")
    return mode
