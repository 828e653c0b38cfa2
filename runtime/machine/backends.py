"""Which backends run here, or at least build here, and what the others lack."""

from importlib.util import find_spec

from ...errors import MachineError, UsageError
from .device import find_gpus

BACKENDS = ("onnxruntime", "tensorrt", "tensorrt-rtx")
MODULES = {
    "onnxruntime": "onnxruntime",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
}
COMPILE_ONLY = ("tensorrt-rtx",)  # build without a GPU too; what they build does not run there


def lacking(backend: str, *, build: bool = False) -> str:
    """What this machine lacks to run a backend, or to build with it.

    Args:
        backend: One of `BACKENDS`.
        build: Ask about building engines instead of running them.

    Returns:
        A sentence, "" where nothing is missing.
    """
    missing = []
    if find_spec(MODULES[backend]) is None:
        missing.append(f"the package {MODULES[backend]} is not installed")
    needs_gpu = backend != "onnxruntime" and not (build and backend in COMPILE_ONLY)
    if needs_gpu and (lack := find_gpus().lack):
        missing.append(lack)
    return "; ".join(missing)


def pick_backend(name: str, *, build: bool = False) -> str:
    """The backend that a name stands for on this machine.

    Args:
        name: One of `BACKENDS`, or "auto": TensorRT where it can run, else onnxruntime.
        build: The backend shall build engines, not run them.

    Returns:
        One of `BACKENDS`.

    Raises:
        UsageError: An unknown name.
        MachineError: The backend cannot be used here; the message names what is missing.
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
