"""TensorRT's messages: how they are kept, what those of a refusal mean, and what to do about each."""

import re
from collections.abc import Iterable
from functools import lru_cache
from threading import RLock, local
from typing import Any
from weakref import WeakSet

from ...errors import FrEdgeError, MachineError, ModelError

_CALIBRATE = "calibrate again: `fr-edge calibrate` writes Q/DQ that TensorRT takes"
_MAX_TEXT = 600  # characters of TensorRT's own text in a message

_ONE = RLock()

_KNOWN: tuple[tuple[str, str, str], ...] = (
    (
        r"type Int32 but must have type",
        "a bias is quantised to int32 behind DequantizeLinear; TensorRT expects it in float",
        _CALIBRATE,
    ),
    (
        r"[Nn]on-zero zero point|shiftIsAllZeros",
        "a zero point is not 0; TensorRT's INT8 is symmetric",
        _CALIBRATE,
    ),
    (
        r"slope tensor must be unidirectional broadcastable",
        "a PReLU has one slope per channel without dimensions behind it: expected (C, 1, 1)",
        "export the network again with `fr-edge export`",
    ),
    (
        r"[Pp]lugin not found|No importer registered",
        "TensorRT does not have one of the operators",
        "export the network again with `fr-edge export`, or replace the operator",
    ),
    (
        r"must be of same type|must have the same type|types? .*mismatch",
        "tensors of different types meet; strongly typed networks need a Cast between them",
        "export the network again with `fr-edge export`",
    ),
    (
        r"[Oo]ptimization profile|dynamic (or shape )?inputs?",
        "an input is dynamic in more than its batch",
        "export the network again with `fr-edge export`: only the batch may be dynamic",
    ),
    (
        r"for Turing .*FP32",
        "compute capability 7.5 has no FP32 kernel for one of the layers",
        "use --fp16 or --int8, or leave 7.5 out",
    ),
    (
        r"Could not find any implementation",
        "this TensorRT has no kernel for a layer in that precision",
        "try --fp16, or leave the layer out of INT8 when you calibrate",
    ),
)
"""Pattern in TensorRT's text, its meaning, the remedy."""

_MEMORY = re.compile(r"out of memory|OutOfMemory|within workspace limit|cudaErrorMemoryAllocation")
_OLD_DRIVER = re.compile(
    r"driver version is insufficient|cudaError 3[56]\b|not supported in the installed CUDA driver"
)
_DRIVER = re.compile(r"cudaError (35|100)\b|cuInit|driver version is insufficient|no CUDA-capable")


def explain_refusal(step: str, messages: Iterable[str]) -> FrEdgeError:
    """The error that carries TensorRT's messages, their meaning and the remedy.

    Args:
        step: What was tried, "parse" or "build".
        messages: TensorRT's.
    """
    text = _one_text(messages)
    for pattern, meaning, hint in _KNOWN:
        if re.search(pattern, text):
            return ModelError(
                f"TensorRT refuses the network: {meaning}. Its message: {_short(text)}", hint
            )
    if "libnvinfer_lean" in text:
        return MachineError(
            "a version-compatible engine carries NVIDIA's lean runtime, which is not installed."
            f" TensorRT's message: {_short(text)}",
            "install tensorrt-lean, or build without version compatibility",
        )
    if _DRIVER.search(text):
        return MachineError(
            f"TensorRT cannot {step} without a GPU and its driver: {_short(text)}",
            "run this on the device; `fr-edge doctor` lists what it has",
        )
    return ModelError(
        f"TensorRT cannot {step} the network: {_short(text) or 'it gives no reason'}",
        "`fr-edge build-engine --backend onnxruntime` may still run it on the CPU",
    )


