"""Teacher embeddings for batches: cached, or recomputed when augmentation changes the pixels.

The cache holds two embeddings per training image, as it is and flipped, in a memory-mapped file that
is written block by block and resumed where it stopped. A note beside it says which teacher, input
contract and data it belongs to.
"""

import hashlib
import logging
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..arrays import F16, F32, I64
from ..documents import decode_json, encode_json, read_json
from ..errors import DataError, MachineError, UsageError
from ..files import write_atomic
from ..interruption import keeping
from ..progress import Track, silent
from .dataset import Batch, IdentitySplit, Pixels
from .distributed import Ranks
from .recipe import Recipe
from .teacher import Teacher, check_teacher, open_teacher

logger = logging.getLogger(__name__)

_BLOCK = 256  # images embedded between two writes of the note
_PROBES = 64  # images whose pixels are part of the data's digest
_CHECKED_PEOPLE = 8  # of whom one image each proves that the teacher tells people apart


@dataclass(frozen=True)
class TeacherEmbeddings:
    """The teacher's embeddings of training images.

    Attributes:
        teacher: The teacher.
        cached: Embeddings of each training image and its mirror, `(N, 2, D) float16`; None where the
            teacher must embed every batch.
    """

    teacher: Teacher
    cached: F16 | None

    def of_batch(self, batch: Batch) -> F32:
        """The teacher's embeddings of a batch, `(B, D) float32`.

        Args:
            batch: Of the training images.
        """
        if self.cached is None:
            return self.teacher.embed(batch.pixels)
        return self.cached[batch.index, batch.flipped.astype(np.int64)].astype(np.float32)


@dataclass(frozen=True)
class _CacheNote:
    """`teacher.json`: what a cache belongs to, and how many images are embedded."""

    teacher: str
    contract: dict[str, Any]
    data: str
    shape: list[int]
    done: int


def choose_teacher(recipe: Recipe, source: str | Path, pixels: Pixels, labels: I64) -> Teacher:
    """Open the teacher, and check that it tells the first images of up to eight people apart.

    Args:
        recipe: Its `teacher_preset`, `teacher_arch` and `dim`.
        source: A bundle, an ONNX file or a checkpoint.
        pixels: The training images.
        labels: Their classes, `(N,) int64`.

    Raises:
        ModelError: The teacher cannot be used.
        UsageError: Its embeddings have another size than the recipe's `dim`.
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
    firsts = np.unique(labels, return_index=True)[1][:_CHECKED_PEOPLE]
    check_teacher(teacher, np.stack([pixels.read_near(int(index))[1] for index in firsts]))
    return teacher


def open_teacher_embeddings(
    recipe: Recipe,
    teacher: Teacher,
    pixels: Pixels,
    folder: Path,
    ranks: Ranks,
    track: Track,
    *,
    force: bool = False,
) -> TeacherEmbeddings:
    """The teacher's embeddings of the training images; rank 0 fills the cache, the others wait.

    Args:
        recipe: Its augmentation decides whether embeddings can be cached.
        teacher: The teacher.
        pixels: The training images.
        folder: Of the cache.
        ranks: The processes.
        track: Progress of filling the cache.
        force: Replace a cache of another teacher, contract or data, unless the recipe names its
            folder.

    Raises:
        DataError: The cache belongs to another teacher, contract or data.
        MachineError: There is no room for it.
        Interrupted: A signal came; what is embedded stays in the cache.
    """
    if not recipe.only_flips:
        if ranks.rank == 0:
            logger.info(
                "shift and light change every image: the teacher embeds each batch, uncached"
            )
        return TeacherEmbeddings(teacher, None)
    if ranks.rank == 0:
        with keeping(partial(_kept_text, folder)):
            cached_embeddings(folder, teacher, pixels, track, force=force and not recipe.cache)
    ranks.barrier()
    return TeacherEmbeddings(teacher, cached_embeddings(folder, teacher, pixels))


def cached_embeddings(
    folder: Path, teacher: Teacher, pixels: Pixels, track: Track = silent, *, force: bool = False
) -> F16:
    """Embeddings of each training image and its mirror, filled in where an earlier call stopped.

    Args:
        folder: Of the cache; made if it does not exist.
        teacher: The teacher.
        pixels: The training images.
        track: Progress over blocks of images.
        force: Replace a cache of another teacher, contract or data.

    Returns:
        `(N, 2, D) float16`, unit length, memory-mapped.

    Raises:
        DataError: The cache belongs to another teacher, contract or data, or is damaged.
        MachineError: There is no room for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store, note_file = folder / "teacher.npy", folder / "teacher.json"
    shape = (len(pixels), 2, teacher.dim)
    digest = data_digest(pixels)
    note = _CacheNote(teacher.sha256, teacher.spec.to_json(), digest, list(shape), 0)
    if store.exists() and note_file.exists():
        try:
            note = _resumed(note_file, note)
        except DataError:
            if not force:
                raise
    if not note.done:
        store.unlink(missing_ok=True)
        store.touch(0o600)  # biometric data: for this user alone
    values: Any = np.lib.format.open_memmap(store, "r+" if note.done else "w+", np.float16, shape)
    if not note.done:
        _reserve(store)
    starts = range(note.done, len(pixels), _BLOCK)
    for start in track(starts, "teacher", len(starts)):
        stop = min(start + _BLOCK, len(pixels))
        _, faces = pixels.block(start, stop)
        values[start:stop, 0] = teacher.embed(faces)
        values[start:stop, 1] = teacher.embed(np.ascontiguousarray(faces[:, :, ::-1]))
        values.flush()
        write_atomic(note_file, encode_json(replace(note, done=stop)))
    cached: F16 = values
    return cached


