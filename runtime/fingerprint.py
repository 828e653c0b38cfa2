"""What an engine remembers: the machine it was built on and the model it was built from."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..bundle.manifest import Bundle
from ..errors import BundleError, MachineError
from .machine.backends import COMPILE_ONLY, MODULES
from .machine.device import describe_device, find_gpus

SOURCES = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}


def machine_fingerprint(backend: str) -> dict[str, Any]:
    """What must be equal for an engine of this backend to be used here."""
    device = describe_device()
    module = MODULES[backend]
    facts = {"backend": backend, module: device.packages.get(backend, ""), "arch": device.arch}
    if backend == "onnxruntime":
        return {**facts, "cpu": device.cpu}
    if backend in COMPILE_ONLY:  # made for a list of compute capabilities, not for this machine
        return facts
    gpu = next(iter(find_gpus().gpus), None)
    return {
        **facts,
        "gpu": device.jetson or (gpu.name if gpu else ""),
        "compute_capability": gpu.compute if gpu else "",
    }


def differences(found: Mapping[str, Any]) -> Iterator[str]:
    """In which respects an engine's fingerprint is not this machine's: "was built for ..."."""
    backend = found["backend"]
    free = {MODULES[backend]} if found.get("version_compatible") else set()
    free |= {"gpu", "compute_capability"} if found.get("hardware_compatible") else set()
    for key, here in machine_fingerprint(backend).items():
        if key not in free and found.get(key) != here:
            yield f"was built for {key} {found.get(key)!r}, this machine has {here!r}"


def read_fingerprint(bundle: Bundle, name: str) -> dict[str, Any]:
    """The fingerprint of the engine `name`; raises BundleError when it is missing or damaged."""
    path = bundle.file(f"{name}.json")
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = found["backend"] in MODULES and found["precision"] in SOURCES
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} cannot be read: {error}", "build the engine again") from error
    if not known:
        raise BundleError(
            f"{path} names {found['backend']!r} and {found['precision']!r}, which are unknown here",
            "build the engine again",
        )
    return found


def check_fingerprint(bundle: Bundle, name: str) -> dict[str, Any]:
    """The fingerprint of the engine `name`, if it may be used here.

    Raises MachineError when it was built on something else, BundleError when its model changed
    since or the fingerprint is damaged.
    """
    found = read_fingerprint(bundle, name)
    backend, precision = found["backend"], found["precision"]
    again = f"run `fr-edge build-engine BUNDLE --{precision} --backend {backend}`"
    for difference in differences(found):
        raise MachineError(f"{name} {difference}", f"{again} here")
    source = SOURCES[precision]
    if source not in bundle or found.get("source_sha256") != bundle.files[source].sha256:
        raise BundleError(f"{name} was built from another {source}", f"{again} again")
    if found.get("sha256") != bundle.files[name].sha256:
        raise BundleError(
            f"{name} is not the engine that its fingerprint describes: the sha256 differ",
            f"{again} again",
        )
    return found


def read_expected(path: Path, sha256: str = "") -> tuple[bytes, str]:
    """Read a file whole, so that the bytes that are used are the bytes that were checked.

    Args:
        path: The file.
        sha256: The expected digest, hexadecimal; "" accepts any bytes.

    Returns:
        The bytes and their sha256.

    Raises:
        BundleError: The file cannot be read, or its sha256 is not the expected one.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(data).hexdigest()
    if sha256 and digest != sha256:
        raise BundleError(
            f"{path} was changed: its sha256 is not the manifest's {sha256[:12]}...",
            "restore the file, or run the stage that made it again",
        )
    return data, digest
