"""Encoded images in folders and tar files: their names and their bytes."""

import logging
import os
import tarfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple, NoReturn

from ..errors import FacesError
from ..reading import check_limit, open_file, read_file
from .images import SUFFIXES

logger = logging.getLogger(__name__)

_CLASS = ".cls"  # webdataset's: beside `0001.jpg` a member `0001.cls` with the number of its class

_MAX_CLASS_BYTES = 20  # digits of an int64, and the end of a line


class TarMember(NamedTuple):
    """An image in a tar file.

    Attributes:
        shard: The file.
        offset: Of its first byte.
        size: In bytes.
        identity: The class that the file gives for it, if it gives classes.
    """

    shard: Path
    offset: int
    size: int
    identity: int | None = None


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
    """Find the images in uncompressed tar files, and their classes where these are webdataset's.

    Args:
        shards: The files, at least one.

    Returns:
        Name -> member, sorted by name; all of them have an identity, or none has.

    Raises:
        FacesError: A file is not a tar file or is cut short, two files hold the same name, a class is
            not a number, or some images have no class.
    """
    members: dict[str, TarMember] = {}
    for shard in shards:
        for key, member in _members(shard):
            if key in members and members[key].shard != shard:
                raise FacesError(
                    f"{shard.name} and {members[key].shard.name} both hold {key}",
                    "names must be unique: keep the identity's folder in them",
                )
            members[key] = member
    _check_text(shards[0].parent, members)
    without = [key for key, member in members.items() if member.identity is None]
    if without and len(without) < len(members):
        raise FacesError(
            f"{len(without)} of {len(members)} images have no class, for example {min(without)}",
            f"a webdataset shard needs a {_CLASS} beside each image",
        )
    return dict(sorted(members.items()))


def read_member(member: TarMember, key: str) -> bytes:
    """The bytes of one image in a tar file.

    Args:
        member: Where it lies.
        key: Its name, for the error.

    Raises:
        FacesError: The tar file cannot be read.
    """
    try:
        check_limit("IMAGE_MB", member.size, f"{member.shard}/{key}", FacesError)
        with open_file(member.shard, None, FacesError) as stream:
            stream.seek(member.offset)
            return stream.read(member.size)
    except OSError as error:
        raise FacesError(f"{member.shard}/{key} cannot be read: {error.strerror}") from error


def _members(shard: Path) -> list[tuple[str, TarMember]]:
    """The images of one file."""
    images: list[tuple[str, TarMember]] = []
    classes: dict[str, int] = {}
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
                    place = TarMember(shard, member.offset_data, member.size)
                    images.append((name.as_posix(), place))
                elif member.isfile() and name.suffix == _CLASS:
                    text = archive.extractfile(member)
                    data = text.read(_MAX_CLASS_BYTES + 1) if text else b""
                    classes[_sample(name)] = _class_number(data, f"{shard}/{name}")
    except (tarfile.TarError, OSError, ValueError) as error:
        raise FacesError(
            f"{shard} is not a readable tar file: {error}", "unpack a compressed one first"
        ) from error
    if not classes:
        return images
    return [
        (key, member._replace(identity=classes.get(_sample(PurePosixPath(key)))))
        for key, member in images
    ]


def _sample(name: PurePosixPath) -> str:
    """What the members of one sample of webdataset share: the path up to the name's first dot."""
    return (name.parent / name.name.split(".")[0]).as_posix()


def _class_number(data: bytes, name: str) -> int:
    digits = data.strip()
    if not digits.isdigit() or len(data) > _MAX_CLASS_BYTES or int(digits) >= 2**63:
        raise FacesError(
            f"{name} holds {data[:_MAX_CLASS_BYTES]!r}, expected the number of a class",
            "webdataset writes it as digits alone",
        )
    return int(digits)


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
