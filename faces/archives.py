"""Encoded images in folders and tar files: their names and their bytes."""

import logging
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NoReturn

from ..errors import FacesError
from ..reading import check_limit, open_file, read_file
from .images import SUFFIXES

logger = logging.getLogger(__name__)

TarMember = tuple[Path, int, int]  # tar file, offset and size in bytes


def list_images(root: Path) -> list[str]:
    """Images of a folder at any depth. Hidden files are left out.

    Links are followed, but every folder is entered once, so a loop of links ends. Files of other
    kinds are counted by their suffix in a note; their names may be people's and are not shown.

    Args:
        root: The folder.

    Returns:
        Paths relative to it, sorted.

    Raises:
        FacesError: A folder cannot be listed, or a name is not UTF-8.
    """
    keys: list[str] = []
    others: Counter[str] = Counter()
    entered: set[tuple[int, int]] = set()
    for folder, inner, files in os.walk(root, onerror=_refuse, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            inner.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        relative = Path(folder).relative_to(root)
        keys += [(relative / name).as_posix() for name in files if _is_image(name)]
        others.update(
            Path(name).suffix.lower() or "no suffix"
            for name in files
            if not _is_image(name) and not name.startswith(".")
        )
    _check_text(root, keys)
    if keys and others:
        kinds = ", ".join(f"{count} of {kind}" for kind, count in sorted(others.items())[:8])
        logger.info("%s: files that are not read as images: %s", root, kinds)
    return sorted(keys)


def read_image(root: Path, key: str) -> bytes:
    """The bytes of one image.

    Args:
        root: The folder.
        key: Path relative to it.

    Raises:
        FacesError: The file cannot be read.
    """
    try:
        return read_file(root / key, "IMAGE_MB", FacesError)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise FacesError(f"{root / key} cannot be read: {reason}") from error


def index_tars(shards: list[Path]) -> dict[str, TarMember]:
    """Find the images in uncompressed tar files.

    Args:
        shards: The files, at least one.

    Returns:
        Name -> member, sorted by name.

    Raises:
        FacesError: A file is not a tar file or is cut short, or two files hold the same name.
    """
    members: dict[str, TarMember] = {}
    for shard in shards:
        for key, member in _members(shard):
            if key in members and members[key][0] != shard:
                raise FacesError(
                    f"{shard.name} and {members[key][0].name} both hold {key}",
                    "names must be unique: keep the identity's folder in them",
                )
            members[key] = member
    _check_text(shards[0].parent, members)
    return dict(sorted(members.items()))


def read_member(member: TarMember, key: str) -> bytes:
    """The bytes of one image in a tar file.

    Args:
        member: Where it lies.
        key: Its name, for the error.

    Raises:
        FacesError: The tar file cannot be read.
    """
    shard, offset, size = member
    try:
        check_limit("IMAGE_MB", size, f"{shard}/{key}", FacesError)
        with open_file(shard, None, FacesError) as stream:
            stream.seek(offset)
            return stream.read(size)
    except OSError as error:
        raise FacesError(f"{shard}/{key} cannot be read: {error.strerror}") from error


def _members(shard: Path) -> Iterator[tuple[str, TarMember]]:
    try:
        with (
            open_file(shard, None, FacesError) as stream,
            tarfile.open(fileobj=stream, mode="r:") as archive,
        ):
            for member in archive:
                if member.size < 0:  # tarfile would read the same header again and again
                    raise ValueError(f"{member.name!r} has a size of {member.size} bytes")
                name = PurePosixPath(member.name)
                if member.isfile() and _is_image(name.name):
                    yield name.as_posix(), (shard, member.offset_data, member.size)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise FacesError(
            f"{shard} is not a readable tar file: {error}", "unpack a compressed one first"
        ) from error


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _check_text(where: Path, keys: Iterable[str]) -> None:
    for key in keys:
        try:
            key.encode()
        except UnicodeEncodeError as error:
            raise FacesError(
                f"{where} has a name that is not UTF-8: {key!a}", "rename it"
            ) from error


def _refuse(error: OSError) -> NoReturn:
    raise FacesError(f"{error.filename} cannot be listed: {error.strerror}") from error
