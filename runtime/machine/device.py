"""What this machine is: CPU, memory, GPUs, Jetson board, and the versions that decide results.

The GPUs are asked of NVIDIA's driver itself (libcuda through ctypes): no CUDA package is needed, so
the reason why there is no GPU is known before anything that would crash without one is loaded.
"""

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...errors import MachineError, UsageError

_MAJOR, _MINOR, _INTEGRATED = 75, 76, 18  # CUdevice_attribute numbers of cuda.h
_STUB = 34  # CUDA_ERROR_STUB_LIBRARY of cuda.h

_PACKAGES = ("onnxruntime", "onnx", "numpy", "torch", "onnxsim", "tensorrt", "tensorrt-rtx")
_SELECTED: ContextVar[int] = ContextVar("selected GPU", default=0)

_OTHER_NAMES = {"tensorrt": ("tensorrt-cu12", "tensorrt-cu13", "tensorrt-cu11")}
"""Distributions that install a package's module under another name."""


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU.

    Attributes:
        name: The driver's name for it.
        compute: Compute capability, such as "8.7".
        memory_mb: Of the GPU.
        integrated: Whether it shares the CPU's memory.
        bus_id: On the PCI bus, "0000:01:00.0", by which NVML finds it; "" where not reported.
    """

    name: str
    compute: str
    memory_mb: int
    integrated: bool
    bus_id: str = ""


@dataclass(frozen=True)
class GpuList:
    """The GPUs that NVIDIA's driver serves.

    Attributes:
        gpus: In the driver's order.
        driver: The newest CUDA version that the driver serves ("12.6"), "" without a driver.
        lack: Why there is no GPU, "" when there is one.
    """

    gpus: tuple[Gpu, ...]
    driver: str
    lack: str


@dataclass(frozen=True)
class Device:
    """This machine, as reports record it.

    Attributes:
        cores: Cores that this process may use.
        memory_gb: The machine's memory.
        gpu: Names of the GPUs, the selected one first; on a Jetson that of the board.
        jetson: The board's name, "" elsewhere.
        packages: Installed package -> version.
    """

    cpu: str
    cores: int
    memory_gb: float
    os: str
    arch: str
    python: str
    gpu: tuple[str, ...]
    jetson: str
    packages: dict[str, str]


def describe_device() -> Device:
    """Describe this machine from /proc, package metadata and NVIDIA's driver; loads no package."""
    return Device(
        cpu=_cpu(),
        cores=cores(),
        memory_gb=_memory_gb(),
        os=_os(),
        arch=platform.machine(),
        python=platform.python_version(),
        gpu=gpu_names(),
        jetson=jetson_name(),
        packages={name: number for name in _PACKAGES if (number := package_version(name))},
    )


def cores() -> int:
    """The cores this process may use: its affinity, or the container's quota if that is less."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        limit = max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        limit = os.cpu_count() or 1
    if not hasattr(os, "sched_getaffinity"):  # macOS, Windows
        return limit
    return min(limit, len(os.sched_getaffinity(0)))


def package_version(name: str) -> str:
    """The installed version of a package, by its metadata; the package is not loaded.

    Args:
        name: As on the package index; "tensorrt" stands for `tensorrt-cu12` and its kin too.

    Returns:
        The version, "" where the package is not installed.
    """
    return _version_on(name, tuple(sys.path))


@cache
def _version_on(name: str, path: tuple[str, ...]) -> str:
    """Of a package on a search path; its metadata is parsed once, not for every engine opened."""
    for distribution in (name, *_OTHER_NAMES.get(name, ())):
        with suppress(PackageNotFoundError):
            return version(distribution)
    return ""


def jetson_name() -> str:
    """The Jetson board's name from the device tree, "" elsewhere."""
    if not Path("/etc/nv_tegra_release").exists():
        return ""
    return _read("/proc/device-tree/model").rstrip("\0").strip() or "NVIDIA Jetson"


