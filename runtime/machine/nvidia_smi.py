"""A GPU card's power, clocks and throttling, as nvidia-smi prints them."""

import shutil
import subprocess

from .sensors import Reading

QUERY = (
    "index",
    "power.draw",
    "clocks.sm",
    "clocks.mem",
    "temperature.gpu",
    "clocks_throttle_reasons.active",
)
"""`clocks_throttle_reasons` is the name that old and new drivers understand."""

_THROTTLED = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""nvmlClocksEventReasons of nvml.h that mean less speed than asked for."""


def parse_smi(text: str) -> Reading:
    """Lines of `nvidia-smi --query-gpu=... --format=csv,noheader,nounits`; `[N/A]` is missing."""
    power, clocks, temperatures, throttled = {}, {}, {}, []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(QUERY):
            continue
        card = f"GPU {cells[0]}"
        if (watts := _number(cells[1])) is not None:
            power[card] = watts * 1000
        for unit, cell in (("gpu", cells[2]), ("memory", cells[3])):
            if (mhz := _number(cell)) is not None:
                clocks[f"{unit} {cells[0]}"] = mhz
        if (degrees := _number(cells[4])) is not None:
            temperatures[card.lower()] = degrees
        reasons = int(cells[5], 16) if cells[5].lower().startswith("0x") else 0
        throttled += [f"{card}: {name}" for bit, name in _THROTTLED.items() if reasons & bit]
    return Reading(
        power_mw=power,
        temperature_c=temperatures,
        clock_mhz=clocks,
        throttled=tuple(throttled),
    )


def read_smi() -> Reading:
    """Ask nvidia-smi; an empty reading where there is none or it fails."""
    return parse_smi(_ask(f"--query-gpu={','.join(QUERY)}"))


def gpu_processes() -> tuple[str, ...]:
    """Programs that compute on a GPU card now; asked before a session is opened, those are others'.

    Empty too where nvidia-smi does not tell, as on a Jetson.
    """
    said = _ask("--query-compute-apps=pid,process_name")
    found = []
    for line in said.splitlines():
        pid, _, name = line.partition(",")
        if pid.strip().isdigit():
            found.append(f"{name.strip()} ({pid.strip()})")
    return tuple(found)


def _ask(query: str) -> str:
    if not (tool := shutil.which("nvidia-smi")):
        return ""
    command = [tool, query, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (subprocess.SubprocessError, OSError):
        return ""
    return done.stdout


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
