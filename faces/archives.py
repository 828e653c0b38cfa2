"""Encoded images in folders and tar files: their names, and their bytes. Decodes nothing."""

import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NoReturn

from ..errors import FacesError
from .images import SUFFIXES

TarMember = tuple[Path, int, int]
"""A tar file, an offset and a size in bytes."""


def list_images(root: Path) -> list[str]:
    """Sorted paths of the images below `root`, relative to it. Hidden files are left out.

    Links are followed, but every folder is entered once, so a loop of them ends. Raises FacesError
    for a folder that cannot be listed or a name that is no text.
    """
    keys: list[str] = []
    seen: set[tuple[int, int]] = set()
    for folder, inner, files in os.walk(root, onerror=_refuse, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        relative = Path(folder).relative_to(root)
        keys += [(relative / name).as_posix() for name in files if _is_image(name)]
    _check_text(root, keys)
    return sorted(keys)


def read_image(root: Path, key: str) -> bytes:
    """The file's bytes; raises FacesError when it cannot be read."""
    try:
        return (root / key).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise FacesError(f"{root / key} cannot be read: {reason}") from error


def index_tars(shards: list[Path]) -> dict[str, TarMember]:
    """Name -> place of the images in uncompressed tar files, sorted by name.

    Raises FacesError for a file that is no tar, is cut short, or repeats a name of another shard.
    """
    places: dict[str, TarMember] = {}
    for shard in shards:
        for key, place in _members(shard):
            if key in places and places[key][0] != shard:
                raise FacesError(
                    f"{shard.name} and {places[key][0].name} both hold {key}",
                    "one file, one name: keep the identity's folder in it",
                )
            places[key] = place
    _check_text(shards[0].parent, places)
    return dict(sorted(places.items()))


def read_member(place: TarMember, key: str) -> bytes:
    """A member's bytes; raises FacesError when the tar file cannot be read any more."""
    shard, offset, size = place
    try:
        with shard.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)
    except OSError as error:
        raise FacesError(f"{shard}/{key} cannot be read: {error.strerror}") from error


def _members(shard: Path) -> Iterator[tuple[str, TarMember]]:
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if member.isfile() and _is_image(name.name):
                    yield name.as_posix(), (shard, member.offset_data, member.size)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise FacesError(
            f"{shard} is no readable tar file: {error}", "a compressed one must be unpacked first"
        ) from error


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _check_text(where: Path, keys: Iterable[str]) -> None:
    for key in keys:
        try:
            key.encode()
        except UnicodeEncodeError as error:
            raise FacesError(
                f"{where} has a name that is no UTF-8: {key!a}", "rename it"
            ) from error


def _refuse(error: OSError) -> NoReturn:
    raise FacesError(f"{error.filename} cannot be listed: {error.strerror}") from error