def gpu_names() -> tuple[str, ...]:
    """Names of the driver's GPUs, the selected one first; a Jetson's is part of the board."""
    if board := jetson_name():
        return (board,)
    gpus, index = find_gpus().gpus, _SELECTED.get()
    return tuple(gpu.name for gpu in (*gpus[index : index + 1], *gpus[:index], *gpus[index + 1 :]))


@contextmanager
def use_gpu(index: int) -> Iterator[None]:
    """Build, run and watch on another GPU than the first while the block runs.

    Sessions keep the GPU on which they were opened.

    Args:
        index: In the driver's order, from 0.

    Raises:
        MachineError: There is no GPU.
        UsageError: There is no GPU of that number.
    """
    gpus = find_gpus()
    if gpus.lack:
        raise MachineError(gpus.lack, "leave --device out; see `fr-edge doctor`")
    if not 0 <= index < len(gpus.gpus):
        names = ", ".join(f"{n}: {gpu.name}" for n, gpu in enumerate(gpus.gpus))
        raise UsageError(f"no GPU {index} here", f"GPUs: {names}")
    token = _SELECTED.set(index)
    try:
        yield
    finally:
        _SELECTED.reset(token)


def selected_index() -> int:
    """The number of the GPU that `use_gpu` selected, else 0."""
    return _SELECTED.get()


def selected_gpu() -> Gpu | None:
    """The GPU that `use_gpu` selected, else the first; None without a GPU."""
    gpus, index = find_gpus().gpus, _SELECTED.get()
    return gpus[index] if index < len(gpus) else None


def cuda_python_requirement(driver: str) -> str:
    """The cuda-python that a driver serves, as pip takes it.

    cuda-python asks the driver for functions of its own version; so it must not be newer.

    Args:
        driver: The CUDA version that the driver serves, such as "12.6"; "13" may be any of 13, which
            the first of them is never newer than.
    """
    version = driver if "." in driver else f"{driver}.0"
    return f"cuda-python=={version}.*" if driver else "cuda-python"


def cuda_python_install(driver: str) -> str:
    """The command that installs the cuda-python that a driver serves.

    Args:
        driver: The CUDA version that the driver serves, such as "12.6".
    """
    requirement = cuda_python_requirement(driver)
    return f"pip install '{requirement}'" if driver else f"pip install {requirement}"


@cache
def find_gpus() -> GpuList:
    """Ask NVIDIA's driver for its GPUs, once per process."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return GpuList((), "", "no NVIDIA driver: libcuda.so.1 is not there")
    number = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(number))
    driver = f"{number.value // 1000}.{number.value % 1000 // 10}" if number.value else ""
    if status := cuda.cuInit(0):
        reason = _error(cuda, status)
        return GpuList((), driver, f"the NVIDIA driver finds no usable GPU: {reason}")
    cuda.cuDeviceGetCount(ctypes.byref(number))
    gpus = tuple(_gpu(cuda, index) for index in range(number.value))
    return GpuList(gpus, driver, "" if gpus else "the NVIDIA driver shows no GPU")


def _gpu(cuda: Any, index: int) -> Gpu:
    device, name, size = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)

    def attribute(which: int) -> int:
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), which, device)
        return value.value

    bus = ctypes.create_string_buffer(16)
    ask_bus = getattr(cuda, "cuDeviceGetPCIBusId", None)
    failed = ask_bus is None or ask_bus(bus, len(bus), device)
    return Gpu(
        name.value.decode(errors="replace"),
        f"{attribute(_MAJOR)}.{attribute(_MINOR)}",
        size.value >> 20,
        bool(attribute(_INTEGRATED)),
        "" if failed else bus.value.decode(errors="replace"),
    )


def _error(cuda: Any, status: int) -> str:
    # A stub libcuda (of the toolkit, for linking) may crash when asked for a name.
    if status == _STUB:
        return "a stub library, not a driver"
    name = ctypes.c_char_p()
    if cuda.cuGetErrorName(status, ctypes.byref(name)) or not name.value:
        return f"error {status}"
    return f"{name.value.decode()} ({status})"


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
