"""Sensors read from recorded lines and files; what is not told is missing, never zero."""

import os
import time
from pathlib import Path

import pytest

from fr_edge.runtime.machine.monitor import watch
from fr_edge.runtime.machine.sensors import Reading, denied, read_sysfs, throttle_counts
from fr_edge.runtime.machine.tegrastats import Tegrastats, parse_tegrastats, power_mode

# Recorded on boards and published: the first three in a Prometheus exporter's tests, ORIN_NANO in
# henrygd/beszel's agent/gpu_test.go, AGX_ORIN_JETPACK_7 in rbonghi/jetson_stats' tests, ORIN_NX and
# AGX_ORIN_JETPACK_6 in those of DataDog/datadog-agent's Jetson check, THOR's two (L4T R39) in those of
# a telemetry tool's tegrastats_telemetry.
NANO_JETPACK_4 = (
    "RAM 1923/3964MB (lfb 2x2MB) SWAP 191/1982MB (cached 6MB) IRAM 0/252kB(lfb 252kB) "
    "CPU [5%@1224,4%@1224,3%@1224,6%@1224] EMC_FREQ 0%@1600 GR3D_FREQ 0%@76 APE 25 PLL@37C CPU@40C "
    "PMIC@50C GPU@40C AO@45C thermal@40C POM_5V_IN 1750/1628 POM_5V_GPU 0/0 POM_5V_CPU 366/406"
)
XAVIER_NX_JETPACK_4 = (
    "RAM 5246/7771MB (lfb 7x4MB) SWAP 983/20269MB (cached 280MB) "
    "CPU [47%@1420,23%@1420,32%@1420,22%@1420,31%@1420,96%@1420] EMC_FREQ 2%@1600 GR3D_FREQ 0%@1109 "
    "APE 150 MTS fg 1% bg 9% AO@29C GPU@31.5C PMIC@100C AUX@30C CPU@33.5C thermal@31.35C "
    "VDD_IN 6140/5510 VDD_CPU_GPU_CV 2706/2119 VDD_SOC 1074/1051"
)
XAVIER_NX_JETPACK_5 = (
    "07-09-2024 13:31:31 RAM 3168/6851MB (lfb 2x4MB) SWAP 161/3426MB (cached 0MB) "
    "CPU [23%@1397,17%@1192,16%@1190,13%@1190,23%@1190,10%@1190] EMC_FREQ 2%@204 GR3D_FREQ 0%@[114] "
    "VIC_FREQ 115 APE 150 AUX@45C CPU@46.5C thermal@45.6C AO@45C GPU@45.5C PMIC@50C "
    "VDD_IN 2763mW/2846mW VDD_CPU_GPU_CV 650mW/670mW VDD_SOC 650mW/711mW"
)
ORIN_NANO_JETPACK_6 = (
    "06-18-2025 11:25:24 RAM 3452/7620MB (lfb 25x4MB) SWAP 1518/16384MB (cached 174MB) "
    "CPU [1%@1420,2%@1420,0%@1420,2%@1420,2%@729,1%@729] GR3D_FREQ 0% cpu@50.031C soc2@49.031C "
    "soc0@50C gpu@49.031C tj@50.25C soc1@50.25C VDD_IN 4824mW/4824mW VDD_CPU_GPU_CV 518mW/518mW "
    "VDD_SOC 1475mW/1475mW"
)
AGX_ORIN_JETPACK_7 = (
    "07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201,10%@2201,4%@2201,14%@2201,"
    "30%@2201,18%@2201,10%@2201,10%@2201,33%@2201,7%@2201,5%@2201,27%@2201] EMC_FREQ 3%@3199 "
    "GR3D_FREQ 12%@[1300,1300] NVENC0 off NVDEC0 off NVJPG0 off NVJPG1 off VIC off OFA off "
    "NVDLA0 off NVDLA1 off PVA0_FREQ off APE 174 cpu@52.968C/52.968C soc2@48.406C/48.406C "
    "soc0@49.531C/49.531C gpu@47.625C/47.625C VDD_GPU_SOC 5139mW/5139mW/5139mW "
    "VDD_CPU_CV 3268mW/3268mW/3268mW VIN_SYS_5V0 5500mW/5500mW/5500mW"
)

