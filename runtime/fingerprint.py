"""What an engine remembers: the machine it was built on and the model it was built from."""

import json
from typing import Any

from ..bundle import Bundle
from ..errors import BundleError, MachineError
from . import cpu
from .device import describe_device

SOURCES = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}


def machine_fingerprint(backend: str) -> dict[str, Any]:
    """What must be equal for an engine of this backend to be used here."""
    device = describe_device()
    if backend == cpu.NAME:
        return {
            "backend": backend,
            "onnxruntime": device.packages.get("onnxruntime", ""),
            "cpu": device.cpu,
            "arch": device.arch,
        }
    raise NotImplementedError(backend)


def check_fingerprint(bundle: Bundle, name: str) -> dict[str, Any]:
    """The fingerprint of the engine `name`.

    Raises MachineError when it was built on something else, BundleError when its model changed
    since or the fingerprint is damaged.
    """
    path = bundle.file(f"{name}.json")
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        backend, precision = str(found["backend"]), str(found["precision"])
        source = SOURCES[precision]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} cannot be read: {error}", "build the engine again") from error
    again = f"run `fr-edge build-engine BUNDLE --{precision} --backend {backend}`"
    for key, here in machine_fingerprint(backend).items():
        if found.get(key) != here:
            raise MachineError(
                f"{name} was built for {key} {found.get(key)!r}, this machine has {here!r}",
                f"{again} here",
            )
    if source not in bundle or found.get("source_sha256") != bundle.files[source].sha256:
        raise BundleError(f"{name} was built from another {source}", f"{again} again")
    return found
