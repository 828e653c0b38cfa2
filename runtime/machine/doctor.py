"""What signs of a machine mean, and the remedy for each. Rules only: nothing here looks anywhere."""

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .backends import BACKENDS, lacking
from .device import Device, describe_device, find_gpus, package_version
from .tegrastats import power_mode


@dataclass(frozen=True)
class SystemInfo:
    """What `doctor` saw. `versions` are installed packages', "" or absent where there is none.

    `card` is an NVIDIA card on the PCI bus, `gpu` one that the driver serves; `driver` is the CUDA
    version that the driver serves; `modules` those of tensorrt, pycuda and cuda that Python finds.
    """

    jetson: bool = False
    l4t: str = ""
    power_mode: str = ""
    card: bool = False
    gpu: bool = False
    driver: str = ""
    driver_lack: str = ""
    in_environment: bool = False
    modules: frozenset[str] = frozenset()
    versions: Mapping[str, str] | None = None
    system_tensorrt: str = ""
    cuda_root: str = ""
    memory_gb: float = 0.0


def diagnose_system(signs: SystemInfo) -> Iterator[str]:
    """One sentence for each thing that is wrong; it ends with what to do."""
    yield from _driver(signs)
    if signs.gpu or signs.jetson:
        yield from _tensorrt(signs)
        yield from _packages(signs)
    if signs.power_mode and "MAXN" not in signs.power_mode.upper():
        yield (
            f"power mode {signs.power_mode}: latencies measured now are this mode's;"
            " `sudo nvpmodel -m 0 && sudo jetson_clocks` before you measure"
        )
    if 0 < signs.memory_gb < 2:
        yield (
            f"{signs.memory_gb:g} GB of memory: calibrate on another machine and copy the bundle"
        )


def _driver(signs: SystemInfo) -> Iterator[str]:
    if signs.gpu or not (signs.card or signs.jetson or signs.driver):
        return  # a machine without a GPU is not ill
    if signs.jetson:
        remedy = "in a container start it with `--runtime nvidia`, else flash JetPack again"
    elif signs.driver:
        remedy = "in a container start it with `--gpus all`, else reboot after a driver update"
    else:
        remedy = "install NVIDIA's driver and reboot; in a container start it with `--gpus all`"
    what = "there is an NVIDIA GPU" if signs.card or signs.jetson else "there is NVIDIA's driver"
    yield f"{what}, but no GPU that can be used: {signs.driver_lack}; {remedy}"


def _tensorrt(signs: SystemInfo) -> Iterator[str]:
    versions = signs.versions or {}
    if "tensorrt" not in signs.modules:
        if signs.system_tensorrt and signs.in_environment:
            yield (
                f"JetPack's tensorrt ({signs.system_tensorrt}) is outside this virtual"
                " environment: make it anew with `python3 -m venv --system-site-packages`, with the"
                " system's own python3"
            )
        elif signs.jetson:
            yield (
                "tensorrt is not installed: `sudo apt install python3-libnvinfer`; pip's wheels"
                " are not for Jetson"
            )
        else:
            yield "tensorrt is not installed: pip install 'fr-edge[tensorrt]'"
    for package, needed in (("tensorrt-cu12", 12), ("tensorrt-cu13", 13)):
        if package in versions and signs.driver and int(signs.driver.split(".")[0]) < needed:
            other = "tensorrt-cu12" if needed == 13 else "an older tensorrt"
            yield (
                f"{package} {versions[package]} needs a driver for CUDA {needed}, this one serves"
                f" {signs.driver}: update the driver, or install {other}"
            )
    if signs.jetson and "R36" in signs.l4t and versions.get("tensorrt", "").startswith("11"):
        yield (
            f"tensorrt {versions['tensorrt']} does not support JetPack 6: pip uninstall it, and use"
            " JetPack's own 10.3"
        )


