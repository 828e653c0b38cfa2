"""Boards as files and tools: /sys, /proc and /etc of Jetsons and of a PC, nvpmodel, tegrastats.

Modes, rails and release lines are those of public captures: Thor's release line of jetson_stats'
issues 711 and 772, its two modes and their answer to `nvpmodel -q` of anduril/jetpack-nixos' pull request
460, JetPack 7.2's line of an AGX Orin's environment log. No capture of Thor's rails was found: the board
has none here, and its power comes from tegrastats. tegrastats' lines stand in board_texts.py. The tools
are shell scripts that answer: doubles, no board is behind them.
"""

from dataclasses import dataclass, field
from pathlib import Path

from board_texts import (
    AGX_ORIN_JETPACK_7,
    ORIN_NANO_JETPACK_6,
    THOR_JETPACK_7,
    TRTEXEC_8,
    TRTEXEC_10,
)

MAC, SERIAL, MACHINE = "48:b0:2d:3c:7e:91", "1425523071918", "5f1c9b7e0a4d4c1e8b2f6a3d9c0e7b15"
"""What no document may hold of a board."""
INA = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
CPU = "sys/devices/system/cpu/cpu0/cpufreq"


@dataclass(frozen=True)
class Board:
    """A board.

    Attributes:
        tensorrt: Its module's version.
        header: The version in four numbers, as plans carry it.
        cuda: The driver's version as cuDriverGetVersion gives it.
        gpus: As the driver's double takes them.
        jetpack: "" on a PC.
        model: The device tree's.
        release: First line of /etc/nv_tegra_release.
        modes: nvpmodel's, number -> name.
        rails: INA3221's, name -> (millivolts, milliamperes).
        gpu_clock: Folder of the GPU's clock below /sys/class/devfreq.
        tegrastats: Its line.
        trtexec: What its trtexec prints, "" without one.
    """

    tensorrt: str
    header: tuple[int, int, int, int]
    cuda: int
    gpus: str
    jetpack: str = ""
    model: str = ""
    release: str = ""
    modes: dict[int, str] = field(default_factory=dict)
    rails: dict[str, tuple[int, int]] = field(default_factory=dict)
    gpu_clock: str = ""
    tegrastats: str = ""
    trtexec: str = ""


NANO = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
NANO_MODES = {0: "15W", 1: "25W", 2: "MAXN_SUPER"}
NANO_RAILS = {"VDD_IN": (5000, 965), "VDD_CPU_GPU_CV": (5000, 104), "VDD_SOC": (5000, 295)}
AGX = "NVIDIA Jetson AGX Orin Developer Kit"
AGX_MODES = {0: "MAXN", 1: "MODE_15W", 2: "MODE_30W", 3: "MODE_50W"}
AGX_RAILS = {
    "VDD_GPU_SOC": (19000, 168), "VDD_CPU_CV": (19000, 231), "VIN_SYS_5V0": (5000, 953),
}  # fmt: skip
THOR = "NVIDIA Jetson AGX Thor Developer Kit"
R36_3 = "# R36 (release), REVISION: 3.0, GCID: 36923193, BOARD: generic, EABI: aarch64"
R36_4 = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64"
R38 = (
    "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64,"
    " DATE: Fri Aug 22 00:55:42 UTC 2025"
)
R39 = (
    "# R39 (release), REVISION: 2.0, GCID: 45755727, BOARD: generic, EABI: aarch64,"
    " DATE: Mon Jun  1 09:28:48 PM UTC 2026"
)

BOARDS = {
    "orin-nano@jetpack6.0": Board(
        "8.6.2", (8, 6, 2, 3), 12020, "Orin|8.7|7620|1", "6.0", NANO, R36_3, NANO_MODES,
        NANO_RAILS, "17000000.gpu", ORIN_NANO_JETPACK_6, TRTEXEC_8,
    ),
    "orin-nano-super@jetpack6.2": Board(
        "10.3.0", (10, 3, 0, 30), 12060, "Orin|8.7|7620|1", "6.2", NANO, R36_4, NANO_MODES,
        NANO_RAILS, "17000000.gpu", ORIN_NANO_JETPACK_6, TRTEXEC_10,
    ),
    "agx-orin@jetpack7.2": Board(
        "10.16.2.10", (10, 16, 2, 10), 13020, "Orin|8.7|62817|1", "7.2", AGX, R39, AGX_MODES,
        AGX_RAILS, "17000000.gpu", AGX_ORIN_JETPACK_7, TRTEXEC_10,
    ),
    "thor@jetpack7.0": Board(
        "10.13.3.9", (10, 13, 3, 9), 13000, "Thor|11.0|125749|1", "7.0", THOR, R38,
        {0: "MAXN", 1: "120W"}, {}, "gpu-gpc-0", THOR_JETPACK_7,
    ),
    "l4@10.13": Board("10.13.3.9", (10, 13, 3, 9), 12080, "NVIDIA L4|8.9|23034|0"),
    "h100@11.4": Board("11.4.0.106", (11, 4, 0, 106), 13020, "NVIDIA H100 PCIe|9.0|81559|0"),
    "rtx5090@10.16": Board(
        "10.16.1.11", (10, 16, 1, 11), 13000, "NVIDIA GeForce RTX 5090|12.0|32607|0"
    ),
}  # fmt: skip


