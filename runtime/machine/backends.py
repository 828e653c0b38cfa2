"""Which backends run here, or at least build here, and what the others lack."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module, invalidate_caches
from importlib.util import find_spec
from pathlib import Path

from ...errors import MachineError, UsageError
from .device import find_gpus, selected_gpu

BACKENDS = ("onnxruntime", "tensorrt", "tensorrt-rtx")
MODULES = {
    "onnxruntime": "onnxruntime",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
}
_MIN_NUMBERS = 3  # of a version: plans of 10.3.0 do not load in 10.3.1
COMPILE_ONLY = ("tensorrt-rtx",)  # build without a GPU too; what they build does not run there
RTX_COMPUTE = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")  # ComputeCapability of RTX 1.7.1

_REMEDY = (
    "for good: create the environment again with `python3 -m venv --system-site-packages`, with the"
    " system's own python3"
)


def library_version(backend: str) -> str:
    """The version that a backend's module names; loads the module.

    The name of the distribution does not decide: `tensorrt-cu12` and JetPack's packages install the
    module `tensorrt` too.

    Args:
        backend: One of `BACKENDS`.

    Returns:
        The module's `__version__`, "" where it cannot be loaded.
    """
    try:
        return str(getattr(import_module(MODULES[backend]), "__version__", ""))
    except Exception:  # a damaged package, or one for another NumPy, raises anything
        return ""


def same_version(a: str, b: str) -> bool:
    """Whether two texts name one version of TensorRT, in as many numbers as both have.

    A plan's header holds four numbers (10.3.0.30) where JetPack's module names three (10.3.0).

    Args:
        a: A version, such as "10.3.0.30".
        b: Another, such as "10.3.0"; both need three numbers at least, unless they are equal.
    """
    first, second = _numbers(a), _numbers(b)
    size = min(len(first), len(second))
    return a == b or (size >= _MIN_NUMBERS and first[:size] == second[:size])


def _numbers(text: str) -> tuple[int, ...]:
    """The leading numbers: "8.6.1.post1" -> (8, 6, 1)."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


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
    elif needs_gpu and backend in COMPILE_ONLY:
        gpu = selected_gpu()
        if gpu is not None and gpu.compute not in RTX_COMPUTE:
            missing.append(f"TensorRT-RTX has no kernels for compute capability {gpu.compute}")
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


@contextmanager
def system_tensorrt(root: Path = Path("/")) -> Iterator[str]:
    """Let Python find the distribution's own tensorrt while the block runs, where no other is there.

    Its folder goes to the end of the module path, so that the environment's own packages win.

    Args:
        root: Of the file system.

    Yields:
        What was done or why nothing could be, with the remedy; "" where nothing had to be.
    """
    if find_spec("tensorrt") is not None:
        yield ""
        return
    here = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    folders = sorted(root.glob("usr/lib/python3*/dist-packages/tensorrt"))
    own = [folder for folder in folders if folder.parts[-3] == here]
    if not own:
        others = ", ".join(folder.parts[-3] for folder in folders)
        text = f"JetPack's tensorrt is for {others}, and this is {here}; {_REMEDY}"
        yield text if folders else ""
        return
    path = str(own[0].parent)
    sys.path.append(path)
    invalidate_caches()
    try:
        yield (
            "JetPack's tensorrt is outside this virtual environment; it was found and is used for"
            f" this run only; {_REMEDY}"
        )
    finally:
        if path in sys.path:
            sys.path.remove(path)
