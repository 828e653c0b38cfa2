"""Sources of faces: a folder of images, tar shards, RecordIO, a .bin set, or synthetic faces.

A source is an index: keys, identity labels and a function that reads one face. An image is decoded
when it is read.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import overload

import numpy as np

from ..arrays import I64, U8
from ..errors import FacesError
from ..files import real_path
from .archives import index_tars, list_images, read_image
from .bin_sets import BinSet, connected_labels, read_bin
from .contract import ALIGNED_SIZE, resize_face
from .images import SUFFIXES, decode_image
from .recordio import open_records
from .synthetic.render import draw_face

_KINDS = "a folder of aligned images, a .tar of one, a RecordIO folder, or synthetic:IDSxIMAGES"

_MAX_SYNTHETIC = 10_000_000  # faces of one source


@dataclass(frozen=True)
class Faces:
    """Aligned faces with identity labels.

    Attributes:
        where: The source, for messages.
        keys: Name of each image, for a folder its path relative to it.
        labels: Identity of each face, `(N,) int64`, 0..n-1.
        read: Index -> face `(side, side, 3) uint8` RGB; raises FacesError for a file that cannot be
            decoded.
        synthetic: Whether the faces are of no real person, and may be shown.
        labelled: Whether different labels are different people; without it, equal labels are one
            person, and other labels may be that person too.
        encoded: Index -> the image as stored, where there is one.
        side: Of the faces, in pixels.
        read_at: Index and side -> the face at that size, from all the pixels that are stored; None
            where `read` alone gives faces.
    """

    where: str
    keys: Sequence[str]
    labels: I64
    read: Callable[[int], U8]
    synthetic: bool = False
    labelled: bool = True
    encoded: Callable[[int], bytes] | None = None
    side: int = ALIGNED_SIZE
    read_at: Callable[[int, int], U8] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def identities(self) -> int:
        """Number of identities."""
        return int(np.max(self.labels, initial=-1)) + 1

    def batches(self, size: int, picks: Sequence[int] | None = None) -> Iterator[U8]:
        """Faces in batches.

        Args:
            size: Most faces per batch.
            picks: Indices of the faces to read, in this order; None reads all.

        Returns:
            Batches `(<= size, side, side, 3) uint8` RGB.

        Raises:
            FacesError: An image cannot be decoded.
        """
        order = range(len(self)) if picks is None else picks
        for start in range(0, len(order), size):
            yield np.stack([self.read(i) for i in order[start : start + size]])

    def subset(self, picks: Sequence[int] | I64) -> "Faces":
        """Some of these faces as a source of their own; labels keep their values.

        Args:
            picks: Indices of the faces, in the order of the new source.
        """
        order = [int(i) for i in picks]
        encoded, read_at = self.encoded, self.read_at
        return replace(
            self,
            keys=tuple(self.keys[i] for i in order),
            labels=np.asarray(self.labels)[order],
            read=lambda index: self.read(order[index]),
            encoded=None if encoded is None else lambda index: encoded(order[index]),
            read_at=None if read_at is None else lambda index, side: read_at(order[index], side),
        )

    def sized(self, side: int) -> "Faces":
        """The same faces at another size, read from all the pixels that are stored.

        Args:
            side: Of the faces, in pixels: a network's `InputSpec.crop_side`.
        """
        if side == self.side:
            return self
        if (read_at := self.read_at) is not None:
            return replace(self, read=lambda index: read_at(index, side), side=side)
        return replace(self, read=lambda index: resize_face(self.read(index), side), side=side)

    def changed(self, read: Callable[[int], U8]) -> "Faces":
        """The same faces, whose pixels another function gives.

        Args:
            read: As the attribute.
        """
        return replace(self, read=read, read_at=None)

    def cached(self, picks: Sequence[int] | None = None) -> "Faces":
        """The same faces with the same indices, each decoded at most once.

        A face is kept in memory when it is first read, 37,632 bytes each: 512 faces are 19 MB. A
        face that cannot be decoded raises FacesError every time.

        Args:
            picks: Indices of the faces that may be kept; the others are decoded every time. None
                keeps all of them: only for sources whose size is bounded.
        """
        allowed = None if picks is None else {int(i) for i in picks}
        pixels: dict[int, U8] = {}

        def read(index: int) -> U8:
            if index in pixels:
                return pixels[index]
            face = self.read(index)
            if allowed is None or index in allowed:
                face.setflags(write=False)  # shared by all readers
                pixels[index] = face
            return face

        return self.changed(read)


def portable_name(where: str) -> str:
    """The name of a source of faces in what leaves this machine, without the folders above it.

    Args:
        where: A source as the user named it, or a file of any kind.
    """
    return where if where.startswith("synthetic:") else real_path(where).name


def open_faces(source: str | Path) -> Faces:
    """Index a source of faces.

    Args:
        source: `synthetic:IDSxIMAGES`; a `.tar`, `.rec` or `.bin` file; or a folder: with a
            `train.rec` it is RecordIO, with images at any depth a folder of images, with only
            `.tar` files shards, whose faces' identities are folders or webdataset's `.cls` members.

    Raises:
        FacesError: The source does not exist or holds no image.
    """
    if str(source).startswith("synthetic:"):
        return synthetic_faces(str(source))
    path = Path(source)
    if os.path.isfile(path):  # unlike Path.is_file, never raises
        return _file_faces(path)
    if not os.path.isdir(path):
        raise FacesError(f"there are no faces at {path}", f"give {_KINDS}")
    if (path / "train.rec").is_file():
        return _record_faces(path / "train.rec")
    if keys := list_images(path):
        return folder_faces(path, keys)
    if shards := sorted(path.glob("*.tar")):
        return _tar_faces(shards)
    raise FacesError(f"{path} holds no images ({', '.join(SUFFIXES)})", f"give {_KINDS}")


def synthetic_faces(text: str) -> Faces:
    """Faces of people who do not exist.

    Args:
        text: `synthetic:IDSxIMAGES`, or `synthetic:IDSxIMAGES@SEED` for other people.

    Raises:
        FacesError: The text has another form, or asks for too many faces.
    """
    match = re.fullmatch(r"synthetic:(\d{1,6})x(\d{1,6})(?:@(\d{1,9}))?", text, re.ASCII)
    ids, images = (int(match[1]), int(match[2])) if match else (0, 0)
    if not match or not 0 < ids * images <= _MAX_SYNTHETIC:
        raise FacesError(
            f"{text[:80]!r} is not synthetic:IDSxIMAGES of at most {_MAX_SYNTHETIC:,} faces",
            "for example synthetic:100x10",
        )
    seed = int(match[3] or 0)
    return Faces(
        text,
        tuple(f"{i:05d}/{j:03d}" for i in range(ids) for j in range(images)),
        np.repeat(np.arange(ids), images),
        lambda index: draw_face(index // images, index % images, seed),
        synthetic=True,
    )


def folder_faces(root: Path, keys: Sequence[str]) -> Faces:
    """Images of a folder; a face's identity is the folder it lies in.

    Args:
        root: The folder.
        keys: Paths of the images relative to it.
    """
    return _encoded_faces(
        str(root), keys, _folder_labels(keys), lambda i: read_image(root, keys[i])
    )


def bin_faces(path: Path, stored: BinSet) -> Faces:
    """The images of a .bin set; only its genuine pairs tell which are of one person.

    Args:
        path: The file, for messages.
        stored: Its content.
    """
    labels = connected_labels(
        len(stored.images), stored.first[stored.same], stored.second[stored.same]
    )
    keys = tuple(f"{index:05d}" for index in range(len(stored.images)))
    return _encoded_faces(str(path), keys, labels, stored.images.__getitem__, labelled=False)


def spread_picks(faces: Faces, limit: int) -> list[int]:
    """Choose faces of many people before many faces of one: identities are taken in turn.

    Args:
        faces: A source of faces.
        limit: Most faces to choose.

    Returns:
        Indices.
    """
    by_person = np.argsort(faces.labels, kind="stable")
    counts = np.bincount(faces.labels)
    turn = np.empty(len(faces), np.int64)
    turn[by_person] = np.arange(len(faces)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = np.argsort(turn, kind="stable")
    if len(order) <= limit:
        return [int(i) for i in order]
    # The last round is cut; identities are taken at even steps, not the alphabet's first ones.
    last = turn[order[max(limit - 1, 0)]]
    whole, cut = order[turn[order] < last], order[turn[order] == last]
    room = limit - len(whole)
    return [int(i) for i in (*whole, *cut[np.arange(room) * len(cut) // max(room, 1)])]


def readable(faces: Faces, picks: Sequence[int], limit: int) -> Iterator[tuple[int, U8]]:
    """Read faces, leaving out a few that cannot be decoded.

    Args:
        faces: A source of faces.
        picks: Indices of the faces.
        limit: How many may be left out.

    Returns:
        Index and face `(side, side, 3) uint8` of each that can be decoded.

    Raises:
        FacesError: More than `limit` cannot be decoded.
    """
    left = limit
    for index in picks:
        try:
            face = faces.read(index)
        except FacesError as error:
            if not left:
                raise FacesError(
                    f"{error.message}; {limit} others before it were left out too", error.hint
                ) from error
            left -= 1
            continue
        yield index, face


def _encoded_faces(
    where: str,
    keys: Sequence[str],
    labels: I64,
    encoded: Callable[[int], bytes],
    labelled: bool = True,
) -> Faces:
    def read(index: int, side: int = ALIGNED_SIZE) -> U8:
        return decode_image(encoded(index), f"{where}/{keys[index]}", side)

    return Faces(where, keys, labels, read, labelled=labelled, encoded=encoded, read_at=read)


def _folder_labels(keys: Sequence[str]) -> I64:
    """`(N,) int64`: the folders of these paths, numbered in sorted order."""
    folders = [PurePosixPath(key).parent.as_posix() for key in keys]
    return np.unique(np.array(folders, object), return_inverse=True)[1].astype(np.int64)


def _file_faces(path: Path) -> Faces:
    if path.suffix == ".tar":
        return _tar_faces([path])
    if path.suffix == ".rec":
        return _record_faces(path)
    if path.suffix == ".bin":
        return bin_faces(path, read_bin(path))
    raise FacesError(f"{path} is not a file of faces", f"give {_KINDS}")


def _tar_faces(shards: list[Path]) -> Faces:
    where = str(shards[0] if len(shards) == 1 else shards[0].parent / "*.tar")
    images = index_tars(shards)
    if not images.keys:
        raise FacesError(f"{where} holds no images", f"give {_KINDS}")
    if images.classes is None:
        labels = _folder_labels(images.keys)
    else:
        labels = np.unique(images.classes, return_inverse=True)[1].astype(np.int64)
    return _encoded_faces(where, images.keys, labels, images.image)


def _record_faces(path: Path) -> Faces:
    """The records by person: pairs are drawn as from the same records in a sorted file."""
    records = open_records(path)
    order = np.argsort(records.labels, kind="stable")
    steps = np.diff(records.labels[order])
    labels = np.concatenate([[0], np.cumsum(steps > 0)]).astype(np.int64)
    keys = _RecordKeys(records.keys[order])
    return _encoded_faces(str(path), keys, labels, lambda index: records.image(int(order[index])))


class _RecordKeys(Sequence[str]):
    """Keys of records as text, made one at a time: there may be millions."""

    def __init__(self, numbers: I64) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "_RecordKeys": ...
    def __getitem__(self, index: int | slice) -> "str | _RecordKeys":
        if isinstance(index, slice):
            return _RecordKeys(self.numbers[index])
        return str(self.numbers[index])
