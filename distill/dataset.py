"""Training images as batches that depend on the seed and the step alone, so runs resume exactly.

Batches are pixels, not network inputs: student and teacher each have their own input contract.
"""

import logging
import mmap
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from ..arrays import I64, U8
from ..errors import FacesError, UsageError
from ..faces.contract import ALIGNED_SIZE
from ..faces.sources import Faces
from .augmentation import DRAWS, augment
from .distributed import Ranks, load_items
from .recipe import Recipe

logger = logging.getLogger(__name__)

FACE_BYTES = ALIGNED_SIZE * ALIGNED_SIZE * 3
_MAX_BAD = 100  # unreadable images in a row


@dataclass(frozen=True)
class IdentitySplit:
    """Faces to train on, and faces of other people to verify on.

    Attributes:
        train: Indices into the source, `(N,) int64`.
        kept: Which of those are trained on, indices into `train`, `(K,) int64`; the others are excluded.
        labels: Their classes, 0..classes-1, `(N,) int64`.
        classes: Number of identities trained on.
        verification: Indices into the source, `(M,) int64`.
    """

    train: I64
    labels: I64
    classes: int
    verification: I64
    kept: I64


@dataclass(frozen=True)
class Images:
    """Training images that were read.

    Attributes:
        pixels: Aligned RGB faces, `(B, 112, 112, 3) uint8`.
        index: Of each image among the training images, `(B,) int64`.
    """

    pixels: U8
    index: I64


@dataclass(frozen=True)
class Batch(Images):
    """Images of a step, after augmentation.

    Attributes:
        flipped: Whether each is mirrored, `(B,) bool`.
        planned: Index that the order of the epoch has, `(B,) int64`; differs from `index` where that
            image could not be read and the next one took its place.
    """

    flipped: npt.NDArray[np.bool_]
    planned: I64


def split_identities(
    faces: Faces, verify_identities: int, excluded: npt.NDArray[np.bool_] | None = None
) -> IdentitySplit:
    """Keep the last identities apart for verification.

    An excluded image keeps its place: the teacher's embeddings of the others stay where they are.

    Args:
        faces: The source.
        verify_identities: Number of identities to keep apart.
        excluded: Images that are not trained on, `(len(faces),) bool`; by default none.

    Raises:
        UsageError: Fewer than two are left to train on.
    """
    labels = np.asarray(faces.labels, np.int64)
    people = np.unique(labels)
    if len(people) - verify_identities < 2:
        raise UsageError(
            f"{len(people)} identities, {verify_identities} of them for verification: fewer than 2"
            " are left to train on",
            "give more identities, or --set verify_identities=0",
        )
    border = people[len(people) - verify_identities - 1]
    train, verification = np.flatnonzero(labels <= border), np.flatnonzero(labels > border)
    classes = np.unique(labels[train], return_inverse=True)[1].astype(np.int64)
    left = np.arange(len(train)) if excluded is None else np.flatnonzero(~excluded[train])
    if excluded is not None:
        verification = verification[~excluded[verification]]
    return IdentitySplit(train, classes, len(people) - verify_identities, verification, left)


class Pixels:
    """The training images, kept decoded in memory when all of them fit.

    Args:
        faces: The source.
        picks: Indices of the training images, `(N,) int64`.
        memory_mb: Memory for decoded images.
    """

    def __init__(self, faces: Faces, picks: I64, memory_mb: int) -> None:
        self.faces, self.picks = faces, picks
        size = len(picks) * (FACE_BYTES + 1)
        self._decoded: U8 | None = None
        if 0 < size <= memory_mb << 20:
            # Anonymous shared memory: worker processes fill it for one another.
            memory = np.frombuffer(mmap.mmap(-1, size), np.uint8)
            self._decoded = memory[: len(picks) * FACE_BYTES].reshape(
                -1, ALIGNED_SIZE, ALIGNED_SIZE, 3
            )
            self._is_decoded = memory[len(picks) * FACE_BYTES :]

    def __len__(self) -> int:
        return len(self.picks)

    def read(self, index: int) -> U8:
        """One image, `(112, 112, 3) uint8`.

        Args:
            index: Among the training images.

        Raises:
            FacesError: It cannot be read.
        """
        if self._decoded is None:
            return self.faces.read(int(self.picks[index]))
        if not self._is_decoded[index]:
            self._decoded[index] = self.faces.read(int(self.picks[index]))
            self._is_decoded[index] = 1
        face: U8 = self._decoded[index]
        return face

    def read_near(self, index: int, among: I64 | None = None) -> tuple[int, U8]:
        """One image, or the next one that can be read.

        Args:
            index: Among the training images.
            among: Those that may take its place, ascending, itself one of them; by default all.

        Returns:
            The index that was read, and the image, `(112, 112, 3) uint8`.

        Raises:
            FacesError: A hundred images in a row cannot be read.
        """
        place = index if among is None else int(np.searchsorted(among, index))
        for ahead in range(_MAX_BAD):
            near = (place + ahead) % len(self if among is None else among)
            near = near if among is None else int(among[near])
            try:
                return near, self.read(near)
            except FacesError as error:
                last = error
        raise last

    def read_all(self, wanted: Iterable[int], among: I64 | None = None) -> Images:
        """Images in order; unreadable ones are replaced by the next.

        Args:
            wanted: Among the training images; at least one.
            among: Those that may take the place of one, ascending; by default all.

        Raises:
            FacesError: A hundred images in a row cannot be read.
        """
        images = [self.read_near(int(index), among) for index in wanted]
        return Images(np.stack([p for _, p in images]), np.array([i for i, _ in images], np.int64))


