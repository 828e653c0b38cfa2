"""Which backends can run here, or at least build, and what the others lack."""

from importlib.util import find_spec

from ...errors import MachineError, UsageError
from .device import find_gpus

BACKENDS = ("onnxruntime", "tensorrt", "tensorrt-rtx")

MODULES = {
    "onnxruntime": "onnxruntime",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
}

COMPILE_ONLY = ("tensorrt-rtx",)
"""Backends that build without a GPU; what they build cannot run there."""


def lacking(backend: str, *, build: bool = False) -> str:
    """What this machine lacks to run `backend`, or to `build` with it, in a sentence; or empty."""
    missing = []
    if find_spec(MODULES[backend]) is None:
        missing.append(f"the package {MODULES[backend]} is not installed")
    needs_gpu = backend != "onnxruntime" and not (build and backend in COMPILE_ONLY)
    if needs_gpu and (lack := find_gpus().lack):
        missing.append(lack)
    return "; ".join(missing)


def pick_backend(name: str, *, build: bool = False) -> str:
    """`auto` or a name -> a backend that runs here, or builds here.

    `auto` is TensorRT where it can run, else onnxruntime. Raises UsageError for an unknown name,
    MachineError with what this machine lacks.
    """
    if name == "auto":
        return "onnxruntime" if lacking("tensorrt") else "tensorrt"
    if name not in BACKENDS:
        raise UsageError(f"no backend {name!r}", f"backends: auto, {', '.join(BACKENDS)}")
    if lack := lacking(name, build=build):
        raise MachineError(
            f"the {name} backend cannot be used on this machine: {lack}",
            "use --backend onnxruntime here; `fr-edge doctor` shows what is available",
        )
    return name
