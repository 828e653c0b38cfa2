"""The student while it trains: from pixels to the embeddings that the loss compares.

Pixels stay bytes until they are on the device, where they are normalised.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..faces.contract import InputSpec
from .distributed import Ranks
from .networks import ALIASES, NETWORKS, build_network
from .recipe import Recipe
from .weights import load_network

STUDENT_SPEC = InputSpec()  # the input contract that students are trained with

_AFFINE = "-affine"  # suffix of a network whose last BatchNorm has weight and bias

_BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


class Student(nn.Module):
    """A network that trains, with what only training needs.

    Args:
        network: `(N, 3, 112, 112) float32 -> (N, dim)`.
        dim: Its embedding size.
        compared: Size of the embeddings that the loss compares; where it differs, a linear layer
            without bias makes it, and is thrown away after the training.
        norm_batch: Images over which BatchNorm takes its statistics; 0 is all that are given.

    Attributes:
        network: The network.
        projection: That linear layer, or the identity.
    """

    def __init__(self, network: nn.Module, dim: int, compared: int, norm_batch: int = 0) -> None:
        super().__init__()
        self.network, self.norm_batch = network, norm_batch
        self.projection: nn.Module = nn.Identity()
        if compared != dim:
            self.projection = nn.Linear(dim, compared, bias=False)
        self._norms: list[Any] = [m for m in network.modules() if isinstance(m, _BatchNorm)]

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed faces.

        Args:
            pixels: Aligned RGB faces on the device, `(B, 112, 112, 3) uint8`.

        Returns:
            `(B, compared) float32`, not normalised.
        """
        inputs = _normalised(pixels)
        size = self.norm_batch
        if not self.training or not 0 < size < len(inputs):
            embeddings = self.network(inputs)
        else:
            embeddings = torch.cat(self._in_parts(torch.split(inputs, size)))
        out: Tensor = self.projection(embeddings.float())
        return out.float()

    def embed(self, pixels: Tensor) -> Tensor:
        """The embeddings that the network will give, without the projection.

        Args:
            pixels: As `forward` takes them.

        Returns:
            `(B, dim)`, not normalised.
        """
        out: Tensor = self.network(_normalised(pixels))
        return out

    def _in_parts(self, parts: tuple[Tensor, ...]) -> list[Tensor]:
        """Embed each part with its own statistics; the running ones move by their mean."""
        # Tensors are replaced, not written to: the backward pass still refers to them.
        before = [(norm.running_mean, norm.running_var) for norm in self._norms]
        sums = [(torch.zeros_like(mean), torch.zeros_like(var)) for mean, var in before]
        out = []
        for part in parts:
            for norm, (mean, var) in zip(self._norms, before, strict=True):
                norm.running_mean, norm.running_var = mean.clone(), var.clone()
            out.append(self.network(part))
            for norm, (mean, var) in zip(self._norms, sums, strict=True):
                mean.add_(norm.running_mean, alpha=1.0 / len(parts))
                var.add_(norm.running_var, alpha=1.0 / len(parts))
        for norm, (mean, var) in zip(self._norms, sums, strict=True):
            norm.running_mean, norm.running_var = mean, var
        return out


def build_student(recipe: Recipe, dim: int, compared: int, ranks: Ranks) -> tuple[Student, str]:
    """A student with random weights, or those that the recipe starts from.

    Args:
        recipe: Its `network`, `output`, `init` and `norm_batch`.
        dim: Embedding size.
        compared: Size of the embeddings that the loss compares.
        ranks: The processes; on GPUs BatchNorm's statistics are over all of them, unless
            `norm_batch` says otherwise.

    Returns:
        The student on the CPU, and the name of its network.

    Raises:
        UsageError: The network is unknown, or the weights to start from are another network's.
        ModelError: The weights cannot be read.
    """
    name = student_network_name(recipe)
    network = build_network(name, dim)
    if recipe.init:
        _start_from(network, name, dim, Path(recipe.init))
    if ranks.size > 1 and ranks.device.type == "cuda" and not recipe.norm_batch:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return Student(network, dim, compared, recipe.norm_batch), name


def student_network_name(recipe: Recipe) -> str:
    """The network that a recipe trains, with the output that it asks for.

    Args:
        recipe: Its `network`, `output` and `losses`.
    """
    name = ALIASES.get(recipe.network, recipe.network)
    if recipe.needs_teacher and recipe.output == "affine" and name + _AFFINE in NETWORKS:
        return name + _AFFINE
    return name


def to_device(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Numbers on a device, copied without waiting where that is a GPU.

    From memory that is not pinned, CUDA copies only after the kernels before it, and the host waits.

    Args:
        values: Of a batch: pixels, the teacher's embeddings or labels.
        device: Where the student is.
    """
    host = torch.from_numpy(np.ascontiguousarray(values))
    if device.type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


def average_statistics(network: nn.Module, ranks: Ranks) -> None:
    """Give every rank the mean of the ranks' running statistics.

    Args:
        network: The student's network.
        ranks: The processes.
    """
    if ranks.size == 1:
        return
    for buffer in network.buffers():
        if buffer.is_floating_point():
            buffer.copy_(ranks.sum(buffer.clone()) / ranks.size)


def _normalised(pixels: Tensor) -> Tensor:
    """Network input `(B, 3, H, W) float32`, channels last, as `faces.contract.preprocess` makes it."""
    mean = torch.tensor(STUDENT_SPEC.mean, device=pixels.device)
    std = torch.tensor(STUDENT_SPEC.std, device=pixels.device)
    return pixels.float().sub_(mean).div_(std).permute(0, 3, 1, 2)


def _start_from(network: nn.Module, name: str, dim: int, path: Path) -> None:
    """Load weights of the same network, or of its form without an affine output."""
    file = path / "model.pt" if path.is_dir() else path
    given, other, size = load_network(file, None)
    plain = name.removesuffix(_AFFINE)
    if other not in (name, plain) or size != dim:
        raise UsageError(
            f"init: {file} holds {other} with {size}-d embeddings; this training's is {name} with"
            f" {dim}",
            f"--set network={other.removesuffix(_AFFINE)}, or without init",
        )
    state: Mapping[str, Tensor] = given.state_dict()
    network.load_state_dict(state, strict=other == name)
