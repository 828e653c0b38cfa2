"""Which NVIDIA GPUs the driver shows, asked of the driver itself (libcuda through ctypes).

Needs no CUDA package, so it can say why there is no GPU before anything that would crash without
one is loaded.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
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
class Gpus:
    """`driver` is the newest CUDA version that the driver serves ("12.6"), "" without one.

    `lack` says why there is no GPU, "" when there is one.
    """

    found: tuple[Gpu, ...]
    driver: str
    lack: str


@cache
def find_gpus() -> Gpus:
    """Ask once; a driver that is installed later needs a new process."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Gpus((), "", "no NVIDIA driver: libcuda.so.1 is not there")
    number = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(number))
    driver = f"{number.value // 1000}.{number.value % 1000 // 10}" if number.value else ""
    if status := cuda.cuInit(0):
        return Gpus((), driver, f"the NVIDIA driver finds no usable GPU: {_error(cuda, status)}")
    cuda.cuDeviceGetCount(ctypes.byref(number))
    found = tuple(_gpu(cuda, index) for index in range(number.value))
    return Gpus(found, driver, "" if found else "the NVIDIA driver shows no GPU")


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
