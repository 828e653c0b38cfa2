"""Which NVIDIA GPUs the driver shows, asked of the driver itself (libcuda through ctypes).

Needs no CUDA package, so it can say why there is no GPU before anything that would crash without
one is loaded.
"""

import ctypes
import os
import platform
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_MAJOR, _MINOR, _INTEGRATED = 75, 76, 18
"""CUdevice_attribute numbers of cuda.h."""


@dataclass(frozen=True)
class Gpu:
    """`compute` is the compute capability ("8.7"); an `integrated` GPU shares the CPU's memory."""

    name: str
    compute: str
    memory_mb: int
    integrated: bool


@dataclass(frozen=True)
class GpuList:
    """`driver` is the newest CUDA version that the driver serves ("12.6"), "" without one.

    `lack` says why there is no GPU, "" when there is one.
    """

    found: tuple[Gpu, ...]
    driver: str
    lack: str


@cache
def find_gpus() -> GpuList:
    """Ask once; a driver that is installed later needs a new process."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return GpuList((), "", "no NVIDIA driver: libcuda.so.1 is not there")
    number = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(number))
    driver = f"{number.value // 1000}.{number.value % 1000 // 10}" if number.value else ""
    if status := cuda.cuInit(0):
        return GpuList((), driver, f"the NVIDIA driver finds no usable GPU: {_error(cuda, status)}")
    cuda.cuDeviceGetCount(ctypes.byref(number))
    found = tuple(_gpu(cuda, index) for index in range(number.value))
    return GpuList(found, driver, "" if found else "the NVIDIA driver shows no GPU")


def _gpu(cuda: Any, index: int) -> Gpu:
    device, name, size = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)

    def attribute(which: int) -> int:
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), which, device)
        return value.value

    return Gpu(
        name.value.decode(errors="replace"),
        f"{attribute(_MAJOR)}.{attribute(_MINOR)}",
        size.value >> 20,
        bool(attribute(_INTEGRATED)),
    )


def _error(cuda: Any, status: int) -> str:
    name = ctypes.c_char_p()
    # A stub libcuda (of the toolkit, for linking) has no names and may crash when asked for one.
    if status == 34 or cuda.cuGetErrorName(status, ctypes.byref(name)) or not name.value:
        return "a stub library, not a driver" if status == 34 else f"error {status}"
    return f"{name.value.decode()} ({status})"


# What this machine is: CPU, memory, GPU, Jetson, and the versions that decide results.

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
