"""What this machine can run, what the other backends lack, and what is wrong with its set-up.

`diagnose_system` holds the rules and looks at nothing; `examine_system` looks at the machine.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from .backends import BACKENDS, lacking
from .device import (
    Device,
    cuda_python_install,
    describe_device,
    find_gpus,
    package_version,
)
from .sensors import read_text
from .tegrastats import fastest_mode, power_mode, power_modes

_PCI = Path("/sys/bus/pci/devices")
_NVIDIA, _DISPLAY = (
    "0x10de",
    "0x03",
)  # PCI vendor, and the class that display controllers begin with
_PACKAGES = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx", "torch")
_MODULES = {
    "tensorrt": ("tensorrt",),
    "pycuda": ("pycuda",),
    # The folder `cuda` alone may be another package's, as cuda-pathfinder's, which torch brings.
    "cuda": ("cuda.bindings.driver", "cuda.cuda"),
}
"""Name in `SystemInfo.modules` -> modules of which one must be there."""
_SMALL_GB = 2  # of memory: calibration takes 250 MB beside onnxruntime and the network


@dataclass(frozen=True)
class SystemInfo:
    """What decides which problems a machine has.

    Attributes:
        jetson: Whether this is a Jetson.
        l4t: First line of a Jetson's release file.
        power_mode: Such as "15W"; "" where it is not reported.
        power_modes: Number -> name of the board's power modes.
        card: Whether an NVIDIA card sits on the PCI bus.
        gpu: Whether the driver serves a GPU.
        driver: The CUDA version that the driver serves, "" without a driver.
        driver_lack: Why the driver serves no GPU.
        in_environment: Whether Python runs in a virtual environment.
        modules: Those of tensorrt, pycuda and cuda that Python finds.
        versions: Installed package -> version.
        system_tensorrt: The distribution's own tensorrt package, "" without one.
        cuda_root: The CUDA toolkit's folder, "" without one.
        memory_gb: The machine's memory, 0 where it is not known.
    """

    jetson: bool = False
    l4t: str = ""
    power_mode: str = ""
    power_modes: Mapping[int, str] | None = None
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


@dataclass(frozen=True)
class BackendState:
    """Whether a backend runs here.

    Attributes:
        ready: Whether it does.
        lacks: What is missing, "" when it is ready.
    """

    ready: bool
    lacks: str


@dataclass(frozen=True)
class SystemReport:
    """What `fr-edge doctor` reports.

    Attributes:
        backends: Backend -> its state.
        gpu: Names of the GPUs.
        jetson: The board's name, "" elsewhere.
        l4t: First line of a Jetson's release file.
        power_mode: A Jetson's, "" elsewhere.
        cuda_driver: The CUDA version that the driver serves, "" without a driver.
        problems: One sentence each, ending with the remedy.
        device: The machine.
    """

    backends: Mapping[str, BackendState]
    gpu: tuple[str, ...]
    jetson: str
    l4t: str
    power_mode: str
    cuda_driver: str
    problems: tuple[str, ...]
    device: Device


def examine_system() -> SystemReport:
    """Look at this machine; loads no heavy library and raises nothing."""
    device, gpus = describe_device(), find_gpus()
    jetson = bool(device.jetson)
    info = SystemInfo(
        jetson=jetson,
        l4t=_first_line(Path("/etc/nv_tegra_release")) if jetson else "",
        power_mode=power_mode() if jetson else "",
        power_modes=power_modes() if jetson else None,
        card=_has_card(),
        gpu=bool(gpus.gpus),
        driver=gpus.driver,
        driver_lack=gpus.lack,
        in_environment=sys.prefix != sys.base_prefix,
        modules=frozenset(name for name, paths in _MODULES.items() if any(map(_finds, paths))),
        versions={name: number for name in _PACKAGES if (number := package_version(name))},
        system_tensorrt=_system_tensorrt(),
        cuda_root=_cuda_root(),
        memory_gb=device.memory_gb,
    )
    lacks = {name: lacking(name) for name in BACKENDS}
    if not info.modules & {"pycuda", "cuda"}:
        no_package = "neither cuda-python nor pycuda is installed"
        for name in set(BACKENDS) - {"onnxruntime"}:
            lacks[name] = "; ".join(filter(None, (lacks[name], no_package)))
    return SystemReport(
        backends={name: BackendState(not lack, lack) for name, lack in lacks.items()},
        gpu=device.gpu,
        jetson=device.jetson,
        l4t=info.l4t,
        power_mode=info.power_mode,
        cuda_driver=info.driver,
        problems=tuple(diagnose_system(info)),
        device=device,
    )


def diagnose_system(info: SystemInfo) -> Iterator[str]:
    """Find what is wrong with a machine's set-up.

    Args:
        info: What is known of the machine. No GPU is not an error.

    Returns:
        One sentence for each problem; it ends with what to do.
    """
    yield from _driver(info)
    if info.gpu or info.jetson:
        yield from _tensorrt(info)
        yield from _packages(info)
    yield from _power_mode(info)
    if 0 < info.memory_gb < _SMALL_GB:
        yield f"{info.memory_gb:g} GB of memory: calibrate on another machine and copy the bundle"


def _power_mode(info: SystemInfo) -> Iterator[str]:
    fastest = fastest_mode(info.power_modes or {})
    if not info.power_mode or "MAXN" in info.power_mode.upper() and not fastest:
        return
    if fastest and fastest[1].upper() == info.power_mode.upper():
        return
    remedy = (
        f"`sudo nvpmodel -m {fastest[0]}` sets {fastest[1]}, the fastest of this board, then"
        if fastest
        else "`grep POWER_MODEL /etc/nvpmodel.conf` lists the board's modes, `sudo nvpmodel -m`"
        " with the number sets one, then"
    )
    yield (
        f"power mode {info.power_mode}: latencies measured now are this mode's; {remedy}"
        " `sudo jetson_clocks` before you measure"
    )


def _driver(info: SystemInfo) -> Iterator[str]:
    if info.gpu or not (info.card or info.jetson or info.driver):
        return
    if info.jetson:
        remedy = "in a container start it with `--runtime nvidia`, else flash JetPack again"
    elif info.driver:
        remedy = "in a container start it with `--gpus all`, else reboot after a driver update"
    else:
        remedy = "install NVIDIA's driver and reboot; in a container start it with `--gpus all`"
    what = "there is an NVIDIA GPU" if info.card or info.jetson else "there is NVIDIA's driver"
    yield f"{what}, but no GPU that can be used: {info.driver_lack}; {remedy}"


def _tensorrt(info: SystemInfo) -> Iterator[str]:
    versions = info.versions or {}
    if "tensorrt" not in info.modules:
        if info.system_tensorrt and info.in_environment:
            yield (
                f"JetPack's tensorrt ({info.system_tensorrt}) is outside this virtual"
                " environment: create it again with `python3 -m venv --system-site-packages`, with"
                " the system's own python3"
            )
        elif info.jetson:
            yield (
                "tensorrt is not installed: `sudo apt install python3-libnvinfer`; pip's wheels"
                " are not for Jetson"
            )
        else:
            yield "tensorrt is not installed: pip install tensorrt"
    for package, needed in (("tensorrt-cu12", 12), ("tensorrt-cu13", 13)):
        if package in versions and info.driver and int(info.driver.split(".")[0]) < needed:
            other = "tensorrt-cu12" if needed == 13 else "an older tensorrt"
            yield (
                f"{package} {versions[package]} needs a driver for CUDA {needed}, this one serves"
                f" {info.driver}: update the driver, or install {other}"
            )
    if info.jetson and "R36" in info.l4t and versions.get("tensorrt", "").startswith("11"):
        yield (
            f"tensorrt {versions['tensorrt']} does not support JetPack 6: pip uninstall it, and use"
            " JetPack's own 10.3"
        )


def _packages(info: SystemInfo) -> Iterator[str]:
    if not info.modules & {"pycuda", "cuda"}:
        yield f"neither cuda-python nor pycuda is installed: {_cuda_remedy(info)}"
    elif "cuda" not in info.modules:
        yield (
            "pycuda is installed, which has no CUDA graphs, and cuda-python is not:"
            f" {cuda_python_install(info.driver)}; it is taken where both are there"
        )
    torch = (info.versions or {}).get("torch", "")
    if torch.endswith("+cpu"):
        yield (
            f"torch {torch} is built for the CPU, so training and export do not use the GPU:"
            " install a build for CUDA from pytorch.org; engines do not need it"
        )


def _cuda_remedy(info: SystemInfo) -> str:
    install, root = cuda_python_install(info.driver), info.cuda_root
    if not root:
        return f"{install} (pycuda would need the CUDA toolkit to build)"
    # pycuda finds the toolkit by the first nvcc, which a link in /usr/local/bin leads astray
    return (
        f"{install}, or, without CUDA graphs, CUDA_ROOT={root} CPATH={root}/include"
        f" LIBRARY_PATH={root}/lib64:{root}/lib64/stubs pip install pycuda"
    )


def _finds(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its package is not there
        return False


def _has_card() -> bool:
    """Whether an NVIDIA display controller sits on the PCI bus, driver or not."""
    return any(
        _first_line(path / "vendor") == _NVIDIA and _first_line(path / "class").startswith(_DISPLAY)
        for path in (_PCI.iterdir() if _PCI.is_dir() else ())
    )


def _system_tensorrt() -> str:
    """Where the distribution's own Python packages hold tensorrt: JetPack puts it there."""
    paths = sorted(Path("/usr/lib").glob("python3*/dist-packages/tensorrt"))
    return str(paths[0]) if paths else ""


def _cuda_root() -> str:
    """The CUDA toolkit's folder, the one with include/cuda.h; "" without one."""
    homes = [os.environ.get("CUDA_HOME", ""), os.environ.get("CUDA_ROOT", ""), "/usr/local/cuda"]
    homes += sorted(map(str, Path("/usr/local").glob("cuda-*")), reverse=True)
    return next((home for home in homes if home and Path(home, "include", "cuda.h").exists()), "")


def _first_line(path: Path) -> str:
    lines = read_text(path).splitlines()
    return lines[0].strip() if lines else ""
