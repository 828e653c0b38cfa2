"""A named double of Triton's Python backend: `triton_python_backend_utils` with onnxruntime as the server."""

from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnxruntime


def triton_double(models: Path) -> ModuleType:
    """The module, whose requests run the repository's ONNX models.

    Args:
        models: The model repository.
    """
    module = ModuleType("triton_python_backend_utils")
    sessions: dict[str, onnxruntime.InferenceSession] = {}

    class Tensor:
        def __init__(self, name: str, array: np.ndarray) -> None:
            self.name, self.array = name, array

        def as_numpy(self) -> np.ndarray:
            return self.array

    class TritonError:
        def __init__(self, message: str) -> None:
            self.text = message

        def message(self) -> str:
            return self.text

    class InferenceResponse:
        def __init__(self, output_tensors: list, error: TritonError | None = None) -> None:
            self.tensors, self.problem = output_tensors, error

        def has_error(self) -> bool:
            return self.problem is not None

        def error(self) -> TritonError | None:
            return self.problem

    class InferenceRequest:
        def __init__(self, model_name: str, requested_output_names: list, inputs: list) -> None:
            self.model, self.names, self.inputs = model_name, requested_output_names, inputs

        def exec(self) -> InferenceResponse:
            if self.model not in sessions:
                path = models / self.model / "1" / "model.onnx"
                sessions[self.model] = onnxruntime.InferenceSession(str(path))
            feeds = {tensor.name: tensor.array for tensor in self.inputs}
            arrays = sessions[self.model].run(self.names, feeds)
            return InferenceResponse(list(map(Tensor, self.names, arrays)))

    def by_name(holder: SimpleNamespace, name: str) -> Tensor:
        return next(tensor for tensor in holder.tensors if tensor.name == name)

    for name, value in {
        "Tensor": Tensor,
        "TritonError": TritonError,
        "InferenceResponse": InferenceResponse,
        "InferenceRequest": InferenceRequest,
        "get_input_tensor_by_name": by_name,
        "get_output_tensor_by_name": by_name,
    }.items():
        setattr(module, name, value)
    return module