class _Steps(Dataset[Batch]):
    """Item k is this rank's part of the batch of step k; it depends on the seed and k alone."""

    def __init__(self, pixels: Pixels, split: IdentitySplit, recipe: Recipe, ranks: Ranks) -> None:
        self.pixels, self.kept, self.recipe = pixels, split.kept, recipe
        self.labels = split.labels[split.kept]
        self.part = slice(*ranks.shard(recipe.batch))
        self.per_epoch = len(split.kept) // recipe.batch
        self.order = lru_cache(1)(self._order)

    def _order(self, epoch: int) -> npt.NDArray[np.int32]:
        """Every worker has its own: 4 bytes an image are 23 MB for MS1MV2."""
        rng = np.random.default_rng([self.recipe.seed, 1, epoch])
        size = max(1, self.recipe.per_identity)
        if self.recipe.balanced:
            order = balanced_order(self.labels, size, rng)
        elif size > 1:
            order = grouped_order(self.labels, size, rng)
        else:
            order = rng.permutation(len(self.kept))
        return self.kept[order].astype(np.int32)

    def __getitem__(self, step: int) -> Batch:
        recipe = self.recipe
        epoch, number = divmod(step, self.per_epoch)
        first = number * recipe.batch
        planned = self.order(epoch)[first : first + recipe.batch][self.part].astype(np.int64)
        images = self.pixels.read_all(planned, self.kept)
        # Drawn for the whole batch on every rank: the number of ranks changes nothing.
        rng = np.random.default_rng([recipe.seed, 2, step])
        flipped = (rng.random(recipe.batch) < 0.5)[self.part]
        draws = rng.random((recipe.batch, DRAWS))[self.part]
        pixels = images.pixels
        pixels[flipped] = pixels[flipped][:, :, ::-1]
        return Batch(augment(pixels, draws, recipe), images.index, flipped, planned)


def grouped_order(labels: I64, size: int, rng: np.random.Generator) -> I64:
    """An order of all images in which groups of one person's stand together.

    A person's images are shuffled and cut into groups; a last, short group is filled up with others of
    that person, or with the same where there are no others.

    Args:
        labels: Class of each image, `(N,) int64`.
        size: Images of a group.
        rng: Where the order comes from.

    Returns:
        Indices, `(M,) int64`, M >= N.
    """
    shuffled = rng.permutation(len(labels))
    ordered = shuffled[np.argsort(labels[shuffled], kind="stable")]
    starts = np.flatnonzero(np.diff(labels[ordered], prepend=-1))
    counts = np.diff(starts, append=len(ordered))
    filled = -(-counts // size) * size
    places = np.arange(filled.sum()) - np.repeat(np.cumsum(filled) - filled, filled)
    places %= np.repeat(counts, filled)
    places += np.repeat(starts, filled)
    every = ordered[places].reshape(-1, size)
    order: I64 = every[rng.permutation(len(every))].reshape(-1)
    return order


def balanced_order(labels: I64, size: int, rng: np.random.Generator) -> I64:
    """An order in which every person has equally many images: those of people with few come again.

    Of people with many, each order has another part.

    Args:
        labels: Class of each image, `(N,) int64`.
        size: Images of a person that stand together.
        rng: Where the order comes from.

    Returns:
        Indices, `(M,) int64`, M >= N.
    """
    counts = np.bincount(labels)
    counts = counts[counts > 0]
    each = -(-len(labels) // (len(counts) * size)) * size
    shuffled = rng.permutation(len(labels))
    ordered = shuffled[np.argsort(labels[shuffled], kind="stable")]
    places = (np.cumsum(counts) - counts)[:, None] + np.arange(each) % counts[:, None]
    groups = ordered[places].reshape(-1, size)
    order: I64 = groups[rng.permutation(len(groups))].reshape(-1)
    return order


def batches(
    pixels: Pixels, split: IdentitySplit, recipe: Recipe, ranks: Ranks, start: int, stop: int
) -> Generator[Batch]:
    """This rank's batches of some steps; to be closed, which ends the workers.

    Every epoch visits the images in a new order and drops the last, incomplete batch.

    Args:
        pixels: The training images.
        split: Their classes, and which of them are trained on.
        recipe: Its batch, augmentation, seed, workers and limit of unreadable images.
        ranks: The processes.
        start: First step.
        stop: One past the last step.

    Raises:
        FacesError: More than `bad_images` images cannot be read.
    """
    bad: set[int] = set()
    steps = _Steps(pixels, split, recipe, ranks)
    size = recipe.batch // ranks.size * FACE_BYTES
    with closing(load_items(steps, size, range(start, stop), recipe.workers)) as items:
        for item in items:
            known = len(bad)
            bad.update(item.planned[item.planned != item.index].tolist())
            _check_bad_images(pixels, bad, recipe.bad_images)
            if len(bad) > known:
                logger.warning(
                    "%d of at most %d unreadable images skipped", len(bad), recipe.bad_images
                )
            yield item


def _check_bad_images(pixels: Pixels, bad: set[int], limit: int) -> None:
    if len(bad) <= limit:
        return
    names = [pixels.faces.keys[int(pixels.picks[index])] for index in sorted(bad)[:3]]
    raise FacesError(
        f"{len(bad)} image{'s' * (len(bad) > 1)} of {pixels.faces.where} cannot be read:"
        f" {', '.join(names)}",
        f"remove them, or skip up to N bad ones with --set bad_images=N (now {limit})",
    )
