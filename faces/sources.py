"""Where faces come from: a folder of images, tar shards, or drawn ones (`synthetic:IDSxIMAGES`).

A source is an index: keys, identity labels and a function that reads one face. Nothing is decoded
before it is asked for.
"""

import io
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from ..errors import FacesError
from .contract import FRAME
from .synthetic import draw_face

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclass(frozen=True)
class Faces:
    """Aligned faces with identity labels.

    `keys[i]` is the image's path relative to the source and `labels[i]` its identity, 0..n-1 in
    sorted order; `read(i)` returns `(112, 112, 3) uint8` RGB and raises FacesError for a file that
    cannot be decoded. `drawn` faces are nobody's and may be shown.
    """

    where: str
    keys: tuple[str, ...]
    labels: tuple[int, ...]
    read: Callable[[int], npt.NDArray[np.uint8]]
    drawn: bool = False

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def identities(self) -> int:
        return len(set(self.labels))

    def batches(
        self, size: int, picks: Sequence[int] | None = None
    ) -> Iterator[npt.NDArray[np.uint8]]:
        """Faces in order, `(<= size, 112, 112, 3) uint8` at a time; `picks` selects and orders."""
        order = range(len(self)) if picks is None else picks
        for start in range(0, len(order), size):
            yield np.stack([self.read(i) for i in order[start : start + size]])


def open_faces(source: str | Path) -> Faces:
    """Index a source of faces; raises FacesError when it is missing or holds no image."""
    text = str(source)
    if text.startswith("synthetic:"):
        return drawn_faces(text)
    path = Path(source)
    if path.is_file() and path.suffix == ".tar":
        return _tar_faces([path])
    if not path.is_dir():
        raise FacesError(
            f"there are no faces at {path}",
            "give a folder of aligned images, a .tar of one, or synthetic:IDSxIMAGES",
        )
    shards = sorted(path.glob("*.tar"))
    return _tar_faces(shards) if shards else _folder_faces(path)


def drawn_faces(text: str) -> Faces:
    """`synthetic:IDSxIMAGES`, or `synthetic:IDSxIMAGES@SEED` for other people."""
    match = re.fullmatch(r"synthetic:(\d+)x(\d+)(?:@(\d+))?", text)
    ids, images = (int(match[1]), int(match[2])) if match else (0, 0)
    if not match or ids < 1 or images < 1:
        raise FacesError(f"{text!r} is not synthetic:IDSxIMAGES", "for example synthetic:100x10")
    seed = int(match[3] or 0)
    return Faces(
        text,
        tuple(f"{i:05d}/{j:03d}" for i in range(ids) for j in range(images)),
        tuple(i for i in range(ids) for _ in range(images)),
        lambda index: draw_face(index // images, index % images, seed),
        drawn=True,
    )


def spread(faces: Faces, limit: int) -> list[int]:
    """At most `limit` indices that take identities in turn: many people before many images."""
    seen: dict[int, int] = {}
    rank = []
    for index, label in enumerate(faces.labels):
        seen[label] = seen.get(label, -1) + 1
        rank.append((seen[label], index))
    # Within one round, identities are taken at even steps, not the alphabet's first ones.
    chosen: list[int] = []
    for turn in range(max(seen.values(), default=-1) + 1):
        members = [index for r, index in rank if r == turn]
        room = limit - len(chosen)
        if len(members) > room:
            members = [members[i * len(members) // room] for i in range(room)]
        chosen.extend(members)
        if len(chosen) >= limit:
            break
    return chosen


def decode(data: bytes, name: str) -> npt.NDArray[np.uint8]:
    """An encoded image as an aligned face `(112, 112, 3) uint8` RGB; other sizes are scaled."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        what = "no image" if isinstance(error, UnidentifiedImageError) else f"damaged ({error})"
        raise FacesError(f"{name} is {what}", "remove or replace the file") from error
    if image.size != (FRAME, FRAME):
        image = image.resize((FRAME, FRAME), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _folder_faces(root: Path) -> Faces:
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise FacesError(
            f"{root} holds no images ({', '.join(SUFFIXES)})",
            "one folder per identity, aligned faces",
        )
    keys = tuple(p.relative_to(root).as_posix() for p in paths)

    def read(index: int) -> npt.NDArray[np.uint8]:
        try:
            data = paths[index].read_bytes()
        except OSError as error:
            raise FacesError(f"{keys[index]} cannot be read: {error.strerror}") from error
        return decode(data, keys[index])

    return Faces(str(root), keys, _labels(keys), read)


def _tar_faces(shards: list[Path]) -> Faces:
    """Uncompressed tar files, indexed once and then read at random."""
    places: dict[str, tuple[Path, int, int]] = {}
    for shard in shards:
        try:
            with tarfile.open(shard, "r:") as archive:
                for member in archive:
                    if member.isfile() and member.name.lower().endswith(SUFFIXES):
                        places[member.name] = (shard, member.offset_data, member.size)
        except (tarfile.TarError, OSError) as error:
            raise FacesError(f"{shard} is not a readable tar file: {error}") from error
    if not places:
        raise FacesError(f"{', '.join(s.name for s in shards)} holds no images")
    keys = tuple(sorted(places))

    def read(index: int) -> npt.NDArray[np.uint8]:
        shard, offset, size = places[keys[index]]
        with shard.open("rb") as stream:
            stream.seek(offset)
            return decode(stream.read(size), keys[index])

    return Faces(", ".join(str(s) for s in shards), keys, _labels(keys), read)


def _labels(keys: Sequence[str]) -> tuple[int, ...]:
    folders = [PurePosixPath(key).parent.as_posix() for key in keys]
    number = {folder: index for index, folder in enumerate(sorted(set(folders)))}
    return tuple(number[folder] for folder in folders)
