"""An engine's fingerprint: the machine it was built on, the model it was built from, its bytes.

The fingerprint lies beside the engine as `ENGINE.json`. It is compared with this machine and with
the bundle before an engine is opened.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..bundle.keys import state_folder
from ..bundle.manifest import Bundle
from ..documents import convert, read_json
from ..errors import BundleError, DataError, MachineError
from ..graph.frame_input import InputKind
from ..reading import read_file
from .machine.backends import COMPILE_ONLY, MODULES, library_version, same_version
from .machine.device import describe_device, selected_gpu

logger = logging.getLogger(__name__)

SOURCES = {
    "fp32": "model.onnx",
    "fp16": "model.fp16.onnx",
    "fp8": "model.fp8.onnx",
    "int8": "model.int8.onnx",
}
PRECISIONS = tuple(SOURCES)

DETECTOR_SOURCES = {
    "fp32": "detector.onnx",
    "fp16": "detector.fp16.onnx",
    "int8": "detector.int8.onnx",
}

EngineKind = InputKind | Literal["detector"]  # a face network by what it takes, or the detector


@dataclass(frozen=True)
class BackendBuild:
    """What a backend built.

    Attributes:
        layers: Precision -> operators with weights that compute in it: as built for TensorRT, as in
            the model for the CPU.
        integer_kernels: Layers that run on integer arithmetic.
        facts: What goes into the engine's fingerprint as it is.
        timing_cache: TensorRT's kernel timings, for the next build.
    """

    layers: Mapping[str, int]
    integer_kernels: int
    facts: Mapping[str, Any]
    timing_cache: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class _Facts:
    """What a fingerprint holds that is read again, and its types; the first five are in every one."""

    backend: str
    precision: str
    source_sha256: str
    sha256: str
    layers: dict[str, int]
    int8_in_float: int = 0
    role: str = ""
    integer_kernels: int | None = None
    integer_layers: tuple[str, ...] | None = None
    precisions: dict[str, str] | None = None

    def problem(self, name: str) -> str:
        """Why these are not the facts of the engine of that name; "" where they may be."""
        if self.backend not in MODULES or self.precision not in SOURCES:
            return f"names {self.backend!r} and {self.precision!r}, which are unknown here"
        if self.role == "detector" and self.precision not in DETECTOR_SOURCES:
            return f"names a detector's engine in {self.precision!r}, which is unknown here"
        if min([*self.layers.values(), self.int8_in_float, self.integer_kernels or 0]) < 0:
            return "counts fewer than 0 layers"
        named = re.fullmatch(rf"engines/{self.backend}-(.*-)?{self.precision}[-.].*", name)
        if not named:
            return f"is that of an engine for {self.backend} in {self.precision}, not of {name}"
        return ""


def engine_source(facts: Mapping[str, Any]) -> str:
    """The ONNX file within a bundle that an engine was built from.

    Args:
        facts: The engine's fingerprint.
    """
    detector = facts.get("role") == "detector"
    return (DETECTOR_SOURCES if detector else SOURCES)[facts["precision"]]


def engine_name(backend: str, precision: str, kind: EngineKind = "tensor") -> str:
    """The path within a bundle of the engine that is built here.

    TensorRT's has the library's version and the GPU in its name, so that one bundle serves many
    boards: "engines/tensorrt-10.3.0-orin-int8.plan", "...-int8-frame.plan".

    Args:
        backend: "onnxruntime", "tensorrt" or "tensorrt-rtx".
        precision: "fp32", "fp16", "fp8" or "int8".
        kind: What the engine takes, or "detector".
    """
    precision += "" if kind == "tensor" else f"-{kind}"
    if backend != "tensorrt":
        return f"engines/{backend}-{precision}.{'onnx' if backend == 'onnxruntime' else 'plan'}"
    facts = machine_fingerprint(backend)
    words = (backend, facts[MODULES[backend]], _slug(facts["gpu"]), precision)
    return f"engines/{'-'.join(filter(None, words))}.plan"


def find_engine(
    bundle: Bundle, backend: str, precision: str, kind: EngineKind = "tensor"
) -> str | None:
    """The bundle's engine for this machine.

    Args:
        bundle: An open bundle.
        backend: "onnxruntime", "tensorrt" or "tensorrt-rtx".
        precision: "fp32", "fp16", "fp8" or "int8".
        kind: What the engine takes, or "detector".

    Returns:
        The path within the bundle of the engine that was built here, else of one that may be used
        here, else of one that was built elsewhere; None where there is no engine.
    """
    own = engine_name(backend, precision, kind)
    ending = own[own.rindex(f"-{precision}") :]
    if own in bundle or backend != "tensorrt":
        return own if own in bundle else None
    names = [
        name
        for name in sorted(bundle.files)
        if name.startswith(f"engines/{backend}-")
        and not name.startswith("engines/tensorrt-rtx-")
        and name.endswith(ending)
    ]
    usable = (n for n in names if not any(differences(read_fingerprint(bundle, n))))
    return next(usable, names[0]) if names else None


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def machine_fingerprint(backend: str) -> dict[str, Any]:
    """What must be equal for an engine to be used on this machine.

    Args:
        backend: "onnxruntime", "tensorrt" or "tensorrt-rtx".

    Returns:
        Key of the fingerprint -> this machine's value.
    """
    device = describe_device()
    module = MODULES[backend]
    facts = {"backend": backend, module: library_version(backend), "arch": device.arch}
    if backend == "onnxruntime":
        return {**facts, "cpu": device.cpu}
    if backend in COMPILE_ONLY:  # built for a list of compute capabilities, not for this machine
        return facts
    gpu = selected_gpu()
    return {
        **facts,
        "gpu": device.jetson or (gpu.name if gpu else ""),
        "compute_capability": gpu.compute if gpu else "",
    }


def differences(facts: Mapping[str, Any]) -> Iterator[str]:
    """In which respects an engine was not built for this machine.

    Args:
        facts: The engine's fingerprint.

    Returns:
        "was built for ..." for each.
    """
    backend = facts["backend"]
    free = {MODULES[backend]} if facts.get("version_compatible") else set()
    free |= {"gpu", "compute_capability"} if facts.get("hardware_compatible") else set()
    for key, here in machine_fingerprint(backend).items():
        there = facts.get(key)
        same = here == there or (key == MODULES[backend] and same_version(str(there), str(here)))
        if key not in free and not same:
            yield f"was built for {key} {facts.get(key)!r}, this machine has {here!r}"


def read_fingerprint(bundle: Bundle, name: str) -> dict[str, Any]:
    """Read an engine's fingerprint.

    Args:
        bundle: An open bundle.
        name: The engine's path within it.

    Returns:
        The fingerprint; `backend`, `precision`, `source_sha256`, `sha256`, `layers` (precision ->
        count), `int8_in_float` and `role` ("" or "detector") are always there.

    Raises:
        BundleError: The fingerprint is missing or damaged.
    """
    path = bundle.file(f"{name}.json")
    try:
        facts = read_json(path, dict[str, Any])
        read = convert(facts, _Facts, path)
    except DataError as error:
        raise BundleError(f"{path} cannot be read: {error}", "build the engine again") from error
    if problem := read.problem(name):
        raise BundleError(f"{path} {problem}", "build the engine again")
    known = {key: value for key, value in asdict(read).items() if value is not None}
    return {**facts, **known}


def check_fingerprint(bundle: Bundle, name: str) -> dict[str, Any]:
    """Read an engine's fingerprint and check that the engine may be used here.

    Args:
        bundle: An open bundle.
        name: The engine's path within it.

    Returns:
        The fingerprint.

    Raises:
        MachineError: The engine was built on another machine or library version.
        BundleError: The fingerprint is damaged, or the model or the engine is not the one that it
            describes.
    """
    facts = read_fingerprint(bundle, name)
    backend, precision = facts["backend"], facts["precision"]
    role = " --role detector" if facts["role"] == "detector" else ""
    again = f"run `fr-edge build-engine BUNDLE{role} --{precision} --backend {backend}`"
    source = engine_source(facts)
    if source not in bundle or facts["source_sha256"] != bundle.files[source].sha256:
        raise BundleError(f"{name} was built from another {source}", f"{again} again")
    if facts["sha256"] != bundle.files[name].sha256:
        raise BundleError(
            f"{name} is not the engine that its fingerprint describes: the sha256 differ",
            f"{again} again",
        )
    for difference in differences(facts):
        raise MachineError(f"{name} {difference}", f"{again} here")
    return facts


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
        data = read_file(path, "ENGINE_MB", BundleError)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(data).hexdigest()
    if sha256 and digest != sha256:
        raise BundleError(
            f"{path} was changed: its sha256 is not the manifest's {sha256[:12]}...",
            "restore the file, or run the stage that made it again",
        )
    return data, digest


def record_build(sha256: str) -> None:
    """Note that this user has built an engine here.

    The list lies in the user's own folder: `fr-edge/built` in XDG_STATE_HOME or ~/.local/state.

    Args:
        sha256: Of the engine, hexadecimal.
    """
    path = _builds()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with open(handle, "w", encoding="ascii") as stream:
            stream.write(f"{sha256}\n")
    except OSError as error:
        logger.warning("%s cannot be written (%s): sign the engine", path, error.strerror)


def built_here(sha256: str) -> bool:
    """Whether `record_build` has noted an engine.

    Args:
        sha256: Of the engine, hexadecimal.
    """
    try:
        return sha256 in read_file(_builds(), "LIST_MB").decode("ascii").split()
    except (DataError, OSError, ValueError):
        return False


def _builds() -> Path:
    return state_folder() / "built"
