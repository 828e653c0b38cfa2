"""What this machine can run, what the other backends lack, and what is wrong with its set-up."""

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from .backends import BACKENDS, lacking
from .device import Device, describe_device


@dataclass(frozen=True)
class Health:
    """`backends` maps a name to what it lacks (empty: ready); `problems` end with a remedy."""

    device: Device
    backends: dict[str, str]
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "backends": {
                name: {"ready": not lack, "lacks": lack} for name, lack in self.backends.items()
            },
            "gpu": list(self.device.gpu),
            "jetson": self.device.jetson,
            "problems": list(self.problems),
            "device": self.device.to_json(),
        }


def examine() -> Health:
    """Look at this machine; loads no heavy library and raises nothing."""
    device = describe_device()
    return Health(device, {name: lacking(name) for name in BACKENDS}, tuple(_problems(device)))


def _problems(device: Device) -> list[str]:
    found = []
    if device.jetson and find_spec("tensorrt") is None and sys.prefix != sys.base_prefix:
        found.append(
            "JetPack's tensorrt is outside this virtual environment: make the environment anew"
            " with `python3 -m venv --system-site-packages`"
        )
    if device.gpu and find_spec("pycuda") is None and find_spec("cuda") is None:
        found.append(
            "there is a GPU, but neither pycuda nor cuda-python is installed:"
            " pip install 'fr-edge[tensorrt]'"
        )
    if 0 < device.memory_gb < 2:
        found.append(
            f"{device.memory_gb:g} GB of memory: calibrate on another machine and copy the bundle"
        )
    return found
