"""Sensors read from recorded lines and files; what is not told is missing, never zero."""

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from board_texts import (
    AGX_ORIN_JETPACK_6,
    AGX_ORIN_JETPACK_7,
    NANO_JETPACK_4,
    ORIN_NANO_JETPACK_6,
    ORIN_NX_JETPACK_5,
    THOR_AT_REST,
    THOR_JETPACK_7,
    XAVIER_NX_JETPACK_4,
    XAVIER_NX_JETPACK_5,
)

from fr_edge.runtime.machine import monitor, tegrastats
from fr_edge.runtime.machine.monitor import read_board, watch
from fr_edge.runtime.machine.sensors import Reading, denied, read_sysfs, throttle_counts
from fr_edge.runtime.machine.tegrastats import Tegrastats, parse_tegrastats, power_mode


@pytest.mark.parametrize(
    ("line", "rail", "total", "clocks", "gpu_c"),
    [
        (NANO_JETPACK_4, "POM_5V_IN", 1750, {"cpu": 1224, "gpu": 76, "memory": 1600}, 40),
        (XAVIER_NX_JETPACK_4, "VDD_IN", 6140, {"cpu": 1420, "gpu": 1109, "memory": 1600}, 31.5),
        (XAVIER_NX_JETPACK_5, "VDD_IN", 2763, {"cpu": 1397, "gpu": 114, "memory": 204}, 45.5),
        (ORIN_NX_JETPACK_5, "VDD_IN", 5299, {"cpu": 729, "gpu": 611, "memory": 2133}, 45.875),
        (
            AGX_ORIN_JETPACK_6,
            "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0",
            3205 + 4405 + 4767,
            {"cpu": 2201, "gpu": 305, "memory": 2133},
            47.812,
        ),
        (THOR_JETPACK_7, "VIN", 124486, {"cpu": 2601, "gpu": 1574, "memory": 4266}, 56.937),
        (THOR_AT_REST, "VIN", 28906, {"cpu": 2601, "gpu": 1574, "memory": 4266}, 51.218),
        (ORIN_NANO_JETPACK_6, "VDD_IN", 4824, {"cpu": 1420}, 49.031),
        (
            AGX_ORIN_JETPACK_7,
            "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0",
            5139 + 3268 + 5500,
            {"cpu": 2201, "gpu": 1300, "memory": 3199},
            47.625,
        ),
    ],
)
def test_tegrastats_of_each_jetpack(
    line: str, rail: str, total: float, clocks: dict[str, float], gpu_c: float
) -> None:
    reading = parse_tegrastats(line)
    assert reading.total_mw() == (rail, total)
    assert reading.clock_mhz == clocks
    assert reading.temperature_c["gpu"] == gpu_c
    assert "pmic" not in reading.temperature_c
    hottest = 67 if line is THOR_JETPACK_7 else 60
    assert all(20 < t < hottest for t in reading.temperature_c.values())


def test_loads_and_the_offset_of_a_rail_that_is_off() -> None:
    assert parse_tegrastats(THOR_JETPACK_7).load_percent == {"gpu": 87.0}
    assert parse_tegrastats(AGX_ORIN_JETPACK_6).load_percent == {"gpu": 0.0}
    assert parse_tegrastats(THOR_AT_REST).load_percent == {}
    # Recorded on Thor with the GPU's rail off: its sensor's offset shows.
    rails = "VDD_GPU -392mW/-392mW VDD_CPU_SOC_MSS 3924mW/3835mW VIN_SYS_5V0 5064mW/5055mW"
    reading = parse_tegrastats(rails)
    assert reading.power_mw == {"VDD_GPU": -392, "VDD_CPU_SOC_MSS": 3924, "VIN_SYS_5V0": 5064}
    assert reading.total_mw() is None  # Thor's rails are not the whole: its VIN is much more
    known = parse_tegrastats(THOR_JETPACK_7).power_mw
    assert known["VIN"] > 1.4 * sum(known[rail] for rail in reading.power_mw)


@pytest.mark.parametrize("line", ["", "RAM", "tegrastats: command not found", "\x00\xff"])
def test_other_lines_tell_nothing(line: str) -> None:
    assert parse_tegrastats(line) == Reading()


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def test_rails_of_the_newer_driver(tmp_path: Path) -> None:
    home = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon4"
    root = _write(
        tmp_path,
        {
            f"{home}/in1_label": "VDD_IN",
            f"{home}/in1_input": "5064",
            f"{home}/curr1_input": "960",
            f"{home}/in2_label": "VDD_CPU_GPU_CV",
            f"{home}/in2_input": "5056",
            f"{home}/curr2_input": "104",
            f"{home}/in3_label": "VDD_SOC",
            f"{home}/in3_input": "5056",  # its current cannot be read
        },
    )
    reading = read_sysfs(root)
    assert reading.power_mw == pytest.approx({"VDD_IN": 4861.44, "VDD_CPU_GPU_CV": 525.824})
    assert reading.total_mw() == ("VDD_IN", pytest.approx(4861.44))


def test_rails_of_the_older_driver(tmp_path: Path) -> None:
    home = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    root = _write(
        tmp_path,
        {f"{home}/rail_name_0": "POM_5V_IN", f"{home}/in_power0_input": "1750"},
    )
    assert read_sysfs(root).total_mw() == ("POM_5V_IN", 1750)


