"""What the teacher says about a batch: read from the cache, or asked anew when images change."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..progress import Track
from .cache import F16, cached_embeddings
from .data import Batch, Pixels, Split
from .ranks import Ranks
from .recipe import Recipe
from .teacher import Teacher, check_teacher, open_teacher

_BLOCK = 256
_STRANGERS = 8


@dataclass(frozen=True)
class Guide:
    """`cached (N, 2, D) float16` holds the embeddings of each training image and its mirror, or
    is None where the teacher must see every batch."""

    teacher: Teacher
    cached: F16 | None

    def embeddings(self, batch: Batch) -> npt.NDArray[np.float32]:
        """The teacher's `(B, D) float32` of a batch's images."""
        if self.cached is None:
            return self.teacher.embed(batch.pixels)
        return self.cached[batch.index, batch.flipped.astype(np.int64)].astype(np.float32)


def choose_teacher(recipe: Recipe, source: str | Path, pixels: Pixels, parts: Split) -> Teacher:
    """The opened teacher, proven to tell the first images of up to eight people apart.

    Raises ModelError for a teacher that cannot be used, UsageError when its embeddings are of
    another size than the recipe's.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teacher = open_teacher(
        source, preset=recipe.teacher_preset, arch=recipe.teacher_arch, device=device
    )
    if recipe.dim not in (0, teacher.dim):
        raise UsageError(
            f"the teacher's embeddings have {teacher.dim} numbers, the recipe's dim is {recipe.dim}",
            f"--set dim={teacher.dim}",
        )
    firsts = np.unique(parts.labels, return_index=True)[1][:_STRANGERS]
    check_teacher(teacher, np.stack([pixels.read_near(int(index))[1] for index in firsts]))
    return teacher


def open_guide(
    recipe: Recipe,
    teacher: Teacher,
    pixels: Pixels,
    folder: Path,
    ranks: Ranks,
    track: Track,
    notify: Callable[[str], None],
) -> Guide:
    """A guide with the teacher's embeddings in `folder`, made by rank 0 while the others wait."""
    if not recipe.only_flips:
        notify("shift and light make every image new: the teacher runs on each batch, uncached")
        return Guide(teacher, None)
    if ranks.rank == 0:
        cached_embeddings(folder, teacher, pixels, track)
    ranks.wait()
    return Guide(teacher, cached_embeddings(folder, teacher, pixels))


def class_means(guide: Guide, pixels: Pixels, parts: Split) -> Tensor:
    """Mean teacher embedding of each class, over images and mirrors: `(C, D) float32`, unit length."""
    sums = torch.zeros(parts.classes, guide.teacher.dim)
    for start in range(0, len(pixels), _BLOCK):
        stop = min(start + _BLOCK, len(pixels))
        if guide.cached is None:
            found = guide.teacher.embed(pixels.block(start, stop)[1])
        else:
            found = guide.cached[start:stop].astype(np.float32).mean(1)
        sums.index_add_(0, torch.from_numpy(parts.labels[start:stop]), torch.from_numpy(found))
    return nn.functional.normalize(sums)
