"""The teacher's embeddings, computed once: two per image, as it is and flipped.

A memory-mapped file, written block by block and resumed where it stopped, with a note beside it
that says which teacher, contract and data it belongs to.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..arrays import F16
from ..errors import DataError, MachineError, UsageError
from ..files import write_atomic
from ..progress import Track, silent
from .dataset import Batch, IdentitySplit, Pixels
from .distributed import Ranks
from .recipe import Recipe
from .teacher import Teacher, check_teacher, open_teacher

_BLOCK = 256

_PROBES = 64


def cached_embeddings(folder: Path, teacher: Teacher, pixels: Pixels, track: Track = silent) -> F16:
    """`(N, 2, D) float16`, memory-mapped: unit embeddings of each training image and its mirror.

    Goes on where an earlier call stopped. Raises DataError for a cache of another teacher,
    contract or data, MachineError where there is no room for one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store, note = folder / "teacher.npy", folder / "teacher.json"
    shape = (len(pixels), 2, teacher.dim)
    key = {
        "teacher": teacher.sha256,
        "contract": teacher.spec.to_json(),
        "data": data_digest(pixels),
        "shape": list(shape),
    }
    done = _done(note, json.loads(json.dumps(key))) if store.exists() and note.exists() else 0
    values: Any = np.lib.format.open_memmap(store, "r+" if done else "w+", np.float16, shape)
    if not done:
        _reserve(store)
    starts = range(done, len(pixels), _BLOCK)
    for start in track(starts, "teacher", len(starts)):
        stop = min(start + _BLOCK, len(pixels))
        _, faces = pixels.block(start, stop)
        values[start:stop, 0] = teacher.embed(faces)
        values[start:stop, 1] = teacher.embed(np.ascontiguousarray(faces[:, :, ::-1]))
        values.flush()
        write_atomic(note, json.dumps({**key, "done": stop}).encode())
    held: F16 = values
    return held


def _reserve(store: Path) -> None:
    """Take the file's space now: a mapped page that finds none later kills the process."""
    size = store.stat().st_size
    try:
        with store.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, size)
    except OSError as error:
        store.unlink()
        raise MachineError(
            f"the teacher's embeddings take {size / 1e6:,.1f} MB, which {store.parent} cannot hold:"
            f" {error.strerror}",
            "make room, or --set cache=FOLDER on another disk",
        ) from error


def data_digest(pixels: Pixels) -> str:
    """sha256 of the training images' names and of 64 of them, evenly spread.

    Hashing millions of images whole would take as long as embedding them.
    """
    digest = hashlib.sha256()
    for pick in pixels.picks:
        digest.update(pixels.faces.keys[int(pick)].encode() + b"\n")
    for index in np.unique(np.linspace(0, len(pixels) - 1, _PROBES).astype(int)):
        digest.update(pixels.read_near(int(index))[1].tobytes())
    return digest.hexdigest()


def _done(note: Path, key: Mapping[str, Any]) -> int:
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        done = int(found.pop("done"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{note} is damaged: {error}", f"remove {note.parent}") from error
    for name, value in key.items():
        if found.get(name) != value:
            raise DataError(
                f"the teacher cache {note.parent} was made with another {name}",
                "give another --set cache=FOLDER, or remove this one",
            )
    return done


# What the teacher says about a batch: read from the cache, or asked anew when images change.

_STRANGERS = 8


@dataclass(frozen=True)
class TeacherEmbeddings:
    """`cached (N, 2, D) float16` holds the embeddings of each training image and its mirror, or
    is None where the teacher must see every batch."""

    teacher: Teacher
    cached: F16 | None

    def embeddings(self, batch: Batch) -> npt.NDArray[np.float32]:
        """The teacher's `(B, D) float32` of a batch's images."""
        if self.cached is None:
            return self.teacher.embed(batch.pixels)
        return self.cached[batch.index, batch.flipped.astype(np.int64)].astype(np.float32)


def choose_teacher(
    recipe: Recipe, source: str | Path, pixels: Pixels, parts: IdentitySplit
) -> Teacher:
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


def open_teacher_embeddings(
    recipe: Recipe,
    teacher: Teacher,
    pixels: Pixels,
    folder: Path,
    ranks: Ranks,
    track: Track,
    notify: Callable[[str], None],
) -> TeacherEmbeddings:
    """A guide with the teacher's embeddings in `folder`, made by rank 0 while the others wait."""
    if not recipe.only_flips:
        notify("shift and light make every image new: the teacher runs on each batch, uncached")
        return TeacherEmbeddings(teacher, None)
    if ranks.rank == 0:
        cached_embeddings(folder, teacher, pixels, track)
    ranks.wait()
    return TeacherEmbeddings(teacher, cached_embeddings(folder, teacher, pixels))


def class_means(guide: TeacherEmbeddings, pixels: Pixels, parts: IdentitySplit) -> Tensor:
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