@pytest.mark.parametrize("label", ["in1_label", "label"])
def test_thors_input_is_measured_by_a_chip_of_its_own(tmp_path: Path, label: str) -> None:
    root = _write(
        tmp_path,
        {
            "sys/class/hwmon/hwmon3/name": "ina238",
            f"sys/class/hwmon/hwmon3/{label}": "VIN",
            "sys/class/hwmon/hwmon3/power1_input": "28906000",
            "sys/class/devfreq/gpu-gpc-0/cur_freq": "1575000000",
        },
    )
    assert read_sysfs(root).total_mw() == ("VIN", 28906)
    assert read_sysfs(root).clock_mhz == {"gpu": 1575.0}


def test_load_and_memory_of_a_jetson(tmp_path: Path) -> None:
    root = _write(
        tmp_path,
        {
            "sys/class/devfreq/17000000.ga10b/device/load": "634",
            "proc/meminfo": "MemTotal: 7802880 kB\nMemFree: 1 kB\nMemAvailable: 4730880 kB",
            "proc/self/status": "Name: python3\nVmRSS:  204800 kB",
        },
    )
    assert read_sysfs(root).load_percent == {"gpu": 63.4}
    assert read_sysfs(root).memory_mb == {"machine": 3000.0, "process": 200.0}


def test_a_pc(tmp_path: Path) -> None:
    root = _write(
        tmp_path,
        {
            "sys/class/powercap/intel-rapl:0/name": "package-0",
            "sys/class/powercap/intel-rapl:0/energy_uj": "123456789",
            "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850",
            "sys/class/powercap/intel-rapl:0:0/name": "core",
            "sys/class/powercap/intel-rapl:0:0/energy_uj": "5",
            "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp",
            "sys/class/thermal/thermal_zone0/temp": "54000",
            "sys/class/thermal/thermal_zone1/type": "off",
            "sys/class/thermal/thermal_zone1/temp": "-256000",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1200000",
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "3400000",
            "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "2",
            "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "3",
            "sys/class/devfreq/17000000.gpu/cur_freq": "624750000",
        },
    )
    reading = read_sysfs(root)
    assert reading.energy_uj == {"package-0": 123456789}
    assert reading.temperature_c == {"x86_pkg_temp": 54.0}
    assert reading.clock_mhz == {"cpu": 3400.0, "gpu": 624.75}
    assert throttle_counts(root) == {"the CPU's cores": 5}


def test_a_machine_without_sensors(tmp_path: Path) -> None:
    assert read_sysfs(tmp_path) == Reading()
    assert read_sysfs(tmp_path).total_mw() is None
    assert throttle_counts(tmp_path) == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_sensor_that_may_not_be_read_is_missing(tmp_path: Path) -> None:
    name = "sys/class/powercap/intel-rapl:0/energy_uj"
    root = _write(tmp_path, {name: "5", name.replace("energy", "max_energy_range"): "9"})
    (root / name).chmod(0)
    assert read_sysfs(root).energy_uj == {}
    assert denied(root) == (str(root / name),)


ORIN_STEPS = (
    f"echo '{ORIN_NANO_JETPACK_6}'; sleep 0.3; while true; do"
    f" echo '{ORIN_NANO_JETPACK_6.replace('4824mW/', '9999mW/')}'; sleep 0.1; done"
)


def test_the_tools_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (
        ("tegrastats", f"echo >>{tmp_path}/starts; {ORIN_STEPS}"),
        ("nvpmodel", "echo 'NV Power Mode: 15W'; echo 0"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with Tegrastats() as tool:
        assert tool.read().total_mw() == ("VDD_IN", 4824)
        time.sleep(0.5)
        assert tool.read().total_mw() == ("VDD_IN", 9999)  # the newest line, not the next
    assert power_mode() == "15W"
    with watch() as trace:
        time.sleep(1.2)
    assert len(trace.readings) >= 3
    starts = (tmp_path / "starts").read_text().count("\n")
    assert starts <= 2  # one for each that reads
    with monkeypatch.context() as rails:  # what the kernel's files report is asked of no tool
        rails.setattr(monitor, "read_sysfs", lambda: Reading(power_mw={"VDD_IN": 5000.0}))
        assert read_board().power_mw == {"VDD_IN": 5000.0}
    assert (tmp_path / "starts").read_text().count("\n") == starts
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with Tegrastats() as tool:
        assert tool.read() == Reading()
    assert power_mode() == ""


@pytest.mark.parametrize("text", ["exec sleep 60", "sleep 60 & wait", "trap '' TERM; sleep 60"])
def test_tools_that_hang_hold_nothing_up(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Doubles that never answer, one with a child that keeps the pipe open: asked once, then left."""
    monkeypatch.setattr(tegrastats, "_ANSWER_S", 0.3)
    monkeypatch.setattr(tegrastats, "_FIRST_LINE_S", 0.3)
    for name in ("tegrastats", "nvpmodel"):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    opened: list[str] = []
    start = subprocess.Popen

    def counted(line: list[str], *args: Any, **kwargs: Any) -> Any:
        opened.append(Path(line[0]).name)
        return start(line, *args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", counted)
    for _ in range(3):
        assert power_mode() == ""
        with Tegrastats() as tool:
            assert tool.read() == Reading()
    assert sorted(opened) == ["nvpmodel", "tegrastats"]
