"""PyTorch networks as ONNX; `distill.weights` reads their files.

torch is imported inside the functions: exporting somebody's ONNX file works without it.
"""

import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto

from ..arrays import F32
from ..bundle.manifest import Bundle
from ..errors import MachineError, UsageError
from ..faces.contract import InputSpec
from ..graph.run import _BATCH, Embed, _parts

if TYPE_CHECKING:
    import torch
    from torch import nn


def load_torch_network(path: Path, arch: str | None = None) -> "tuple[nn.Module, str, int]":
    """A network in eval mode, its name and its embedding size; see `distill.weights`.

    Raises MachineError without torch, and what `distill.weights.load_network` raises.
    """
    try:
        from ..distill import weights
    except ImportError as error:
        raise MachineError(
            "exporting PyTorch weights needs torch", "pip install 'fr-edge[train]'"
        ) from error
    return weights.load_network(path, arch)


def load_ranges(path: Path) -> dict[str, float]:
    """The INT8 ranges that the weights were trained on; see `distill.weights`."""
    from ..distill.weights import trained_ranges

    return trained_ranges(path)


def saver(
    network: "nn.Module", name: str, dim: int, ranges: Mapping[str, float]
) -> Callable[[Path], None]:
    """A function that writes the weights as the trainer does."""
    from ..distill.weights import save_network

    return lambda path: save_network(path, network.state_dict(), name, dim, ranges)


def network_to_onnx(network: "nn.Module", name: str, spec: InputSpec) -> ModelProto:
    """The network as ONNX, batch dynamic; raises UsageError when it does not take that size."""
    import torch

    face = torch.zeros(1, *spec.shape)
    try:
        with torch.no_grad():
            network(face)
    except RuntimeError as error:
        raise UsageError(
            f"{name} does not take faces of {spec.height}x{spec.width}: {error}",
            "the networks of fr-edge take --size 112x112",
        ) from error
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # The TorchScript exporter is deprecated; it is the one that writes opset 17 directly.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        path = Path(folder, "network.onnx")
        torch.onnx.export(
            network,
            (face,),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["face"],
            output_names=["embedding"],
            dynamic_axes={"face": {0: "batch"}, "embedding": {0: "batch"}},
        )
        return onnx.load(str(path))


def torch_embedder(bundle: Bundle) -> Embed:
    """The bundle's PyTorch weights as a function, `(N, 3, H, W) float32 -> (N, D) float32`.

    Raises BundleError when it has no model.pt, ModelError when that cannot be used, MachineError
    when torch is not installed.
    """
    from .torch_network import load_torch_network

    network, _, _ = load_torch_network(bundle.file("model.pt"))
    return module_embedder(network)


def module_embedder(network: "torch.nn.Module") -> Embed:
    """A PyTorch network in eval mode as a function."""
    import torch

    network = network.float().eval()

    def embed(inputs: F32) -> F32:
        with torch.no_grad():
            parts = [
                network(torch.from_numpy(np.ascontiguousarray(part))).numpy()
                for part in _parts(inputs, _BATCH)
            ]
        return np.concatenate(parts)

    return embed


def exact_embedder(network: "torch.nn.Module") -> Callable[[F32], npt.NDArray[np.float64]]:
    """The same in double precision, `(N, 3, H, W) float32 -> (N, D) float64`."""
    import copy

    import torch

    network = copy.deepcopy(network).double().eval()

    def embed(inputs: F32) -> npt.NDArray[np.float64]:
        with torch.no_grad():
            parts = [
                network(torch.from_numpy(part.astype(np.float64))).numpy()
                for part in _parts(inputs, _BATCH)
            ]
        return np.concatenate(parts)

    return embed
