"""What this machine is: CPU, memory, GPU, Jetson, and the versions that decide results."""

import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .gpus import find_gpus

_PACKAGES = ("onnxruntime", "onnx", "numpy", "torch", "onnxsim", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class Device:
    """`memory_gb` is the machine's; `jetson` is the board's name or empty."""

    cpu: str
    cores: int
    memory_gb: float
    os: str
    arch: str
    python: str
    gpu: tuple[str, ...]
    jetson: str
    packages: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "gpu": list(self.gpu)}


def describe_device() -> Device:
    """Read it from /proc, the package metadata and the NVIDIA driver; loads no package."""
    return Device(
        cpu=_cpu(),
        cores=cores(),
        memory_gb=_memory_gb(),
        os=_os(),
        arch=platform.machine(),
        python=platform.python_version(),
        gpu=gpu_names(),
        jetson=jetson_name(),
        packages={name: found for name in _PACKAGES if (found := package_version(name))},
    )


def gpu_names() -> tuple[str, ...]:
    """Names of the NVIDIA GPUs that the driver shows; a Jetson's is part of the board."""
    if board := jetson_name():
        return (board,)
    return tuple(gpu.name for gpu in find_gpus().found)


def jetson_name() -> str:
    """The board's name from the device tree, empty elsewhere."""
    if not Path("/etc/nv_tegra_release").exists():
        return ""
    return _read("/proc/device-tree/model").rstrip("\0").strip() or "NVIDIA Jetson"


def package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def cores() -> int:
    """The cores this process may use: its affinity, and the container's quota if that is less."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        limit = max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        limit = os.cpu_count() or 1
    return min(limit, len(os.sched_getaffinity(0)))


def _cpu() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_gb() -> float:
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemTotal"):
            return round(int(line.split()[1]) / 1024**2, 1)
    return 0.0


def _os() -> str:
    for line in _read("/etc/os-release").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.split("=", 1)[1].strip('"')
    return platform.platform()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