def data_digest(pixels: Pixels) -> str:
    """sha256 of the training images' names and of the pixels of 64 of them, evenly spread.

    Hashing millions of images whole would take as long as embedding them.

    Args:
        pixels: The training images.
    """
    digest = hashlib.sha256()
    for pick in pixels.picks:
        digest.update(pixels.faces.keys[int(pick)].encode() + b"\n")
    for index in np.unique(np.linspace(0, len(pixels) - 1, _PROBES).astype(int)):
        digest.update(pixels.read_near(int(index))[1].tobytes())
    return digest.hexdigest()


def class_means(embeddings: TeacherEmbeddings, pixels: Pixels, split: IdentitySplit) -> Tensor:
    """Mean teacher embedding of each class, over images and their mirrors.

    Args:
        embeddings: Of the training images.
        pixels: The training images.
        split: Their classes.

    Returns:
        `(C, D) float32`, unit length.
    """
    sums = torch.zeros(split.classes, embeddings.teacher.dim)
    for start in range(0, len(pixels), _BLOCK):
        stop = min(start + _BLOCK, len(pixels))
        if embeddings.cached is None:
            rows = embeddings.teacher.embed(pixels.block(start, stop)[1])
        else:
            rows = embeddings.cached[start:stop].astype(np.float32).mean(1)
        sums.index_add_(0, torch.from_numpy(split.labels[start:stop]), torch.from_numpy(rows))
    return nn.functional.normalize(sums)


def _reserve(store: Path) -> None:
    """Take the file's space now: a mapped page without room on the disk kills the process."""
    if not hasattr(os, "posix_fallocate"):  # macOS and Windows
        return
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


def _kept_text(folder: Path) -> str:
    """How much of the cache an interruption leaves, in words."""
    try:
        note = read_json(folder / "teacher.json", _CacheNote)
    except DataError:
        return ""
    return f"the teacher's embeddings of {note.done:,} of {note.shape[0]:,} images are in {folder}"


def _resumed(file: Path, expected: _CacheNote) -> _CacheNote:
    """The cache's note; raises DataError when it belongs to something else than expected."""
    try:
        note = read_json(file, _CacheNote)
    except DataError as error:
        raise DataError(error.message, f"remove {file.parent}") from error
    wanted = decode_json(encode_json(expected), _CacheNote, file)  # rounded as the file is
    for name in ("teacher", "contract", "data", "shape"):
        if getattr(note, name) != getattr(wanted, name):
            raise DataError(
                f"the teacher cache {file.parent} was made with another {name}",
                "give another --set cache=FOLDER, or remove this one",
            )
    return note
