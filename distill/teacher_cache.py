"""The teacher's embeddings of all training images: the targets, computed once.

The cache holds one embedding per image (the mean of the two mirror views) or two (each view), in a
file that all ranks write block by block and that is resumed where they stopped. A note beside it says
which teacher, precision, input contract and data it belongs to. Augmentation changes what the student
sees alone: targets are those of the clean images.
"""

import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..arrays import F16, I64, U8, map_npy
from ..documents import decode_json, encode_json, read_json
from ..errors import DataError, FacesError, MachineError
from ..faces.contract import ALIGNED_SIZE
from ..files import is_own_file, write_atomic
from ..interruption import keeping
from ..progress import Track, silent
from ..reading import read_file
from .dataset import FACE_BYTES, Images, Pixels
from .distributed import Ranks, load_items
from .recipe import Recipe
from .teacher import Teacher, check_teacher, choose_precision, open_teacher
from .teacher_targets import TeacherEmbeddings, embed_views, principal_components, unembedded

logger = logging.getLogger(__name__)

_BLOCK = 256  # images embedded between two marks of what is done
_UNREADABLE = b"\x02"  # mark of a block of which no image could be read: its rank tries it again
_PROBES = 64  # images on which precisions are compared, and that are part of the data's digest
_CHECKED_PEOPLE = 8  # of whom one image each proves that the teacher tells people apart
_UNSEEN_S = 90.0  # until a file that a node does not see is taken for missing
_VIEWS = {"mean": 1, "each": 2}  # embeddings per image


@dataclass(frozen=True)
class _CacheNote:
    """`teacher.json`: what a cache belongs to."""

    teacher: str
    contract: dict[str, Any]
    data: str
    shape: list[int]
    precision: str = ""  # that the teacher computes in; older versions do not name it