ORIN_NX_JETPACK_5 = (
    "RAM 6334/15388MB (lfb 1770x4MB) SWAP 491/7694MB (cached 0MB) "
    "CPU [6%@729,9%@729,5%@729,16%@729,off,off,off,off] EMC_FREQ 0%@2133 GR3D_FREQ 0%@611 "
    "VIC_FREQ 729 APE 174 CV0@45.812C CPU@47.937C SOC2@46.093C SOC0@46.968C CV1@46.406C "
    "GPU@45.875C tj@48.875C SOC1@48.875C CV2@45.75C VDD_IN 5299mW/5299mW "
    "VDD_CPU_GPU_CV 773mW/773mW VDD_SOC 1424mW/1424mW"
)
AGX_ORIN_JETPACK_6 = (
    "RAM 29114/30697MB (lfb 3x4MB)    SWAP 4915/15348MB (cached 1MB) "
    "CPU [3%@729,4%@729,0%@729,1%@729,0%@2201,100%@2201,1%@2201,0%@2201,100%@2201,0%@2201,0%@2201,"
    "0%@2201] EMC_FREQ 1%@2133 GR3D_FREQ 0%@[305,305] NVENC      off  NVDEC    off NVJPG off "
    "NVJPG1    off         VIC        off          OFA           off          NVDLA0    off       "
    "NVDLA1     off          PVA0_FREQ off         APE           174        cpu@53.062C "
    "soc2@48.25C soc0@48.843C  gpu@47.812C tj@53.062C soc1@48.968C    VDD_GPU_SOC 3205mW/3205mW "
    "VDD_CPU_CV 4405mW/4405mW VIN_SYS_5V0 4767mW/4767mW"
)
THOR_JETPACK_7 = (
    "08-08-2026 21:00:39 RAM 8353/125749MB (lfb 31x4MB) CPU [90%@2601,75%@2601,off,7%@2601] "
    "EMC_FREQ 34%@4266 GR3D_FREQ 87%@[1574,1574,1574] NVENC0_FREQ @1691 VIC off "
    "cpu@58.25C/61.75C tj@66.625C/66.625C gpu@56.937C/66.625C soc012@55.375C/58.781C "
    "soc345@55.812C/60.031C VDD_GPU 37939mW/8660mW/37939mW "
    "VDD_CPU_SOC_MSS 30059mW/12281mW/30059mW VIN_SYS_5V0 15486mW/7424mW/15486mW "
    "VIN 124486mW/36487mW/124486mW FUTURE_TOKEN value"
)
THOR_AT_REST = (
    "08-08-2026 20:58:23 RAM 3429/125749MB (lfb 120x4MB) CPU [0%,5%,off]@2601 EMC_FREQ @4266 "
    "GR3D_FREQ @[1574,1574,1574] cpu@49.75C/49.75C tj@51.218C/51.218C gpu@51.218C/51.218C "
    "VDD_GPU 6330mW/6330mW/6330mW VIN 28906mW/14453mW/28906mW"
)


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
    assert parse_tegrastats(rails).total_mw() == (
        "VDD_GPU + VDD_CPU_SOC_MSS + VIN_SYS_5V0",
        -392 + 3924 + 5064,
    )


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


def test_thors_input_is_measured_by_a_chip_of_its_own(tmp_path: Path) -> None:
    root = _write(
        tmp_path,
        {
            "sys/class/hwmon/hwmon3/name": "ina238",
            "sys/class/hwmon/hwmon3/in1_label": "VIN",
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
    assert (tmp_path / "starts").read_text().count("\n") <= 2  # one for each that reads
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with Tegrastats() as tool:
        assert tool.read() == Reading()
    assert power_mode() == ""
