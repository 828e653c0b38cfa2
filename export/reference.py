"""What a network computes before fr-edge touches it: functions from input to embedding.

Neither knows how a face becomes the input: `faces.contract.preprocess` does. torch is imported by
the functions that need it, so a machine without it can still run ONNX.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from ..bundle import Bundle
from ..errors import ModelError

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]
Embed = Callable[[Floats], Floats]
"""`(N, 3, H, W) float32 -> (N, D) float32`, any N of 1 or more."""

_BATCH = 64


def torch_embedder(bundle: Bundle) -> Embed:
    """The bundle's PyTorch weights as a function, `(N, 3, H, W) float32 -> (N, D) float32`.

    Raises BundleError when it has no model.pt, ModelError when that cannot be used, MachineError
    when torch is not installed.
    """
    from .torch_source import load_network

    network, _, _ = load_network(bundle.file("model.pt"))
    return module_embedder(network)


def module_embedder(network: "torch.nn.Module") -> Embed:
    """A PyTorch network in eval mode as a function."""
    import torch

    network = network.float().eval()

    def embed(inputs: Floats) -> Floats:
        with torch.no_grad():
            parts = [
                network(torch.from_numpy(np.ascontiguousarray(part))).numpy()
                for part in _parts(inputs, _BATCH)
            ]
        return np.concatenate(parts)

    return embed


def exact_embedder(network: "torch.nn.Module") -> Callable[[Floats], npt.NDArray[np.float64]]:
    """The same in double precision, `(N, 3, H, W) float32 -> (N, D) float64`."""
    import copy

    import torch

    network = copy.deepcopy(network).double().eval()

    def embed(inputs: Floats) -> npt.NDArray[np.float64]:
        with torch.no_grad():
            parts = [
                network(torch.from_numpy(part.astype(np.float64))).numpy()
                for part in _parts(inputs, _BATCH)
            ]
        return np.concatenate(parts)

    return embed


def onnx_embedder(model: bytes) -> Embed:
    """An ONNX model with one input and one output as a function, on onnxruntime's CPU.

    A model with a fixed batch is fed that many faces at a time. Raises ModelError when onnxruntime
    refuses the model or a run of it.
    """
    session = _session(model)
    face = session.get_inputs()[0]
    fixed = face.shape[0] if isinstance(face.shape[0], int) else None

    def embed(inputs: Floats) -> Floats:
        results = []
        for part in _parts(inputs, fixed or _BATCH):
            count = len(part)
            if fixed and count < fixed:
                part = np.concatenate([part, np.repeat(part[-1:], fixed - count, axis=0)])
            out = _run(session, face.name, part)[0]
            whole = len(part) == 1 or len(out) == len(part)  # of one face, a squeeze may leave (D,)
            results.append(out.reshape(len(part), -1)[:count] if whole else out)
        return np.concatenate(results).astype(np.float32)

    return embed


def original_embedder(model: bytes) -> Embed:
    """The same for somebody's file, whose batch may be free in name alone: where several faces at
    a time do not give as many embeddings, one at a time is what it was made for."""
    embed = onnx_embedder(model)

    def patient(inputs: Floats) -> Floats:
        try:
            found = embed(inputs)
            if found.ndim == 2 and len(found) == len(inputs):
                return found
        except ModelError:
            if len(inputs) == 1:
                raise
        return np.concatenate([embed(one[None]) for one in inputs])

    return patient


def run_once(model: bytes, inputs: Floats) -> list[npt.NDArray[Any]]:
    """All outputs of a model for one input; raises ModelError when it does not run."""
    session = _session(model)
    return _run(session, session.get_inputs()[0].name, inputs)


def run_constants(model: bytes) -> list[npt.NDArray[Any]]:
    """All outputs of a model without inputs; raises ModelError when it does not run."""
    session = _session(model)
    try:
        return list(session.run(None, {}))
    except Exception as error:
        raise ModelError(f"the network's constants cannot be computed: {_line(error)}") from error


def _parts(inputs: Floats, size: int) -> list[Floats]:
    return [inputs[start : start + size] for start in range(0, len(inputs), size)]


def _session(model: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised; stderr belongs to the command line
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes derive from Exception alone
        raise ModelError(f"onnxruntime cannot load the network: {_line(error)}") from error


def _run(session: Any, name: str, inputs: Floats) -> list[npt.NDArray[Any]]:
    try:
        return list(session.run(None, {name: inputs}))
    except Exception as error:
        shape = "x".join(map(str, inputs.shape))
        raise ModelError(
            f"the network does not run on an input of {shape}: {_line(error)}"
        ) from error


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
