"""The processes of a training: ranks with their collectives, and the workers that read images for one.

With one rank, the common case, every collective returns its argument and no process group exists.
"""

import inspect
import math
import mmap
import os
import signal
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from ..arrays import U8
from ..errors import DataError, FrEdgeError, MachineError

_TIMEOUT = timedelta(hours=12)  # for the slowest node's part of the teacher's cache
_AHEAD = 2  # items that each worker reads ahead

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Ranks:
    """Process `rank` of `size`, computing on `device`."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    def gather(self, values: Tensor) -> Tensor:
        """Rows of all ranks in the order of the ranks.

        Args:
            values: `(B, ...)`; B is the same on every rank.

        Returns:
            `(size * B, ...)`, without gradient.
        """
        if self.size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the ranks, in place.

        Args:
            values: Of the same shape on every rank.
        """
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def all_max(self, values: Tensor) -> Tensor:
        """Elementwise maximum over the ranks, as a new tensor.

        Args:
            values: Of the same shape on every rank.
        """
        values = values.clone()
        if self.size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def barrier(self) -> None:
        """Wait until every rank has reached this call."""
        if self.size > 1:
            dist.barrier()

    def shard(self, count: int) -> tuple[int, int]:
        """This rank's share of `count` items in order.

        Args:
            count: Number of items of all ranks together.

        Returns:
            Index of the first item, and one past the last.
        """
        return count * self.rank // self.size, count * (self.rank + 1) // self.size

    def check_equal(
        self,
        subject: str,
        digest: str,
        hint: str = "give every process the same recipe, faces and teacher",
    ) -> None:
        """Compare a digest over the ranks.

        Args:
            subject: What the digest is of, for the error.
            digest: Hexadecimal, 15 digits or more.
            hint: What to do, for the error.

        Raises:
            DataError: The digests differ.
        """
        own = torch.tensor([int(digest[:8], 16), int(digest[8:15], 16)], device=self.device)
        if not bool((self.gather(own[None]) == own).all()):
            raise DataError(f"rank {self.rank} has another {subject} than another rank", hint)


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Join the processes that torchrun started, as its environment variables name them.

    torchrun's processes can join once. Who trains several times in one of them calls
    `torch.distributed.init_process_group` before, and that group is used.

    Yields:
        This process's rank; a single one without torchrun. The process group is closed at the end,
        but not after an error.
    """
    cuda = torch.cuda.is_available()
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if size == 1 or dist.is_initialized():
        joined = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        yield Ranks(*joined, device)
        return
    dist.init_process_group("nccl" if cuda else "gloo", timeout=_TIMEOUT)
    # After an error the process ends with the group open: to close it, NCCL would wait for the others,
    # who wait for this one, and torchrun would never see that it failed.
    yield Ranks(dist.get_rank(), size, device)
    dist.destroy_process_group()


def computes_bf16() -> bool:
    """Whether this process's GPU computes in bfloat16; older ones than Ampere emulate it, slowly."""
    return torch.cuda.is_bf16_supported() and torch.cuda.get_device_capability() >= (8, 0)


def to_device(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Numbers on a device, copied without waiting where that is a GPU.

    From memory that is not pinned, CUDA copies only after the kernels before it, and the host waits.

    Args:
        values: Of a batch: pixels, the teacher's embeddings or labels.
        device: Where the rank computes.
    """
    host = torch.from_numpy(np.ascontiguousarray(values))
    if device.type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


def data_parallel(module: nn.Module, ranks: Ranks) -> nn.Module:
    """A module whose gradients are averaged over the ranks in each backward pass.

    Buffers, such as BatchNorm's running statistics, stay each rank's own.

    Args:
        module: On the rank's device. Parameters that begin to need a gradient later are not covered.
        ranks: The processes.

    Returns:
        torch's DistributedDataParallel around `module`; `module` itself with one rank, or when it
        has nothing to learn.
    """
    if ranks.size == 1 or not any(p.requires_grad for p in module.parameters()):
        return module
    devices = [ranks.device] if ranks.device.type == "cuda" else None
    # The older name of the option warns in the releases that have the newer one.
    options = inspect.signature(DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers"
    given: dict[str, Any] = {name: False}
    return DistributedDataParallel(module, device_ids=devices, **given)


def load_items(
    items: Dataset[_Item], size: int, order: Sequence[int], workers: int
) -> Generator[_Item]:
    """Items in order, read ahead by worker processes; to be closed, which ends those.

    They take no signal, and Python waits for them at its end: an error that leaves them would keep the
    process, and with it the other ranks, for good.

    Args:
        items: Frozen dataclasses with `pixels`, uint8; they depend on their number alone.
        size: Most bytes that an item's pixels take.
        order: Numbers of the wanted ones.
        workers: Number of processes; 0 reads each when it is asked for.

    Raises:
        MachineError: A worker process was killed.
    """
    if not workers:
        yield from (items[number] for number in order)
        return
    reader = _Reader(items, size, _AHEAD * workers + 1)
    with warnings.catch_warnings():
        # Python warns of forking with threads; the workers use none of the parent's. torch warns of
        # more workers than cores, in ten lines.
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        warnings.filterwarnings(
            "ignore", message="This DataLoader will create", category=UserWarning
        )
        arrived: Any = iter(
            DataLoader(
                reader,
                sampler=enumerate(order),
                batch_size=None,
                num_workers=workers,
                prefetch_factor=_AHEAD,
                # It draws a number, and not from the generator whose state a resumption restores.
                generator=torch.Generator(),
                multiprocessing_context="fork",
                worker_init_fn=_leave_signals_to_parent,
            )
        )
    try:
        for place, item in enumerate(arrived):
            if isinstance(item, Exception):
                raise item
            yield reader.with_pixels(place, item)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise MachineError(
            "a process that reads images was killed",
            "is the memory full? fewer processes take less: --set workers=N",
        ) from error
    finally:
        arrived._shutdown_workers()  # also where the traceback of an error holds it


class _Reader(Dataset[Any]):
    """Items by their place in the order and their number, read in a worker.

    Their pixels stay in memory that the parent shares: a pipe takes longer, and /dev/shm, where torch
    puts tensors, is small in containers. When an item has arrived, up to `slots` places from it on are
    being read. An error takes the place of its item: torch would put the worker's traceback into its
    words.
    """

    def __init__(self, items: Dataset[Any], size: int, slots: int) -> None:
        self._items = items
        self._memory = np.frombuffer(mmap.mmap(-1, size * slots), np.uint8).reshape(slots, size)

    def __getitem__(self, wanted: tuple[int, int]) -> Any:
        place, number = wanted
        try:
            item: Any = self._items[number]
        except (FrEdgeError, MemoryError) as error:
            return error
        self._pixels(place, item.pixels.shape)[:] = item.pixels
        return replace(item, pixels=item.pixels.shape)

    def with_pixels(self, place: int, item: Any) -> Any:
        """An item that has arrived, with a copy of its pixels."""
        return replace(item, pixels=self._pixels(place, item.pixels).copy())

    def _pixels(self, place: int, shape: tuple[int, ...]) -> U8:
        slot: U8 = self._memory[place % len(self._memory)]
        return slot[: math.prod(shape)].reshape(shape)


def _leave_signals_to_parent(worker: int) -> None:
    """A signal for the whole group must not end a worker before the parent has its checkpoint."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
