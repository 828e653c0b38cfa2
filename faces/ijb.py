"""IJB-B and IJB-C, 1:1 verification, in insightface's folders `meta/*.txt` and `loose_crop/`.

Templates of several images are compared. Public evaluators differ in how they pool images, so the
flags are part of the result: N (an image counts by its embedding's norm; N0 normalises it first),
D (and by the detector's score), F (mirror images are added).
"""

import os
import warnings
from collections.abc import Iterable
from contextlib import suppress
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

_ROWS = 1 << 20  # pairs whose templates are looked up at once

_PIECE = 1 << 20  # bytes of a list that are read at once, and the rest of a line


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
    listed, numbers = _table(folder, "*_face_tid_mid.txt", "image template media", 2, np.int64)
    what = "image x1 y1 ... x5 y5 score"
    names, places = _table(folder, "*_name_5pts_score.txt", what, 11, np.float64)
    if listed != names:
        raise FacesError(
            f"{folder / 'meta'}: the lists of media ({len(listed)}) and of points ({len(names)}) "
            "do not name the same images in the same order"
        )
    what = "template template label"
    pairs = _table(folder, "*_template_pair_label.txt", what, 3, np.int64, named=False)[1]
    if missing := _missing(folder / "loose_crop", names):
        raise FacesError(
            f"{folder / 'loose_crop'} lacks {len(missing)} of {len(names)} images, "
            f"the first is {missing[0]}",
            "unpack the whole set",
        )
    parts = [pairs[start : start + _ROWS, :2] for start in range(0, len(pairs), _ROWS)]
    absent = np.unique(np.concatenate([part[~np.isin(part, numbers[:, 0])] for part in parts]))
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
        np.ascontiguousarray(pairs[:, 0]),
        np.ascontiguousarray(pairs[:, 1]),
        pairs[:, 2] == 1,
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


def _table(
    folder: Path, pattern: str, what: str, columns: int, kind: npt.DTypeLike, *, named: bool = True
) -> tuple[list[str], npt.NDArray[Any]]:
    """The names at the beginning of lines, if any, and the numbers in them, `(n, columns)`."""
    files = sorted((folder / "meta").glob(pattern))
    if len(files) != 1:
        raise FacesError(
            f"{folder / 'meta'} has {len(files)} files {pattern}, expected one: {what}"
        )
    file = files[0]
    names: list[str] = []
    parts: list[npt.NDArray[Any]] = []
    rows = at = 0
    try:
        data = read_file(file, "LIST_MB", FacesError)
        while at < len(data):
            end = data.find(b"\n", at + _PIECE) + 1 or len(data)
            piece = data[at:end].decode()
            text = piece
            if named:
                lines = [line.split(None, 1) for line in piece.splitlines() if line]
                text = "\n".join(line[1] if len(line) == 2 else "" for line in lines)
            part = _plain_numbers(text, columns, kind)
            if part is not None and named:
                names += [line[0] for line in lines]
            if part is None:
                split = _split_lines(piece, columns + named, f"{file}, line", rows, what)
                names += [row[0] for row in split if named]
                part = _numbers([row[named:] for row in split], kind, folder)
            parts.append(part.reshape(-1, columns))
            rows += len(parts[-1])
            at = end
    except (OSError, UnicodeDecodeError) as error:
        raise FacesError(f"{file} cannot be read: {error}") from error
    if not rows:
        raise FacesError(f"{file} is empty, expected {what}")
    del data
    return names, np.concatenate(parts)


def _plain_numbers(text: str, columns: int, kind: npt.DTypeLike) -> npt.NDArray[Any] | None:
    """Lines of numbers, all of which have so many; None for what is to be looked at line by line."""
    data = text.encode().replace(b"\r\n", b"\n")
    whole = kind is np.int64
    if data.translate(None, b"0123456789 \t\n" if whole else b"0123456789+-.eE \t\n"):
        return None
    characters = np.frombuffer(data + b"\n" * (not data.endswith(b"\n")), np.uint8)
    blank = characters <= ord(" ")
    begins = ~blank
    begins[1:] &= blank[:-1]
    counts = np.diff(np.cumsum(begins)[characters == ord("\n")], prepend=0)
    if (counts != columns).any():
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy 1 only warns of text it cannot read
            values: npt.NDArray[Any] = np.fromstring(data, kind, sep=" ")
    except (ValueError, DeprecationWarning):
        return None
    too_large = whole and (values == np.iinfo(np.int64).max).any()  # read as the largest
    return None if too_large else values


def _split_lines(text: str, columns: int, where: str, before: int, what: str) -> list[list[str]]:
    rows = [line.split() for line in text.splitlines() if line]
    for number, row in enumerate(rows, before + 1):
        if len(row) != columns:
            raise FacesError(f"{where} {number}: {len(row)} columns, expected {what}")
    return rows


def _numbers(rows: list[list[str]], kind: npt.DTypeLike, folder: Path) -> npt.NDArray[Any]:
    try:
        return np.array(rows, dtype=np.str_).astype(kind)
    except (ValueError, OverflowError) as error:
        raise FacesError(f"{folder / 'meta'}: a number cannot be read: {error}") from error


def _missing(folder: Path, names: list[str]) -> list[str]:
    """The images that are not there; a folder is listed once, for IJB-C has 469,375."""
    present: set[str] = set()
    with suppress(OSError), os.scandir(folder) as entries:
        present.update(entry.name for entry in entries if entry.is_file())
    rest = [name for name in names if name not in present]
    return [name for name in rest if not os.path.isfile(os.path.join(folder, name))]


def _read_aligned(path: Path, points: F64, side: int) -> U8:
    photograph = decode_photograph(read_image(path.parent, path.name), path.name)
    return align(photograph, points, size=side)