def choose_teacher(recipe: Recipe, source: str | Path) -> Teacher:
    """Open the teacher on the training's device.

    Args:
        recipe: Its `teacher_preset` and `teacher_arch`.
        source: A bundle, an ONNX file or a checkpoint.

    Raises:
        ModelError: The teacher cannot be used.
        UsageError: Its input contract or network is not known.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return open_teacher(
        source, preset=recipe.teacher_preset, arch=recipe.teacher_arch, device=device
    )


def open_teacher_embeddings(
    recipe: Recipe,
    teacher: Teacher,
    pixels: Pixels,
    labels: I64,
    folder: Path,
    ranks: Ranks,
    track: Track,
    *,
    force: bool = False,
) -> TeacherEmbeddings:
    """The teacher's embeddings of the training images; all ranks fill the cache.

    The teacher must tell the first images of up to eight people apart.

    Args:
        recipe: Its `teacher_views` and `workers`; a `dim` below the teacher's asks for principal components.
        teacher: The teacher.
        pixels: The training images.
        labels: Their classes, `(N,) int64`.
        folder: Of the cache.
        ranks: The processes.
        track: Progress of filling the cache.
        force: Replace a cache of another teacher, contract or data, unless the recipe names its
            folder.

    Raises:
        ModelError: The teacher's embeddings are no use.
        DataError: The cache belongs to another teacher, contract or data, or the ranks do not share
            its folder.
        MachineError: There is no room for it.
        Interrupted: A signal came; what is embedded stays in the cache.
    """
    firsts = np.unique(labels, return_index=True)[1][:_CHECKED_PEOPLE]
    check_teacher(teacher, np.stack([pixels.read_near(int(index))[1] for index in firsts]))
    faces = np.stack(list(_read_probes(pixels)))
    teacher = choose_precision(teacher, faces, ranks, _begun_precision(folder, teacher))
    views = _VIEWS[recipe.teacher_views]
    with keeping(partial(_kept_text, folder)):
        cached = cached_embeddings(
            folder,
            teacher,
            pixels,
            track,
            views=views,
            ranks=ranks,
            workers=recipe.workers,
            force=force and not recipe.cache,
        )
    embeddings = TeacherEmbeddings(teacher, cached)
    if not 0 < recipe.dim < teacher.dim:
        return embeddings
    return TeacherEmbeddings(teacher, cached, principal_components(embeddings, recipe.dim))


def cached_embeddings(
    folder: Path,
    teacher: Teacher,
    pixels: Pixels,
    track: Track = silent,
    *,
    views: int = 2,
    ranks: Ranks | None = None,
    workers: int = 0,
    force: bool = False,
) -> F16:
    """Embeddings of each training image, filled in where an earlier call stopped.

    Images that cannot be read are tried again at the end, and in each later call.

    Args:
        folder: Of the cache; made if it does not exist.
        teacher: The teacher.
        pixels: The training images.
        track: Progress over this rank's blocks of images.
        views: 2 keeps an image and its mirror, 1 the mean of the two, of unit length.
        ranks: The processes, which share the blocks; by default one.
        workers: Processes of each that read images while the teacher embeds.
        force: Replace a cache of another teacher, contract or data.

    Returns:
        `(N, views, D) float16`, unit length, memory-mapped; zeros for images that cannot be read,
        which `teacher_targets.unembedded` finds.

    Raises:
        DataError: The cache belongs to another teacher, contract or data, is damaged, or the ranks do
            not share its folder.
        MachineError: There is no room for it.
    """
    ranks = ranks or Ranks()
    store, marks = folder / "teacher.npy", folder / "teacher.done"
    shape, blocks = (len(pixels), views, teacher.dim), -(-len(pixels) // _BLOCK)
    teaching = (teacher.sha256, teacher.spec.to_json())
    note = _CacheNote(*teaching, data_digest(pixels), list(shape), teacher.precision)
    if ranks.rank == 0:
        _prepare(folder, note, force)
    ranks.barrier()
    fault = f"rank {ranks.rank} does not see the teacher cache {folder} of rank 0"
    done = _await_marks(marks, blocks, fault)
    todo = [block for block in range(ranks.rank, blocks, ranks.size) if done[block] != 1]
    started = time.monotonic()
    with (
        _shared_file(store) as values,
        _shared_file(marks) as flags,
        closing(load_items(_Blocks(pixels), _BLOCK * FACE_BYTES, todo, workers)) as source,
    ):
        offset = store.stat().st_size - 2 * int(np.prod(shape))
        for number, images in enumerate(track(source, "teacher", len(todo))):
            block = todo[number]
            _embed_images(values, offset, teacher, images, views)
            os.pwrite(flags, b"\x01" if len(images.index) else _UNREADABLE, block)
            if number == 0 and torch.cuda.is_available() and teacher.device == "cpu":
                hours = (time.monotonic() - started) * len(todo) / 3600
                logger.warning(
                    "the teacher runs on the CPU beside a GPU; its embeddings will take about %.1f"
                    " hours. Give its torch weights instead of an ONNX file",
                    hours,
                )
    ranks.barrier()
    fault = f"the ranks do not see one another's part of the teacher cache {folder}"
    _await_marks(marks, blocks, fault, filled=True)
    if ranks.rank == 0:  # alone: no other node holds pages that it changes
        _embed_missing(store, teacher, pixels, views)
    ranks.barrier()
    cached: F16 = map_npy(store, DataError)
    return cached


class _Blocks(Dataset[Images]):
    """Item k is block k of the training images."""

    def __init__(self, pixels: Pixels) -> None:
        self.pixels = pixels

    def __getitem__(self, block: int) -> Images:
        start = block * _BLOCK
        return _read_images(self.pixels, range(start, min(start + _BLOCK, len(self.pixels))))


def data_digest(pixels: Pixels) -> str:
    """sha256 of the training images' names and of the pixels of 64 of them, evenly spread.

    Hashing millions of images whole would take as long as embedding them.

    Args:
        pixels: The training images.
    """
    digest = hashlib.sha256()
    for pick in pixels.picks:
        digest.update(pixels.faces.keys[int(pick)].encode() + b"\n")
    for face in _read_probes(pixels):
        digest.update(face.tobytes())
    return digest.hexdigest()


def _read_probes(pixels: Pixels) -> Iterator[U8]:
    """64 of the images, evenly spread."""
    for index in np.unique(np.linspace(0, len(pixels) - 1, _PROBES).astype(int)):
        yield pixels.read_near(int(index))[1]


def _read_images(pixels: Pixels, wanted: Iterable[int]) -> Images:
    """Those of the training images that can be read."""
    faces = {}
    for index in wanted:
        with suppress(FacesError):
            faces[index] = pixels.read(index)
    given = np.array(list(faces.values()), np.uint8).reshape(-1, ALIGNED_SIZE, ALIGNED_SIZE, 3)
    return Images(given, np.array(list(faces), np.int64))


def _embed_images(values: int, offset: int, teacher: Teacher, images: Images, views: int) -> None:
    """Write the embeddings of images, whose indices rise; other rows stay as they are."""
    if not len(images.index):
        return
    rows = embed_views(teacher, images.pixels, views)
    gaps = np.flatnonzero(np.diff(images.index) > 1) + 1
    for run in np.split(np.arange(len(rows)), gaps):
        os.pwrite(values, rows[run].tobytes(), offset + int(images.index[run[0]]) * rows[0].nbytes)


def _embed_missing(store: Path, teacher: Teacher, pixels: Pixels, views: int) -> None:
    """Try again to embed the images that could not be read."""
    cached: F16 = map_npy(store, DataError)
    missing, offset = unembedded(cached), store.stat().st_size - cached.nbytes
    with _shared_file(store) as values:
        for start in range(0, len(missing), _BLOCK):
            images = _read_images(pixels, missing[start : start + _BLOCK].tolist())
            _embed_images(values, offset, teacher, images, views)


def _read_marks(file: Path) -> U8:
    """Which blocks are done, a byte each: 0, 1 or `_UNREADABLE`."""
    return np.frombuffer(read_file(file, "LIST_MB"), np.uint8)


def _await_marks(marks: Path, blocks: int, fault: str, *, filled: bool = False) -> U8:
    """The marks once this node sees them, and where `filled` all of them set; DataError if it never does.

    For a minute an NFS client believes what it saw before, unless a folder's list shows otherwise.
    """
    end = time.monotonic() + _UNSEEN_S
    while True:
        with suppress(OSError):
            done = _read_marks(marks)
            if len(done) == blocks and (done.all() or not filled):
                return done
        if time.monotonic() >= end:
            raise DataError(fault, "give a folder that all nodes share: --set cache=FOLDER")
        time.sleep(1)
        for folder in reversed(marks.parents[:4]):  # OUT/checkpoint/teacher: all may be new
            with suppress(OSError):
                os.listdir(folder)


def _prepare(folder: Path, note: _CacheNote, force: bool) -> None:
    """Make an empty cache, unless the folder holds one that goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    store, marks, note_file = (folder / f"teacher.{end}" for end in ("npy", "done", "json"))
    blocks = -(-note.shape[0] // _BLOCK)
    if store.exists() and note_file.exists():
        try:
            filled = is_own_file(marks) and bool(_read_marks(marks).all())
            _check_note(note_file, note, filled=filled)
            if _is_whole(store, note) and is_own_file(marks) and marks.stat().st_size == blocks:
                return
        except DataError:
            if not force:
                raise
    try:
        for file in (note_file, store, marks):
            file.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"the teacher cache {folder} is damaged: {file.name}: {error.strerror}",
            f"remove {folder}",
        ) from error
    store.touch(0o600)  # biometric data: for this user alone
    np.lib.format.open_memmap(store, "w+", np.float16, tuple(note.shape))
    _reserve(store)
    marks.touch(0o600)
    marks.write_bytes(bytes(blocks))
    write_atomic(note_file, encode_json(note))


