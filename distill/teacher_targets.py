"""Targets from the teacher's embeddings: per batch, per class, and as constant points of reference."""

import logging
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..arrays import F16, F32, I64, U8
from .dataset import Batch, IdentitySplit
from .teacher import Teacher

logger = logging.getLogger(__name__)

_BLOCK = 256  # embeddings handled at once
_SCANNED = 1 << 16  # embeddings looked at at once
_PCA_ROWS = 100_000  # embeddings from which principal components are computed, evenly spread
_EPS = 1e-12  # smallest length to divide by


@dataclass(frozen=True)
class TeacherEmbeddings:
    """The teacher's embeddings of training images.

    Attributes:
        teacher: The teacher.
        cached: Of each training image, `(N, V, D) float16`, unit length: the mean of its two mirror
            views, or each of them.
        components: Principal components that they are projected on, `(D, d) float32`; None leaves
            them as they are.
    """

    teacher: Teacher
    cached: F16
    components: F32 | None = None

    @property
    def dim(self) -> int:
        """Size of the targets."""
        return self.teacher.dim if self.components is None else self.components.shape[1]

    def of_batch(self, batch: Batch) -> F32:
        """The targets of a batch, `(B, dim) float32`.

        Args:
            batch: Of the training images.
        """
        view = batch.flipped.astype(np.int64) if self.cached.shape[1] == 2 else 0
        return self._projected(self.cached[batch.index, view].astype(np.float32))

    def rows(self, images: I64 | slice) -> F32:
        """Mean targets of images, `(B, dim) float32`, unit length.

        Args:
            images: Which of the training images.
        """
        return unit_rows(self._projected(self.cached[images].astype(np.float32).mean(1)))

    def _projected(self, rows: F32) -> F32:
        return rows if self.components is None else rows @ self.components


def unembedded(cached: F16) -> I64:
    """Images without an embedding, since they could not be read: their rows are zero.

    Of the others the first number alone is looked at, but where it is zero.

    Args:
        cached: As `TeacherEmbeddings` has it; a memory map is read once.

    Returns:
        Indices in order, `(K,) int64`.
    """
    parts = [np.empty(0, np.int64)]
    for start in range(0, len(cached), _SCANNED):
        rows = np.asarray(cached[start : start + _SCANNED])
        zero = np.flatnonzero(rows[:, 0, 0] == 0)
        parts.append(start + zero[~rows[zero].any((1, 2))])
    return np.concatenate(parts)


def principal_components(embeddings: TeacherEmbeddings, dim: int) -> F32:
    """The directions that keep most of the embeddings' squared length.

    Eigenvectors of the mean outer product, about the origin and not the mean: inner products, that is
    cosines, are what is to be kept.

    Args:
        embeddings: Of the training images.
        dim: How many, d.

    Returns:
        `(D, d) float32`, orthonormal columns.
    """
    count = len(embeddings.cached)
    picks = np.unique(np.linspace(0, count - 1, min(count, _PCA_ROWS)).astype(np.int64))
    moment = np.zeros((embeddings.teacher.dim,) * 2)
    for start in range(0, len(picks), _BLOCK):
        rows = embeddings.cached[picks[start : start + _BLOCK]].astype(np.float64).mean(1)
        moment += rows.T @ rows
    values, vectors = np.linalg.eigh(moment / len(picks))
    order = np.argsort(values)[::-1][:dim]
    logger.info(
        "%d principal components keep %.1f %% of the teacher's embeddings",
        dim,
        100 * values[order].sum() / values.sum(),
    )
    # A sign for each, so that machines agree.
    chosen = vectors[:, order]
    chosen = chosen * np.sign(chosen[np.abs(chosen).argmax(0), np.arange(dim)])
    out: F32 = chosen.astype(np.float32)
    return out


def teacher_bank(
    embeddings: TeacherEmbeddings, split: IdentitySplit, megabytes: int, seed: int
) -> Tensor:
    """Constant points of reference: all images, or the classes' means, or a sample of those.

    Args:
        embeddings: Of the training images.
        split: Their classes.
        megabytes: Memory for the bank.
        seed: Of the sample.

    Returns:
        `(N, dim) float32`, unit length.
    """
    rows = (megabytes << 20) // (4 * embeddings.dim)
    count = len(split.kept)
    if count <= rows:
        bank = np.empty((count, embeddings.dim), np.float32)
        for start in range(0, count, _BLOCK):
            bank[start : start + _BLOCK] = embeddings.rows(split.kept[start : start + _BLOCK])
        return torch.from_numpy(bank)
    means = class_means(embeddings, split)
    if len(means) <= rows:
        return means
    picks = np.random.default_rng(seed).choice(len(means), rows, replace=False)
    return means[torch.from_numpy(np.sort(picks))]


def class_means(embeddings: TeacherEmbeddings, split: IdentitySplit) -> Tensor:
    """Mean teacher embedding of each class, over images and their mirrors.

    Args:
        embeddings: Of the training images.
        split: Their classes.

    Returns:
        `(C, dim) float32`, unit length.
    """
    sums = torch.zeros(split.classes, embeddings.dim)
    for start in range(0, len(split.kept), _BLOCK):
        images = split.kept[start : start + _BLOCK]
        rows = torch.from_numpy(embeddings.rows(images))
        sums.index_add_(0, torch.from_numpy(split.labels[images]), rows)
    return nn.functional.normalize(sums)


def embed_views(teacher: Teacher, faces: U8, views: int) -> F16:
    """The teacher's embeddings of faces and of their mirrors.

    Args:
        teacher: The teacher.
        faces: Aligned RGB faces, `(B, 112, 112, 3) uint8`.
        views: 2 keeps both, 1 their mean.

    Returns:
        `(B, views, D) float16`, unit length.
    """
    plain = teacher.embed(faces)
    mirrored = teacher.embed(np.ascontiguousarray(faces[:, :, ::-1]))
    both = np.stack([plain, mirrored], 1)
    rows: F16 = (both if views == 2 else unit_rows(both.mean(1, keepdims=True))).astype(np.float16)
    return rows


def unit_rows(rows: F32) -> F32:
    """Rows brought to unit length.

    Args:
        rows: `(..., D)`.
    """
    out: F32 = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), _EPS)
    return out
