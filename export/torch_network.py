"""PyTorch networks as ONNX and as functions; `distill.weights` reads their files.

torch is imported inside the functions: ONNX files are exported without it.
"""

import copy
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import ModelProto

from ..arrays import F32, F64, U8
from ..bundle.manifest import Bundle
from ..errors import MachineError, ModelError, UsageError, install_hint
from ..faces.contract import InputSpec, preprocess
from ..graph.run import BATCH, Embed, split_batches

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..distill.foreign.foreign_network import ForeignNetwork


def load_torch_network(
    path: Path, arch: str | None = None, weights: str | None = None
) -> "tuple[nn.Module, str, int]":
    """Read a network's weights; see `distill.weights.load_network` for its errors.

    Args:
        path: A checkpoint.
        arch: The network's name, if the checkpoint does not hold it.
        weights: A part of the name of the set that is meant, where the file holds several.

    Returns:
        The network in eval mode, its name, and D, the size of its embeddings.

    Raises:
        MachineError: torch is not installed.
    """
    try:
        from ..distill.weights import load_network
    except ImportError as error:
        raise MachineError(
            "exporting PyTorch weights needs torch", install_hint("train")
        ) from error
    return load_network(path, arch, weights)


def open_foreign_network(
    path: Path, arch: str | None, weights: str | None, output: str | None, spec: InputSpec
) -> "ForeignNetwork":
    """Open a person's own network or a program; see `distill.foreign.foreign_network.open_foreign`.

    Args:
        path: A checkpoint, or a TorchScript or torch.export file.
        arch: `FILE.py:FUNCTION` for a checkpoint; its code is run.
        weights: A part of the name of the set of weights that is meant.
        output: Number or key of the output that is the embedding.
        spec: The input contract, for the size and the channels.

    Returns:
        The network.

    Raises:
        MachineError: torch is not installed.
    """
    try:
        from ..distill.foreign.foreign_network import open_foreign
    except ImportError as error:
        raise MachineError(
            "exporting PyTorch networks needs torch", install_hint("train")
        ) from error
    return open_foreign(path, arch, weights, output, spec.shape)


def is_torch_program(path: Path) -> bool:
    """Tell whether a file is TorchScript or a torch.export program, not weights.

    Args:
        path: A file.

    Raises:
        MachineError: torch is not installed.
    """
    try:
        from ..distill.foreign.foreign_network import is_program
    except ImportError as error:
        raise MachineError(
            "exporting PyTorch networks needs torch", install_hint("train")
        ) from error
    return is_program(path)


def load_ranges(path: Path) -> dict[str, float]:
    """Read the INT8 ranges that weights were trained on.

    Args:
        path: A checkpoint.

    Returns:
        Layer -> range of its input; empty for a network that was not trained so.
    """
    from ..distill.weights import trained_ranges

    return trained_ranges(path)


def saver(
    network: "nn.Module", name: str, dim: int, ranges: Mapping[str, float]
) -> Callable[[Path], None]:
    """Make a function that writes weights as the trainer does.

    Args:
        network: The network.
        name: Its name.
        dim: Size of its embeddings.
        ranges: Layer -> INT8 range that it was trained on.

    Returns:
        The function; it takes the file's path.
    """
    from ..distill.weights import save_network

    return lambda path: save_network(path, network.state_dict(), name, dim, ranges)


def network_to_onnx(network: "nn.Module", name: str, spec: InputSpec, batch: int = 1) -> ModelProto:
    """Convert a network to ONNX, opset 17, with a dynamic batch.

    Args:
        network: The network in eval mode.
        name: Its name, for errors.
        spec: The input contract.
        batch: Faces in the run that is traced.

    Returns:
        The model, input `face`, output `embedding`.

    Raises:
        UsageError: The network does not take faces of the contract's size.
        ModelError: Torch cannot write one of its operators.
    """
    import torch

    face = torch.zeros(batch, *spec.shape)
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
        warnings.simplefilter("ignore")
        path = Path(folder, "network.onnx")
        try:
            if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
                network = torch.jit.trace(  # type: ignore[no-untyped-call]
                    network, face, check_trace=False
                )
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
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
            text = str(error).strip().partition("\n")[0]
            raise ModelError(
                f"{name} cannot be written as ONNX: {text}",
                "write it with torch.onnx.export where it was trained, and give the ONNX file",
            ) from error
        return onnx.load(str(path))


@dataclass(frozen=True, eq=False)
class TorchWeights:
    """PyTorch weights that embed faces as a session of `runtime` does, which never imports torch.

    Attributes:
        network: `(N, 3, H, W) float32 -> (N, D) float32`.
        spec: The input contract.
        dim: D.
        backend: What runs the network.
        precision: Of the weights.
    """

    network: Embed
    spec: InputSpec
    dim: int
    backend: str = "torch"
    precision: str = "fp32"

    def embed(self, images: U8) -> F32:
        """Aligned RGB faces `(N, 112, 112, 3) uint8 -> (N, D) float32`."""
        return self.network(preprocess(images, self.spec))


def open_torch_weights(bundle: Bundle) -> TorchWeights:
    """Load a bundle's PyTorch weights.

    Args:
        bundle: A bundle with `model.pt`.

    Raises:
        BundleError: The bundle has no `model.pt`.
        ModelError: The weights cannot be used.
        MachineError: torch is not installed.
    """
    network, _, dim = load_torch_network(bundle.file("model.pt"))
    return TorchWeights(module_embedder(network), bundle.spec, dim)


def random_torch_weights(arch: str, dim: int, spec: InputSpec, seed: int) -> TorchWeights:
    """A network with the weights that training starts from.

    Args:
        arch: The network's name.
        dim: Numbers per embedding.
        spec: The input contract.
        seed: Of torch's random numbers.
    """
    import torch

    from ..distill.networks import build_network

    torch.manual_seed(seed)
    return TorchWeights(module_embedder(build_network(arch, dim)), spec, dim)


def module_embedder(network: "torch.nn.Module", batch: int | None = None) -> Embed:
    """Make a function of a PyTorch network.

    Args:
        network: The network; it is put into eval mode and float32.
        batch: Faces that it takes at a time; None for any number.

    Returns:
        `(N, 3, H, W) float32 -> (N, D) float32`.
    """
    import torch

    network = network.float().eval()

    def embed(inputs: F32) -> F32:
        with torch.no_grad():
            parts = []
            for part in split_batches(inputs, batch or BATCH):
                count = len(part)
                if batch is not None and count < batch:
                    part = np.concatenate([part, np.repeat(part[-1:], batch - count, axis=0)])
                parts.append(network(torch.from_numpy(np.ascontiguousarray(part))).numpy()[:count])
        return np.concatenate(parts)

    return embed


def exact_embedder(network: "torch.nn.Module") -> Callable[[F32], F64]:
    """Make a double precision function of a PyTorch network.

    Args:
        network: The network; a copy is converted.

    Returns:
        `(N, 3, H, W) float32 -> (N, D) float64`.
    """
    import torch

    network = copy.deepcopy(network).double().eval()

    def embed(inputs: F32) -> F64:
        with torch.no_grad():
            parts = [
                network(torch.from_numpy(part.astype(np.float64))).numpy()
                for part in split_batches(inputs, BATCH)
            ]
        return np.concatenate(parts)

    return embed
