"""Which process of how many this is, and the few things processes tell one another.

One process is the common case: then nothing here talks to anyone. Knows nothing of networks.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist

from ..errors import DataError

_PATIENCE = timedelta(hours=12)
"""The others wait so long while the first one embeds millions of faces with the teacher."""


@dataclass(frozen=True)
class Ranks:
    """Process `rank` of `size`, computing on `device`."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    def gather(self, values: Tensor) -> Tensor:
        """Rows of all ranks in their order, `(B, ...) -> (size * B, ...)`; B is the same on all."""
        if self.size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def sum(self, values: Tensor) -> Tensor:
        """Summed over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def largest(self, values: Tensor) -> Tensor:
        """The largest over the ranks, as a new tensor."""
        values = values.clone()
        if self.size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def wait(self) -> None:
        """Until every rank has come here."""
        if self.size > 1:
            dist.barrier()

    def share(self, count: int) -> tuple[int, int]:
        """Of `count` things in order, those of this rank: (first, one past the last)."""
        return count * self.rank // self.size, count * (self.rank + 1) // self.size

    def agree(self, what: str, digest: str) -> None:
        """Raises DataError when the ranks hold different digests (hexadecimal) of `what`."""
        mine = torch.tensor([int(digest[:8], 16), int(digest[8:15], 16)], device=self.device)
        if not bool((self.gather(mine[None]) == mine).all()):
            raise DataError(
                f"rank {self.rank} has other {what} than another rank",
                "every process needs the same recipe, faces and teacher",
            )


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """The processes that torchrun started, by its environment; one process without it."""
    cuda = torch.cuda.is_available()
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if size == 1 or dist.is_initialized():
        mine = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        yield Ranks(*mine, device)
        return
    dist.init_process_group("nccl" if cuda else "gloo", timeout=_PATIENCE)
    try:
        yield Ranks(dist.get_rank(), size, device)
    finally:
        dist.destroy_process_group()