def explain_start(module: str, version: str, messages: Iterable[str], driver: str) -> MachineError:
    """The error of a TensorRT that gives no builder or runtime.

    Args:
        module: "tensorrt" or "tensorrt_rtx".
        version: Its version.
        messages: TensorRT's.
        driver: The CUDA version that the driver serves, "" without a driver.
    """
    text = _one_text(messages)
    return _old_driver(module, version, text, driver) or MachineError(
        f"{module} {version} does not start here: {_short(text)}",
        "`fr-edge doctor` lists what this machine has",
    )


def explain_load(
    module: str, version: str, file: str, messages: Iterable[str], driver: str, hint: str
) -> MachineError:
    """The error of a plan that TensorRT does not load.

    Args:
        module: "tensorrt" or "tensorrt_rtx".
        version: Its version.
        file: The plan's name.
        messages: TensorRT's.
        driver: The CUDA version that the driver serves, "" without a driver.
        hint: What to do where the driver is not the reason.
    """
    text = _one_text(messages)
    return _old_driver(module, version, text, driver) or MachineError(
        f"TensorRT cannot load {file}: {_short(text)}", hint
    )


def _old_driver(module: str, version: str, text: str, driver: str) -> MachineError | None:
    """The error where the messages show that the driver is too old."""
    if not (driver and _OLD_DRIVER.search(text)):
        return None
    return MachineError(
        f"{module} {version} needs a newer driver than this one, which serves CUDA {driver}."
        f" Its message: {_short(text)}",
        f"update NVIDIA's driver, or install a {module} for CUDA {driver.split('.')[0]}",
    )


def _one_text(messages: Iterable[str]) -> str:
    return " ".join(" ".join(messages).split())


def out_of_memory(messages: Iterable[str]) -> bool:
    """Whether TensorRT ran out of GPU memory.

    Args:
        messages: TensorRT's.
    """
    return any(_MEMORY.search(text) for text in messages)


def _short(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."


class MessageLog:
    """What TensorRT logs while this object lives.

    In a `with` statement it alone gets what is logged in this thread; all others get the rest.

    Attributes:
        logger: What TensorRT's objects take.
        problems: Messages of errors.
        table: The builder's layers, as text.
    """

    def __init__(self, logger: Any) -> None:
        """Begin to keep messages; `recorder` does it.

        Args:
            logger: The module's only one, of `_logger`.
        """
        self.logger, self.problems, self.table = logger, list[str](), ""
        with logger.lock:
            logger.logs.add(self)

    def keep(self, message: str, *, problem: bool) -> None:
        """Take a message.

        Args:
            message: The text.
            problem: Whether it is an error.
        """
        if problem:
            self.problems.append(message)
        elif ", LayerType: " in message:  # one message of all layers, or one for each
            self.table = message if "\nName: " in message else f"{self.table}\n{message}"

    def __enter__(self) -> "MessageLog":
        self.logger.of_thread.log = self
        return self

    def __exit__(self, *exception: object) -> None:
        self.logger.of_thread.log = None


def recorder(trt: Any) -> MessageLog:
    """Keep TensorRT's problems and layer table, and print nothing.

    Args:
        trt: The module `tensorrt` or `tensorrt_rtx`.
    """
    with _ONE:  # of two threads that begin at once
        return MessageLog(_logger(trt))


@lru_cache(maxsize=4)  # there are two modules
def _logger(trt: Any) -> Any:
    """The module's only logger, which is never freed.

    TensorRT's global logger is that of the first object which lives: a logger of each session would
    be written to after it was freed ("Uses of the global logger, returned by nvinfer1::getLogger(),
    will return the existing value").
    """

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind's own; super() would not reach it
            self.logs: WeakSet[MessageLog] = WeakSet()
            self.lock, self.of_thread = RLock(), local()  # objects that are freed log, at any time

        def log(self, severity: Any, message: str) -> None:
            problem = severity in (self.Severity.INTERNAL_ERROR, self.Severity.ERROR)
            own = getattr(self.of_thread, "log", None)
            with self.lock:
                logs = [own] if own is not None else list(self.logs)
            for each in logs:
                each.keep(message, problem=problem)

    return Logger()
