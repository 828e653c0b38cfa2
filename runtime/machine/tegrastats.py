"""A Jetson's own account of itself: tegrastats and nvpmodel. Used where its files cannot be read."""

import re
import shutil
import subprocess

from .sensors import Reading


def parse_tegrastats(line: str) -> Reading:
    """One line of tegrastats, JetPack 4 to 7; a line of something else gives an empty reading."""
    power = {
        name: float(now)
        for name, now in re.findall(
            r"\b((?:V|POM)\w*|GPU|CPU|SOC|CV|SYS5V) (-?\d+)(?:mW)?/-?\d+", line
        )
    }
    temperatures = {
        name.lower(): float(value)
        for name, value in re.findall(r"\b(\w+)@(-?\d+(?:\.\d+)?)C\b", line)
        # A sensor that is off says -256; PMIC says 100 or 50, whatever its temperature.
        if float(value) > -50 and name != "PMIC"
    }
    clocks: dict[str, float] = {}
    cpus = re.search(r"\bCPU \[([^\]]*)\](?:@\d+)?", line)  # each core's own clock, or one of all
    if cpus and (found := re.findall(r"@(\d+)", cpus[0])):
        clocks["cpu"] = float(max(map(int, found)))
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
    """Its next line; an empty reading where there is no tegrastats or it says nothing."""
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
    """The mode that `nvpmodel -q` names, such as 15W or MAXN; empty where it cannot be asked."""
    if not (tool := shutil.which("nvpmodel")):
        return ""
    try:
        done = subprocess.run([tool, "-q"], capture_output=True, text=True, timeout=10, check=True)
    except (subprocess.SubprocessError, OSError):
        return ""
    found = re.search(r"NV Power Mode: *(.+)", done.stdout)
    return found[1].strip() if found else ""
