"""Faces into batches, the same ones for the same (seed, step): a resumed run goes on exactly.

Batches are pixels, never network inputs: student and teacher each have their own contract.
"""

import mmap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import FacesError, UsageError
from ..faces.contract import FRAME
from ..faces.sources import Faces
from .recipe import Recipe

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
_FACE_BYTES = FRAME * FRAME * 3
_TRIES = 100


@dataclass(frozen=True)
class Split:
    """`train` and `held` index the source's faces; `labels` are of `train`, 0..classes-1."""

    train: I64
    labels: I64
    classes: int
    held: I64
    held_labels: I64


@dataclass(frozen=True)
class Batch:
    """`pixels (B, 112, 112, 3) uint8` after augmentation; `index` is into the training images;
    `asked` differs from it where an image could not be read and the next one took its place."""

    pixels: U8
    index: I64
    flipped: npt.NDArray[np.bool_]
    asked: I64


def split(faces: Faces, verify_identities: int) -> Split:
    """Keep the last identities apart; raises UsageError when too few are left to train on."""
    labels = np.asarray(faces.labels, np.int64)
    people = np.unique(labels)
    if len(people) - verify_identities < 2:
        raise UsageError(
            f"{len(people)} identities, {verify_identities} of them for verification: fewer than 2"
            " are left to train on",
            "give more identities, or --set verify_identities=0",
        )
    border = people[len(people) - verify_identities - 1]
    train, held = np.flatnonzero(labels <= border), np.flatnonzero(labels > border)
    number = np.unique(labels[train], return_inverse=True)[1].astype(np.int64)
    return Split(train, number, len(people) - verify_identities, held, labels[held])


class Pixels:
    """Reads training images, and keeps them decoded when all fit into `memory_mb`."""

    def __init__(self, faces: Faces, picks: I64, memory_mb: int) -> None:
        self.faces, self.picks = faces, picks
        size = len(picks) * (_FACE_BYTES + 1)
        self.kept: U8 | None = None
        if 0 < size <= memory_mb << 20:
            # Anonymous shared memory: worker processes fill it for one another.
            memory = np.frombuffer(mmap.mmap(-1, size), np.uint8)
            self.kept = memory[: len(picks) * _FACE_BYTES].reshape(-1, FRAME, FRAME, 3)
            self.have = memory[len(picks) * _FACE_BYTES :]

    def __len__(self) -> int:
        return len(self.picks)

    def read(self, index: int) -> U8:
        if self.kept is None:
            return self.faces.read(int(self.picks[index]))
        if not self.have[index]:
            self.kept[index] = self.faces.read(int(self.picks[index]))
            self.have[index] = 1
        return self.kept[index]

    def read_near(self, index: int) -> tuple[int, U8]:
        """The image, or the next one that can be read; raises FacesError after 100 bad ones."""
        for ahead in range(_TRIES):
            near = (index + ahead) % len(self)
            try:
                return near, self.read(near)
            except FacesError as error:
                last = error
        raise last

    def block(self, start: int, stop: int) -> tuple[I64, U8]:
        """Images `start..stop` in order, bad ones replaced: the indices read, and the pixels."""
        found = [self.read_near(index) for index in range(start, stop)]
        return np.array([i for i, _ in found], np.int64), np.stack([p for _, p in found])


class _Steps(Dataset[Batch]):
    """Item k is the batch of step k, a function of the seed and k alone."""

    def __init__(self, pixels: Pixels, recipe: Recipe, batch: int) -> None:
        self.pixels, self.recipe, self.batch = pixels, recipe, batch
        self.per_epoch = len(pixels) // batch
        self.order = lru_cache(2)(self._order)

    def _order(self, epoch: int) -> I64:
        return np.random.default_rng([self.recipe.seed, 1, epoch]).permutation(len(self.pixels))

    def __getitem__(self, step: int) -> Batch:
        epoch, number = divmod(step, self.per_epoch)
        asked = self.order(epoch)[number * self.batch : (number + 1) * self.batch]
        found = [self.pixels.read_near(int(index)) for index in asked]
        rng = np.random.default_rng([self.recipe.seed, 2, step])
        flipped = rng.random(len(asked)) < 0.5
        pixels = np.stack(
            [face[:, ::-1] if flip else face for (_, face), flip in zip(found, flipped, strict=True)]
        )
        pixels = augment(pixels, self.recipe.shift, self.recipe.light, rng)
        return Batch(pixels, np.array([i for i, _ in found], np.int64), flipped, asked)


def augment(pixels: U8, shift: int, light: float, rng: np.random.Generator) -> U8:
    """Random translation by up to `shift` pixels (edges repeated), then contrast and brightness
    by up to the share `light`; faces `(B, 112, 112, 3)`."""
    if shift:
        wide = np.pad(pixels, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
        corner = rng.integers(0, 2 * shift + 1, (len(pixels), 2))
        pixels = np.stack(
            [w[y : y + FRAME, x : x + FRAME] for w, (y, x) in zip(wide, corner, strict=True)]
        )
    if light:
        gain, lift = rng.uniform(-light, light, (2, len(pixels), 1, 1, 1)).astype(np.float32)
        out = (pixels.astype(np.float32) - 127.5) * (1 + gain) + 127.5 * (1 + lift)
        pixels = np.clip(out, 0, 255).astype(np.uint8)
    return pixels


def batches(pixels: Pixels, recipe: Recipe, batch: int, start: int, stop: int) -> Iterator[Batch]:
    """The batches of steps `start..stop`; raises FacesError past `bad_images` unreadable images.

    Every epoch visits the images in a new order and drops the last, incomplete batch.
    """
    loader = DataLoader(
        _Steps(pixels, recipe, batch),
        sampler=range(start, stop),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=recipe.workers,
        # Opening it draws a number: not from the generator that a resumed run must find again.
        generator=torch.Generator(),
        multiprocessing_context="fork" if recipe.workers else None,
    )
    bad: set[int] = set()
    with warnings.catch_warnings():
        # Python warns of forking with threads; the workers touch none of the parent's.
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        for item in loader:
            bad.update(item.asked[item.asked != item.index].tolist())
            refuse_bad(pixels, bad, recipe.bad_images)
            yield item


def refuse_bad(pixels: Pixels, bad: set[int], limit: int) -> None:
    """Raises FacesError that names the first images when more than `limit` cannot be read."""
    if len(bad) <= limit:
        return
    names = [pixels.faces.keys[int(pixels.picks[index])] for index in sorted(bad)[:3]]
    raise FacesError(
        f"{len(bad)} images of {pixels.faces.where} cannot be read: {', '.join(names)}",
        f"remove them, or skip up to N bad ones with --set bad_images=N (now {limit})",
    )


def _as_it_is(item: Batch) -> Batch:
    return item
