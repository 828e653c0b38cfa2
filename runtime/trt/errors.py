"""What TensorRT says when it refuses a network, and what a person can do about it."""

import re

from ...errors import FrEdgeError, MachineError, ModelError

_CALIBRATE = "`fr-edge calibrate` writes what TensorRT takes"

_KNOWN: tuple[tuple[str, str, str], ...] = (
    (
        r"type Int32 but must have type",
        "a bias is quantised to int32 behind DequantizeLinear; TensorRT wants it in float",
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
        "an operator is none that TensorRT knows",
        "export the network again with `fr-edge export`, or replace the operator",
    ),
    (
        r"must be of same type|must have the same type|types? .*mismatch",
        "tensors of different types meet; strongly typed networks want a Cast between them",
        "export the network again with `fr-edge export`",
    ),
    (
        r"[Oo]ptimization profile|dynamic (or shape )?inputs?",
        "an input is dynamic in more than its batch",
        "export the network again with `fr-edge export`: only the batch may be dynamic",
    ),
    (
        r"for Turing .*FP32",
        "compute capability 7.5 has no FP32 kernel for a layer here",
        "use --fp16 or --int8, or leave 7.5 out",
    ),
    (
        r"Could not find any implementation",
        "this TensorRT has no kernel for a layer in that precision",
        "try --fp16, or leave the layer out of INT8 when you calibrate",
    ),
)

_MEMORY = re.compile(r"out of memory|OutOfMemory|within workspace limit|cudaErrorMemoryAllocation")

_DRIVER = re.compile(r"cudaError (35|100)\b|cuInit|driver version is insufficient|no CUDA-capable")


def explain_refusal(step: str, said: list[str]) -> FrEdgeError:
    """Our error around NVIDIA's messages; `step` is what was tried, "parse" or "build"."""
    text = " ".join(" ".join(said).split())
    for pattern, meaning, hint in _KNOWN:
        if re.search(pattern, text):
            return ModelError(
                f"TensorRT refuses the network: {meaning}. It says: {_short(text)}", hint
            )
    if "libnvinfer_lean" in text:
        return MachineError(
            "a version-compatible engine carries NVIDIA's lean runtime, which is not installed."
            f" TensorRT says: {_short(text)}",
            "install tensorrt-lean, or build without version compatibility",
        )
    if _DRIVER.search(text):
        return MachineError(
            f"TensorRT cannot {step} without a GPU and its driver: {_short(text)}",
            "run this on the device; `fr-edge doctor` says what it has",
        )
    return ModelError(
        f"TensorRT cannot {step} the network: {_short(text) or 'it does not say why'}",
        "`fr-edge build-engine --backend onnxruntime` may still run it on the CPU",
    )


def out_of_memory(said: list[str]) -> bool:
    return any(_MEMORY.search(text) for text in said)


def _short(text: str) -> str:
    return text if len(text) <= 600 else f"{text[:600]}..."