def _packages(signs: SystemInfo) -> Iterator[str]:
    if not signs.modules & {"pycuda", "cuda"}:
        yield f"neither pycuda nor cuda-python is installed: {_how_to_get_cuda(signs)}"
    torch = (signs.versions or {}).get("torch", "")
    if torch.endswith("+cpu"):
        yield (
            f"torch {torch} is built for the CPU, so training and export do not use the GPU:"
            " install a build for CUDA from pytorch.org; engines do not need it"
        )


def _how_to_get_cuda(signs: SystemInfo) -> str:
    if not signs.cuda_root:
        return "pip install cuda-python (pycuda would need the CUDA toolkit to build)"
    root = signs.cuda_root
    # pycuda finds the toolkit by the first nvcc, which a link in /usr/local/bin leads astray
    return (
        f"CUDA_ROOT={root} CPATH={root}/include LIBRARY_PATH={root}/lib64:{root}/lib64/stubs"
        " pip install pycuda, or pip install cuda-python"
    )


# What this machine can run, what the other backends lack, and what is wrong with its set-up.
#
# `ailments` holds the rules; this file looks at the machine and knows none of them.

_PCI = Path("/sys/bus/pci/devices")

_NVIDIA, _DISPLAY = "0x10de", "0x03"

_PACKAGES = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx", "torch")


@dataclass(frozen=True)
class Health:
    """`backends` maps a name to what it lacks (empty: ready); `problems` end with a remedy."""

    device: Device
    backends: dict[str, str]
    signs: SystemInfo
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "backends": {
                name: {"ready": not lack, "lacks": lack} for name, lack in self.backends.items()
            },
            "gpu": list(self.device.gpu),
            "jetson": self.device.jetson,
            "l4t": self.signs.l4t,
            "power_mode": self.signs.power_mode,
            "cuda_driver": self.signs.driver,
            "problems": list(self.problems),
            "device": self.device.to_json(),
        }


def examine() -> Health:
    """Look at this machine; loads no heavy library and raises nothing."""
    device, gpus = describe_device(), find_gpus()
    jetson = bool(device.jetson)
    signs = SystemInfo(
        jetson=jetson,
        l4t=_first_line("/etc/nv_tegra_release") if jetson else "",
        power_mode=power_mode() if jetson else "",
        card=_has_card(),
        gpu=bool(gpus.found),
        driver=gpus.driver,
        driver_lack=gpus.lack,
        in_environment=sys.prefix != sys.base_prefix,
        modules=frozenset(m for m in ("tensorrt", "pycuda", "cuda") if find_spec(m)),
        versions={name: found for name in _PACKAGES if (found := package_version(name))},
        system_tensorrt=_system_tensorrt(),
        cuda_root=_cuda_root(),
        memory_gb=device.memory_gb,
    )
    lacks = {name: lacking(name) for name in BACKENDS}
    return Health(device, lacks, signs, tuple(diagnose_system(signs)))


def _has_card() -> bool:
    """Whether an NVIDIA display controller sits on the PCI bus, driver or not."""
    return any(
        _first_line(path / "vendor") == _NVIDIA and _first_line(path / "class").startswith(_DISPLAY)
        for path in (_PCI.iterdir() if _PCI.is_dir() else ())
    )


def _system_tensorrt() -> str:
    """Where the distribution's own Python packages hold tensorrt: JetPack puts it there."""
    found = sorted(Path("/usr/lib").glob("python3*/dist-packages/tensorrt"))
    return str(found[0]) if found else ""


def _cuda_root() -> str:
    """The CUDA toolkit's folder, the one with include/cuda.h; empty without one."""
    homes = [os.environ.get("CUDA_HOME", ""), os.environ.get("CUDA_ROOT", ""), "/usr/local/cuda"]
    homes += sorted(map(str, Path("/usr/local").glob("cuda-*")), reverse=True)
    return next((home for home in homes if home and Path(home, "include", "cuda.h").exists()), "")


def _first_line(path: str | Path) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return text.splitlines()[0].strip() if text else ""
