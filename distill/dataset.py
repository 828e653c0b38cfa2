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

from ..arrays import I64, U8
from ..errors import FacesError, UsageError
from ..faces.contract import ALIGNED_SIZE
from ..faces.sources import Faces
from .distributed import Ranks
from .recipe import Recipe

_FACE_BYTES = ALIGNED_SIZE * ALIGNED_SIZE * 3

_TRIES = 100


@dataclass(frozen=True)
class IdentitySplit:
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


def split_identities(faces: Faces, verify_identities: int) -> IdentitySplit:
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
    return IdentitySplit(train, number, len(people) - verify_identities, held, labels[held])


class Pixels:
    """Reads training images, and keeps them decoded when all fit into `memory_mb`."""

    def __init__(self, faces: Faces, picks: I64, memory_mb: int) -> None:
        self.faces, self.picks = faces, picks
        size = len(picks) * (_FACE_BYTES + 1)
        self.kept: U8 | None = None
        if 0 < size <= memory_mb << 20:
            # Anonymous shared memory: worker processes fill it for one another.
            memory = np.frombuffer(mmap.mmap(-1, size), np.uint8)
            self.kept = memory[: len(picks) * _FACE_BYTES].reshape(
                -1, ALIGNED_SIZE, ALIGNED_SIZE, 3
            )
            self.have = memory[len(picks) * _FACE_BYTES :]

    def __len__(self) -> int:
        return len(self.picks)

    def read(self, index: int) -> U8:
        if self.kept is None:
            return self.faces.read(int(self.picks[index]))
        if not self.have[index]:
            self.kept[index] = self.faces.read(int(self.picks[index]))
            self.have[index] = 1
        face: U8 = self.kept[index]
        return face

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
    """Item k is this rank's part of step k's batch, a function of the seed and k alone."""

    def __init__(self, pixels: Pixels, recipe: Recipe, ranks: Ranks) -> None:
        self.pixels, self.recipe = pixels, recipe
        self.part = slice(*ranks.share(recipe.batch))
        self.per_epoch = len(pixels) // recipe.batch
        self.order = lru_cache(2)(self._order)

    def _order(self, epoch: int) -> I64:
        return np.random.default_rng([self.recipe.seed, 1, epoch]).permutation(len(self.pixels))

    def __getitem__(self, step: int) -> Batch:
        recipe = self.recipe
        epoch, number = divmod(step, self.per_epoch)
        asked = self.order(epoch)[number * recipe.batch : (number + 1) * recipe.batch][self.part]
        found = [self.pixels.read_near(int(index)) for index in asked]
        # Drawn for the whole batch on every rank: the number of ranks changes nothing.
        rng = np.random.default_rng([recipe.seed, 2, step])
        flipped = (rng.random(recipe.batch) < 0.5)[self.part]
        corners = rng.integers(0, 2 * recipe.shift + 1, (recipe.batch, 2))[self.part]
        tones = rng.uniform(-recipe.light, recipe.light, (recipe.batch, 2))[self.part]
        pixels = np.stack([face for _, face in found])
        pixels[flipped] = pixels[flipped][:, :, ::-1]
        pixels = relight(shifted(pixels, recipe.shift, corners), tones)
        return Batch(pixels, np.array([i for i, _ in found], np.int64), flipped, asked)


def shifted(pixels: U8, shift: int, corners: I64) -> U8:
    """Faces `(B, 112, 112, 3)` moved by `shift - corners (B, 2)` pixels down and right; edges
    repeat."""
    if shift == 0:
        return pixels
    wide = np.pad(pixels, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
    return np.stack(
        [
            w[y : y + ALIGNED_SIZE, x : x + ALIGNED_SIZE]
            for w, (y, x) in zip(wide, corners, strict=True)
        ]
    )


def relight(pixels: U8, tones: npt.NDArray[np.float64]) -> U8:
    """Contrast and brightness changed by the shares `tones (B, 2)`, around the middle grey."""
    if not tones.any():
        return pixels
    gain, lift = (tones[:, k, None, None, None].astype(np.float32) for k in (0, 1))
    out = (pixels.astype(np.float32) - 127.5) * (1 + gain) + 127.5 * (1 + lift)
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def batches(pixels: Pixels, recipe: Recipe, ranks: Ranks, start: int, stop: int) -> Iterator[Batch]:
    """This rank's batches of steps `start..stop`; raises FacesError past `bad_images` bad images.

    Every epoch visits the images in a new order and drops the last, incomplete batch.
    """
    loader = DataLoader(
        _Steps(pixels, recipe, ranks),
        sampler=range(start, stop),
        batch_size=None,
        collate_fn=_as_it_is,  # type: ignore[arg-type]
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