def _is_whole(store: Path, note: _CacheNote) -> bool:
    """Whether the file can take the embeddings in place; a link would lead to another file."""
    try:
        array = map_npy(store)
    except DataError:
        return False
    whole = list(array.shape) == note.shape and array.dtype == np.dtype(np.float16)
    return whole and is_own_file(store)


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


@contextmanager
def _shared_file(path: Path) -> Iterator[int]:
    """A file of which every node writes its parts: at once, and without reading. NFS would else send
    the whole pages around them, as this node has read them, over what others wrote."""
    descriptor = os.open(path, os.O_WRONLY | getattr(os, "O_DSYNC", 0))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _kept_text(folder: Path) -> str:
    """How much of the cache an interruption leaves, in words."""
    try:
        note = read_json(folder / "teacher.json", _CacheNote)
        done = int((_read_marks(folder / "teacher.done") == 1).sum())
    except (DataError, OSError):
        return ""
    count = min(done * _BLOCK, note.shape[0])
    return f"the teacher's embeddings of {count:,} of {note.shape[0]:,} images are in {folder}"


def _begun_precision(folder: Path, teacher: Teacher) -> str:
    """Of this teacher's embeddings in a folder; "" where none are, or their note does not name it."""
    try:
        note = read_json(folder / "teacher.json", _CacheNote)
    except DataError:
        return ""
    return note.precision if note.teacher == teacher.sha256 else ""


def _check_note(file: Path, expected: _CacheNote, *, filled: bool) -> None:
    """Raise DataError when the cache belongs to something else than expected; a filled one is used
    whatever its precision."""
    try:
        note = read_json(file, _CacheNote)
    except DataError as error:
        raise DataError(error.message, f"remove {file.parent}") from error
    wanted = decode_json(encode_json(expected), _CacheNote, file)  # rounded as the file is
    if filled or not note.precision:
        note = replace(note, precision=wanted.precision)
    for name in ("teacher", "contract", "data", "shape", "precision"):
        if getattr(note, name) != getattr(wanted, name):
            raise DataError(
                f"the teacher cache {file.parent} was made with another {name}",
                "give another --set cache=FOLDER, or remove this one",
            )
