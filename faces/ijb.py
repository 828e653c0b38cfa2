"""IJB-B and IJB-C, 1:1 verification, in insightface's folders `meta/*.txt` and `loose_crop/`.

Templates of several images are compared. Public evaluators differ in how they pool images, so the
flags are part of the result: N (an image counts by its embedding's norm; N0 normalises it first),
D (and by the detector's score), F (mirror images are added).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import F32, F64, I64, U8
from ..errors import FacesError
from ..reading import read_file
from .align import align
from .archives import read_image
from .contract import ALIGNED_SIZE
from .images import decode_photograph
from .sources import Faces

_PART = 4096  # rows computed at once: IJB-C has 15.7 million pairs


@dataclass(frozen=True)
class Ijb:
    """N images in templates, and P pairs of templates.

    Attributes:
        faces: The images, aligned as they are read.
        template: Template of each image, `(N,) int64`.
        media: Medium of each image (a still or a video), `(N,) int64`.
        score: The detector's score of each image, `(N,) float32`.
        first: First template of each pair, `(P,) int64`.
        second: Second template of each pair, `(P,) int64`.
        same: Whether both are one person, `(P,) bool`.
    """

    faces: Faces
    template: I64
    media: I64
    score: F32
    first: I64
    second: I64
    same: npt.NDArray[np.bool_]


def is_ijb(folder: Path) -> bool:
    """Whether a folder is laid out as IJB.

    Args:
        folder: Any folder.
    """
    return (folder / "loose_crop").is_dir() and (folder / "meta").is_dir()


def read_ijb(folder: Path) -> Ijb:
    """Read the lists and index the images.

    Args:
        folder: Contains `meta` and `loose_crop`.

    Raises:
        FacesError: A list is missing or damaged, images are missing, or a pair names a template
            without images.
    """
    media = _table(folder, "*_face_tid_mid.txt", "image template media", 3)
    points = _table(folder, "*_name_5pts_score.txt", "image x1 y1 ... x5 y5 score", 12)
    pairs = _table(folder, "*_template_pair_label.txt", "template template label", 3)
    names = [row[0] for row in points]
    if [row[0] for row in media] != names:
        raise FacesError(
            f"{folder / 'meta'}: the lists of media ({len(media)}) and of points ({len(points)}) "
            "do not name the same images in the same order"
        )
    missing = [name for name in names if not (folder / "loose_crop" / name).is_file()]
    if missing:
        raise FacesError(
            f"{folder / 'loose_crop'} lacks {len(missing)} of {len(names)} images, "
            f"the first is {missing[0]}",
            "unpack the whole set",
        )
    places = _numbers([row[1:] for row in points], np.float64, folder)
    numbers = _numbers([row[1:] for row in media], np.int64, folder)
    listed = _numbers(pairs, np.int64, folder)
    absent = np.setdiff1d(listed[:, :2], numbers[:, 0])
    if len(absent):
        raise FacesError(
            f"{folder / 'meta'}: {len(absent)} templates of the pairs have no image, "
            f"the first is {absent[0]}"
        )

    def read(index: int, side: int = ALIGNED_SIZE) -> U8:
        path = folder / "loose_crop" / names[index]
        return _read_aligned(path, places[index, :10].reshape(5, 2), side)

    return Ijb(
        Faces(str(folder), tuple(names), numbers[:, 0], read, labelled=False, read_at=read),
        numbers[:, 0],
        numbers[:, 1],
        places[:, 10].astype(np.float32),
        listed[:, 0],
        listed[:, 1],
        listed[:, 2] == 1,
    )


def pool_templates(
    batches: Iterable[F32], ijb: Ijb, *, norm: bool = True, detector: bool = True
) -> tuple[F32, I64]:
    """Pool the embeddings of a template's images into one.

    Images of one medium are averaged, media are summed: the frames of a video count once.

    Args:
        batches: Embeddings of the images in order, `(n, D) float32` at a time.
        ijb: Templates and media of the images.
        norm: Weight an image by the norm of its embedding (N1), or normalise it first (N0).
        detector: Weight an image by the detector's score too (D1).

    Returns:
        Templates `(T, D) float32` of unit length, and their numbers `(T,) int64`.
    """
    keys, medium = np.unique(np.stack([ijb.template, ijb.media]), axis=1, return_inverse=True)
    medium = medium.reshape(-1)
    means, start = np.zeros((0, 0), np.float32), 0
    for batch in batches:
        if not start:
            means = np.zeros((keys.shape[1], batch.shape[1]), np.float32)
        rows = slice(start, start + len(batch))
        weighted = batch if norm else batch / np.linalg.norm(batch, axis=1, keepdims=True)
        if detector:
            weighted = weighted * ijb.score[rows, None]
        _add(means, medium[rows], weighted)
        start += len(batch)
    means /= np.bincount(medium)[:, None]
    numbers, template = np.unique(keys[0], return_inverse=True)
    sums = np.zeros((len(numbers), means.shape[1]), np.float32)
    for start in range(0, len(means), _PART):
        _add(sums, template[start : start + _PART], means[start : start + _PART])
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12), numbers


def template_cosines(templates: F32, numbers: I64, ijb: Ijb) -> F32:
    """Cosines of the pairs of templates.

    Args:
        templates: `(T, D) float32` of unit length.
        numbers: Their numbers, `(T,) int64`, ascending.
        ijb: The pairs.

    Returns:
        `(P,) float32`.
    """
    out = np.empty(len(ijb.first), np.float32)
    for start in range(0, len(out), _PART):
        part = slice(start, start + _PART)
        first = templates[np.searchsorted(numbers, ijb.first[part])]
        second = templates[np.searchsorted(numbers, ijb.second[part])]
        out[part] = np.einsum("nd,nd->n", first, second)
    return out


def _add(sums: F32, group: I64, rows: F32) -> None:
    """`sums[group[i]] += rows[i]` for all i; rows of one group are summed first, which is fast."""
    order = np.argsort(group, kind="stable")
    groups, begins = np.unique(group[order], return_index=True)
    sums[groups] += np.add.reduceat(rows[order], begins, axis=0)


def _table(folder: Path, pattern: str, what: str, columns: int) -> list[list[str]]:
    files = sorted((folder / "meta").glob(pattern))
    if len(files) != 1:
        raise FacesError(
            f"{folder / 'meta'} has {len(files)} files {pattern}, expected one: {what}"
        )
    file = files[0]
    try:
        rows = [
            line.split()
            for line in read_file(file, "LIST_MB", FacesError).decode().splitlines()
            if line
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise FacesError(f"{file} cannot be read: {error}") from error
    for number, row in enumerate(rows, 1):
        if len(row) != columns:
            raise FacesError(f"{file}, line {number}: {len(row)} columns, expected {what}")
    if not rows:
        raise FacesError(f"{file} is empty, expected {what}")
    return rows


def _numbers(rows: list[list[str]], kind: type, folder: Path) -> npt.NDArray[Any]:
    try:
        return np.array(rows, dtype=np.str_).astype(kind)
    except (ValueError, OverflowError) as error:
        raise FacesError(f"{folder / 'meta'}: a number cannot be read: {error}") from error


def _read_aligned(path: Path, points: F64, side: int) -> U8:
    photograph = decode_photograph(read_image(path.parent, path.name), path.name)
    return align(photograph, points, size=side)
