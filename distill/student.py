"""The student while it trains: from pixels to the embeddings that the loss compares.

Pixels stay bytes until they are on the device, where they are normalised. On a GPU a batch is copied
while the step before it computes.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..arrays import F32, I64, U8
from ..errors import ModelError, UsageError
from ..faces.contract import InputSpec
from .dataset import Batch, IdentitySplit
from .distributed import Ranks, to_device
from .networks import NETWORKS, build_network, network_name
from .recipe import Recipe
from .weights import load_network

logger = logging.getLogger(__name__)

STUDENT_SPEC = InputSpec()  # the input contract that students are trained with

_AFFINE = "-affine"  # suffix of a network whose last BatchNorm has weight and bias

_BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


@dataclass(frozen=True)
class DeviceBatch:
    """What a step computes with, on the device.

    Attributes:
        pixels: Aligned RGB faces, `(B, 112, 112, 3) uint8`.
        labels: Class of each, `(B,) int64`.
        teacher: The teacher's embeddings, `(B, D) float32`; None for losses that need none.
    """

    pixels: Tensor
    labels: Tensor
    teacher: Tensor | None

    def split(self, parts: int) -> "list[DeviceBatch]":
        """As many equal parts, in order.

        Args:
            parts: Their number, which divides B.
        """
        pixels, labels = self.pixels.chunk(parts), self.labels.chunk(parts)
        teacher = [None] * parts if self.teacher is None else self.teacher.chunk(parts)
        return list(map(DeviceBatch, pixels, labels, teacher))


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
        mean: Of the input contract, `(3,) float32`.
        std: The same.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, dim: int, compared: int, norm_batch: int = 0) -> None:
        super().__init__()
        self.network, self.norm_batch = network, norm_batch
        self.register_buffer("mean", torch.tensor(STUDENT_SPEC.mean), persistent=False)
        self.register_buffer("std", torch.tensor(STUDENT_SPEC.std), persistent=False)
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
        inputs = normalised(pixels, self.mean, self.std)
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
        out: Tensor = self.network(normalised(pixels, self.mean, self.std))
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
    together = recipe.batch // (ranks.size * recipe.accumulate)
    if together < recipe.norm_batch and ranks.rank == 0:
        logger.warning(
            "BatchNorm takes its statistics over the %d images that a rank has at a time, and"
            " norm_batch wants %d: use fewer ranks, a larger batch or fewer accumulated parts",
            *(together, recipe.norm_batch),
        )
    if ranks.size > 1 and ranks.device.type == "cuda" and not recipe.norm_batch:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return Student(network, dim, compared, recipe.norm_batch), name


def student_network_name(recipe: Recipe) -> str:
    """The network that a recipe trains, with the output that it asks for.

    Args:
        recipe: Its `network`, `output` and `losses`.
    """
    name = network_name(recipe.network)
    if recipe.needs_teacher and recipe.output == "affine" and name + _AFFINE in NETWORKS:
        return name + _AFFINE
    return name


def device_batch(
    pixels: U8, labels: I64, teacher: F32 | None, classes: int, device: torch.device
) -> DeviceBatch:
    """A batch on the device, copied without waiting.

    Args:
        pixels: Aligned RGB faces, `(B, 112, 112, 3) uint8`.
        labels: Class of each, `(B,) int64`; -1 for none.
        teacher: The teacher's embeddings, `(B, D) float32`, or None.
        classes: Number of classes.
        device: Where the student is.

    Raises:
        UsageError: A label is not a class.
    """
    if labels.max(initial=-1) >= classes:
        raise UsageError(f"label {labels.max()} does not fit {classes} classes")
    target = None if teacher is None else to_device(teacher, device)
    return DeviceBatch(to_device(pixels, device), to_device(labels, device), target)


def copied_ahead(
    source: Iterable[Batch],
    split: IdentitySplit,
    targets: Callable[[Batch], F32] | None,
    device: torch.device,
) -> Iterator[DeviceBatch]:
    """Batches on the device; each is read, and its copy begun, before the step on the one before it.

    On a GPU copies have a stream of their own. A step's kernels wait for its batch, the host for nothing.

    Args:
        source: The batches.
        split: The classes.
        targets: Of a batch, `(B, D) float32`; None for losses that need no teacher.
        device: Where the student is.
    """
    stream = None
    if device.type == "cuda":
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: list[tuple[DeviceBatch, torch.cuda.Event | None]] = []
    for batch in source:
        labels, teacher = split.labels[batch.index], targets(batch) if targets else None
        with torch.cuda.stream(stream) if stream else nullcontext():
            copied = device_batch(batch.pixels, labels, teacher, split.classes, device)
        ahead.append((copied, stream.record_event() if stream else None))
        if len(ahead) > 1:
            yield _arrived(*ahead.pop(0), device)
    for item in ahead:
        yield _arrived(*item, device)


def _arrived(
    batch: DeviceBatch, copied: torch.cuda.Event | None, device: torch.device
) -> DeviceBatch:
    """The batch, for which the kernels that are started from now on wait."""
    if copied is not None:
        computing = torch.cuda.current_stream(device)
        computing.wait_event(copied)
        for values in (batch.pixels, batch.labels, batch.teacher):
            if values is not None:  # its memory is reused only after those kernels
                values.record_stream(computing)
    return batch


def average_statistics(
    network: nn.Module, ranks: Ranks, averaged: Mapping[str, Tensor] | None = None
) -> None:
    """Give every rank the mean of the ranks' running statistics.

    Args:
        network: The student's network.
        ranks: The processes.
        averaged: A moving average of its state, of which the same is done.
    """
    if ranks.size == 1:
        return
    for name, buffer in network.named_buffers():
        if buffer.is_floating_point() and averaged:
            averaged[name].copy_(ranks.sum(averaged[name].clone()) / ranks.size)
        if buffer.is_floating_point():
            buffer.copy_(ranks.sum(buffer.clone()) / ranks.size)


def normalised(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Network input as `faces.contract.preprocess` makes it, bit by bit, but on the device.

    Args:
        pixels: Faces of the input's size, in the order of its channels, `(B, H, W, 3) uint8`.
        mean: Of the input contract, on the device, `(3,) float32`: made there, it would be waited for.
        std: The same.

    Returns:
        `(B, 3, H, W) float32`, channels last.
    """
    return pixels.float().sub_(mean).div_(std).permute(0, 3, 1, 2)


def _start_from(network: nn.Module, name: str, dim: int, path: Path) -> None:
    """Load weights of the same network, or of its form without an affine output."""
    file = path / "model.pt" if path.is_dir() else path
    plain = name.removesuffix(_AFFINE)
    try:
        given, other, size = load_network(file)
    except UsageError:  # the file does not name its network, so it must be this one
        try:
            given, other, size = load_network(file, plain)
        except ModelError:
            given, other, size = load_network(file, name)
    if other not in (name, plain) or size != dim:
        change = (
            f"dim={size}" if other in (name, plain) else f"network={other.removesuffix(_AFFINE)}"
        )
        raise UsageError(
            f"init: {file} holds {other} with {size}-d embeddings; this training's is {name} with"
            f" {dim}",
            f"--set {change}, or without init",
        )
    state: Mapping[str, Tensor] = given.state_dict()
    network.load_state_dict(state, strict=other == name)
