"""What this machine can run, what the other backends lack, and what is wrong with its set-up.

`ailments` holds the rules; this file looks at the machine and knows none of them.
"""

import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .ailments import Signs, ailments
from .backends import BACKENDS, lacking
from .device import Device, describe_device, package_version
from .gpus import find_gpus
from .tegrastats import power_mode

_PCI = Path("/sys/bus/pci/devices")
_NVIDIA, _DISPLAY = "0x10de", "0x03"
_PACKAGES = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx", "torch")


@dataclass(frozen=True)
class Health:
    """`backends` maps a name to what it lacks (empty: ready); `problems` end with a remedy."""

    device: Device
    backends: dict[str, str]
    signs: Signs
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
    signs = Signs(
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
    return Health(device, lacks, signs, tuple(ailments(signs)))


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
