"""Which backends can run here, and what the others lack."""

from importlib.util import find_spec

from ..errors import MachineError, UsageError
from .device import gpu_names

BACKENDS = ("onnxruntime", "tensorrt", "tensorrt-rtx")


def lacking(backend: str) -> str:
    """What this machine lacks for `backend`, in a sentence; empty when it can run."""
    if backend == "onnxruntime":
        return "" if find_spec("onnxruntime") else "the package onnxruntime is not installed"
    module = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}[backend]
    missing = []
    if not gpu_names():
        missing.append("no NVIDIA GPU was found")
    if find_spec(module) is None:
        missing.append(f"the package {module} is not installed")
    return "; ".join(missing) or "this version of fr-edge cannot drive it yet"


def pick_backend(name: str) -> str:
    """`auto` or a name -> a backend that runs here.

    Raises UsageError for an unknown name, MachineError with what this machine lacks.
    """
    if name == "auto":
        return BACKENDS[0]
    if name not in BACKENDS:
        raise UsageError(f"no backend {name!r}", f"backends: auto, {', '.join(BACKENDS)}")
    if lack := lacking(name):
        raise MachineError(
            f"the {name} backend cannot be used on this machine: {lack}",
            "use --backend onnxruntime here; `fr-edge doctor` shows what is available",
        )
    return name