def write_board(board: Board, home: Path) -> None:
    """The board's files below `home/files`, its tools in `home/bin`.

    The tools change the files as the real ones do: nvpmodel the mode, jetson_clocks the clocks.
    """
    files = {
        "etc/os-release": 'PRETTY_NAME="Ubuntu 22.04.5 LTS"',
        "proc/meminfo": f"MemTotal: {_memory(board)} kB\nMemAvailable: {_memory(board) // 2} kB",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
        "sys/class/thermal/thermal_zone0/temp": "50031",
        "sys/class/net/eth0/address": MAC,
        "etc/machine-id": MACHINE,
        f"{CPU}/scaling_governor": "schedutil",
        f"{CPU}/scaling_min_freq": "729600",
        f"{CPU}/scaling_max_freq": "1510400",
        f"{CPU}/scaling_cur_freq": "1510400",
    }
    if board.model:
        files |= {
            "etc/nv_tegra_release": board.release,
            "proc/device-tree/model": f"{board.model}\0",
            "proc/device-tree/serial-number": f"{SERIAL}\0",
            "etc/nvpmodel.conf": "\n".join(
                f"< POWER_MODEL ID={number} NAME={name} >\nCPU_ONLINE CORE_0 1"
                for number, name in board.modes.items()
            ),
        }
        clock = f"sys/class/devfreq/{board.gpu_clock}"
        files |= {
            f"{clock}/governor": "nvhost_podgov",
            f"{clock}/min_freq": "306000000",
            f"{clock}/max_freq": "1020000000",
            f"{clock}/cur_freq": "1020000000",
            f"{clock}/device/load": "0",
        }
        for place, (rail, (volts, amperes)) in enumerate(board.rails.items(), 1):
            files[f"{INA}/in{place}_label"] = rail
            files[f"{INA}/in{place}_input"] = str(volts)
            files[f"{INA}/curr{place}_input"] = str(amperes)
    else:
        files["sys/class/dmi/id/product_serial"] = SERIAL
        files["sys/bus/pci/devices/0000:01:00.0/vendor"] = "0x10de"
        files["sys/bus/pci/devices/0000:01:00.0/class"] = "0x030200"
    for name, text in files.items():
        path = home / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    if board.model:
        _write_tools(board, home)
    if board.trtexec:
        write_tool(home / "bin" / "trtexec", f"cat <<'E'\n{board.trtexec}E")


def _memory(board: Board) -> int:
    return int(board.gpus.split("|")[2]) << 10 if board.model else 64 << 20


def _write_tools(board: Board, home: Path) -> None:
    names = "\n".join(f"  {number}) echo {name};;" for number, name in board.modes.items())
    clock = home / "files" / "sys/class/devfreq" / board.gpu_clock
    cpu = home / "files" / CPU
    (home / "mode").write_text("0\n")
    write_tool(
        home / "bin" / "nvpmodel",
        f'mode=$(cat {home}/mode)\nif [ "$1" = -m ]; then echo "$2" > {home}/mode; exit; fi\n'
        f'echo "NV Power Mode: $(case $mode in\n{names}\nesac)"\necho $mode',
    )
    write_tool(
        home / "bin" / "jetson_clocks",
        f"cp {clock}/max_freq {clock}/min_freq\ncp {cpu}/scaling_max_freq {cpu}/scaling_min_freq",
    )
    write_tool(
        home / "bin" / "tegrastats",
        f"while :; do echo '{board.tegrastats}'; sleep 0.1; done",
    )


def write_tool(path: Path, script: str) -> None:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
