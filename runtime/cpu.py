"""The `onnxruntime` backend: sessions and engines on the CPU.

It runs the same Q/DQ graph that TensorRT gets, with onnxruntime's arithmetic: where it has no
integer kernel for a pattern (convolution -> PReLU -> quantise) it computes in float between Q and
DQ. It shows INT8's accuracy, not its speed.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ModelError

NAME = "onnxruntime"
_MAX_BATCH = 32


class CpuSession:
    """A `runtime.session.Session` on onnxruntime's CPU provider."""

    def __init__(self, file: Path, precision: str, *, as_built: bool = False) -> None:
        self.backend = NAME
        self.precision = precision
        self._session = _open(file, as_built)
        self._input = self._session.get_inputs()[0].name
        self.dim = int(self._session.get_outputs()[0].shape[-1])

    def embed(self, faces: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """`(N, 3, H, W) float32` -> `(N, D) float32`, as the network gives it."""
        parts = [
            self._session.run(None, {self._input: faces[start : start + _MAX_BATCH]})[0]
            for start in range(0, len(faces), _MAX_BATCH)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)


def build(source: Path, target: Path) -> dict[str, int]:
    """Optimise `source` for this CPU and keep the result; returns how often each operator runs."""
    import onnx
    import onnxruntime as ort

    options = _options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(target)
    _load(source, options)
    executed: dict[str, int] = {}
    for node in onnx.load(target).graph.node:
        executed[node.op_type] = executed.get(node.op_type, 0) + 1
    return executed


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0))


def _open(file: Path, as_built: bool) -> Any:
    import onnxruntime as ort

    options = _options()
    if as_built:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _load(file, options)


def _options() -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = cores()
    return options


def _load(file: Path, options: Any) -> Any:
    import onnxruntime as ort

    try:
        return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base of their own
        raise ModelError(f"onnxruntime cannot load {file.name}: {error}") from error
