"""A Jetson's own tools, tegrastats and nvpmodel, for what its files do not report."""

import re
import shutil
import subprocess

from .sensors import Reading

_COLDEST_C = -50  # a sensor that is off reports -256


def parse_tegrastats(line: str) -> Reading:
    """Read one line of tegrastats, of JetPack 4 to 7.

    Args:
        line: The line; any other text gives an empty reading.
    """
    power = {
        name: float(now)
        for name, now in re.findall(
            r"\b((?:V|POM)\w*|GPU|CPU|SOC|CV|SYS5V) (-?\d+)(?:mW)?/-?\d+", line
        )
    }
    temperatures = {
        name.lower(): float(value)
        for name, value in re.findall(r"\b(\w+)@(-?\d+(?:\.\d+)?)C\b", line)
        if float(value) > _COLDEST_C and name != "PMIC"  # which reports 100 or 50 always
    }
    clocks: dict[str, float] = {}
    cpus = re.search(r"\bCPU \[([^\]]*)\](?:@\d+)?", line)  # each core's own clock, or one of all
    if cpus and (values := re.findall(r"@(\d+)", cpus[0])):
        clocks["cpu"] = float(max(map(int, values)))
    if gpu := re.search(r"\bGR3D_FREQ (?:\d+%)?@\[?(\d+)", line):
        clocks["gpu"] = float(gpu[1])
    if memory := re.search(r"\bEMC_FREQ (?:\d+%)?@(\d+)", line):
        clocks["memory"] = float(memory[1])
    loads = re.search(r"\bGR3D_FREQ (\d+)%", line)
    return Reading(
        power_mw=power,
        temperature_c=temperatures,
        clock_mhz=clocks,
        load_percent={"gpu": float(loads[1])} if loads else {},
    )


def read_tegrastats() -> Reading:
    """The next line of tegrastats; an empty reading where there is no tegrastats or no line."""
    if not (tool := shutil.which("tegrastats")):
        return Reading()
    try:
        process = subprocess.Popen(
            [tool, "--interval", "100"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    except OSError:
        return Reading()
    with process:
        line = process.stdout.readline() if process.stdout else ""
        process.kill()
    return parse_tegrastats(line)


def power_mode() -> str:
    """The mode that `nvpmodel -q` names, such as 15W or MAXN; "" where it cannot be asked."""
    if not (tool := shutil.which("nvpmodel")):
        return ""
    try:
        done = subprocess.run([tool, "-q"], capture_output=True, text=True, timeout=10, check=True)
    except (subprocess.SubprocessError, OSError):
        return ""
    mode = re.search(r"NV Power Mode: *(.+)", done.stdout)
    return mode[1].strip() if mode else ""
