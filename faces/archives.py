"""Encoded images in folders and tar files: their names and their bytes."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import NoReturn, overload

import numpy as np

from ..arrays import I64
from ..errors import FacesError
from ..reading import check_limit, read_file
from .images import SUFFIXES, KeptFile

logger = logging.getLogger(__name__)

_CLASS = ".cls"  # webdataset's: beside `0001.jpg` a member `0001.cls` with the number of its class

_MAX_CLASS_BYTES = 20  # digits of an int64, and the end of a line

_BLOCK = 512  # bytes of a tar's header, and the unit of what follows it

_WINDOW = 8 * _BLOCK  # bytes read at once of headers: often a class and the next image's header

_MAX_EXTENSION = 1 << 20  # bytes of a header that extends the next one: a long name, times

_OPEN_SHARDS = 256  # descriptors kept, of the 1,024 that a process usually may have

_PIECE = 1 << 20  # bytes read at once of the zeros at the end

_FILES, _SPARSE, _WITHOUT_DATA = b"\x0007", b"S", b"123456"  # kinds of members

_EXTENSIONS = b"LKxXg"  # kinds of headers that extend the next one; GNU's, and POSIX's

_NOT_SPARSE = (
    "a file is stored with its holes left out, which is not read: pack it without --sparse"
)


class Names(Sequence[str]):
    """Names in one block of bytes: a worker that is forked copies nothing when it reads one.

    Args:
        names: Text that can be encoded.
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode() for name in names]
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

    @classmethod
    def joined(cls, parts: Iterable["Names"]) -> "Names":
        """The names of all parts, one after the other.

        Args:
            parts: Some names each.
        """
        names, parts = cls(()), list(parts)
        names._bytes = b"".join(part._bytes for part in parts)
        lengths = [np.diff(part._ends) for part in parts]
        names._ends = np.cumsum(np.concatenate([[0], *lengths]))
        return names

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(len(self))[index])
        place = range(len(self))[index]
        return self._bytes[self._ends[place] : self._ends[place + 1]].decode()


@dataclass(frozen=True)
class TarImages:
    """N images in tar files.

    Attributes:
        shards: The files.
        keys: Name of each image, sorted.
        shard: Which of the files holds it, `(N,) int64`.
        offsets: Of its first byte there, `(N,) int64`.
        sizes: In bytes, `(N,) int64`.
        classes: The class that the files give for it, `(N,) int64`; None where they give none.
        opened: Path -> the open file; a few hundred stay open.
    """

    shards: tuple[Path, ...]
    keys: Names
    shard: I64
    offsets: I64
    sizes: I64
    classes: I64 | None
    opened: Callable[[Path], KeptFile]

    def image(self, index: int) -> bytes:
        """The encoded image; raises FacesError where its file cannot be read."""
        shard, size = self.shards[self.shard[index]], int(self.sizes[index])
        try:
            check_limit("IMAGE_MB", size, f"{shard}/{self.keys[index]}", FacesError)
            return self.opened(shard).read(int(self.offsets[index]), size)
        except OSError as error:
            raise FacesError(
                f"{shard}/{self.keys[index]} cannot be read: {error.strerror}"
            ) from error


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


def index_tars(shards: list[Path]) -> TarImages:
    """Find the images in uncompressed tar files, and their classes where these are webdataset's.

    Args:
        shards: The files, at least one.

    Returns:
        The images, sorted by name; the last of several that have one name in one file, as tar does.

    Raises:
        FacesError: A file is not a tar file, is damaged or cut short, two files hold the same name, a
            class is not a number, or some images have no class.
    """
    parts = [_images(shard) for shard in shards]
    keys = Names.joined(names for names, _ in parts)
    shard = np.repeat(np.arange(len(parts)), [len(names) for names, _ in parts])
    offsets, sizes, classes = np.concatenate([places for _, places in parts], axis=1)
    filled = [names for names, _ in parts if names]
    if any(b[0] <= a[-1] for a, b in pairwise(filled)):  # each part is sorted
        order = sorted(range(len(keys)), key=keys.__getitem__)
        for a, b in pairwise(order):
            if keys[a] == keys[b]:
                raise FacesError(
                    f"{shards[shard[b]].name} and {shards[shard[a]].name} both hold {keys[a]}",
                    "names must be unique: keep the identity's folder in them",
                )
        keys, shard = Names(keys[i] for i in order), shard[order]
        offsets, sizes, classes = offsets[order], sizes[order], classes[order]
    without = np.flatnonzero(classes < 0)
    if 0 < len(without) < len(keys):
        raise FacesError(
            f"{len(without)} of {len(keys)} images have no class, for example {keys[without[0]]}",
            f"a webdataset shard needs a {_CLASS} beside each image",
        )
    opened = lru_cache(_OPEN_SHARDS)(KeptFile)
    given = None if len(without) else classes
    return TarImages(tuple(shards), keys, shard, offsets, sizes, given, opened)


def _images(shard: Path) -> tuple[Names, I64]:
    """The images of one file, sorted, and `(3, n) int64`: their offsets, sizes and classes or -1."""
    images: dict[str, tuple[int, int]] = {}
    classes: dict[str, int] = {}
    try:
        file = KeptFile(shard)
        for name, offset, size in _members(file):
            if _is_image(name.rpartition("/")[2]):
                images[name] = (offset, size)
            elif name.endswith(_CLASS):
                data = file.read(offset, min(size, _MAX_CLASS_BYTES + 1))
                classes[_sample(name)] = _class_number(data, f"{shard}/{name}")
    except OSError as error:
        raise FacesError(f"{shard} cannot be read: {error.strerror}") from error
    keys = sorted(images)
    _check_text(shard.parent, keys)
    rows = [(*images[key], classes.get(_sample(key), -1)) for key in keys]
    return Names(keys), np.array(rows, np.int64).reshape(-1, 3).T


def _members(file: KeptFile) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each regular file in a tar.

    The standard library's reader takes a damaged header for the end of the file; here the file must
    end as every writer ends it, with zeros. The format is POSIX's (pax) and GNU tar's.
    """
    offset = start = 0
    window, extended = b"", dict[bytes, bytes]()
    while True:
        if not start <= offset <= start + len(window) - _BLOCK:
            start = offset
            window = file.read(start, min(_WINDOW, file.size - start))
        block = window[offset - start : offset - start + _BLOCK]
        try:
            if not block.strip(b"\0"):
                _check_end(file, offset, extended)
                return
            kind, name, size = _header(block)
            extends = kind in _EXTENSIONS
            if not extends:
                name, size = extended.get(b"path", name), int(extended.get(b"size", size))
            data = offset + _BLOCK
            after = data if kind in _WITHOUT_DATA else data + size + -size % _BLOCK
            if size < 0 or after > file.size:
                raise ValueError(f"{size} bytes are announced, {file.size - data} follow")
            if extends and size > _MAX_EXTENSION:
                raise ValueError(f"a name or what is beside it has {size} bytes")
            extended = _extension(kind, file.read(data, size)) | extended if extends else {}
        except ValueError as error:
            raise _damaged(file.path, offset, str(error)) from error
        if kind in _FILES:
            yield _plain(name.decode("utf-8", "surrogateescape")), data, size
        offset = after


def _header(block: bytes) -> tuple[bytes, bytes, int]:
    """Kind, name and size of a member; raises ValueError where no header is."""
    if len(block) < _BLOCK or _number(block[148:156]) not in _checksums(block):
        raise ValueError("no header of a member is there, or its checksum is wrong")
    kind, name = block[156:157], _text(block[:100])
    if kind == b"\0" and name.endswith(b"/"):  # before POSIX
        kind = b"5"
    if block[257:263] == b"ustar\0" and block[345]:
        name = _text(block[345:500]) + b"/" + name
    if kind == _SPARSE:
        raise ValueError(_NOT_SPARSE)
    return kind, name, _number(block[124:136])


def _checksums(block: bytes) -> tuple[int, ...]:
    """Its own field counts as spaces. Some old writers summed signed bytes."""
    total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if block.isascii():
        return (total,)
    signed = np.frombuffer(block[:148] + block[156:], np.int8)
    return (total, int(signed.sum()) + 8 * ord(" "))


def _extension(kind: bytes, data: bytes) -> dict[bytes, bytes]:
    """What a header gives the next member: `path` and `size`, if it does."""
    if kind == b"L":
        return {b"path": _text(data)}
    values: dict[bytes, bytes] = {}
    at = 0 if kind in b"xXg" else len(data)
    while at < len(data):  # records `length key=value\n`
        digits = data[at : at + 20].partition(b" ")[0]
        end = at + (int(digits) if digits.isdigit() else 0)
        key, equals, value = data[at + len(digits) + 1 : end].partition(b"=")
        if not equals or end > len(data) or not value.endswith(b"\n"):
            raise ValueError("a record of a pax header is damaged")
        values[key] = value[:-1]
        at = end
    if any(key.startswith(b"GNU.sparse") for key in values):
        raise ValueError(_NOT_SPARSE)
    wanted = {key: value for key, value in values.items() if key in (b"path", b"size")}
    if kind == b"g" and wanted:
        raise ValueError("one name or size is given for all members")
    return wanted


def _number(field: bytes) -> int:
    """Octal digits, or a first byte of 128 or 255 and the number itself; -1 for all else."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") - (field[0] == 0xFF) * (1 << 8 * len(field) - 8)
    try:
        return int(_text(field).strip() or b"0", 8)
    except ValueError:
        return -1


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _plain(name: str) -> str:
    odd = "//" in name or "./" in name or name.endswith(("/", "/."))
    return PurePosixPath(name).as_posix() if odd else name


def _check_end(file: KeptFile, offset: int, extended: dict[bytes, bytes]) -> None:
    """Zeros end a tar: two blocks, of which one is enough here, and what a writer pads."""
    if file.size - offset < _BLOCK or extended:
        raise ValueError("the file ends here without the zeros that end a tar: it is cut short")
    at = offset
    while at < file.size:
        data = file.read(at, min(_PIECE, file.size - at))
        if rest := data.lstrip(b"\0"):
            place = at + len(data) - len(rest)
            raise ValueError(f"zeros end a tar here, and yet it goes on at byte {place}")
        at += len(data)


def _damaged(shard: Path, offset: int, what: str) -> FacesError:
    if not offset:
        return FacesError(
            f"{shard} is not a readable tar file: {what}", "unpack a compressed one first"
        )
    return FacesError(
        f"{shard} cannot be read at byte {offset}: {what}",
        "copy or write it again, whole; tars that `cat` joined have zeros between them: unpack them"
        " with `tar --ignore-zeros`, or join them with `tar -A`",
    )


def _sample(name: str) -> str:
    """What the members of one sample of webdataset share: the path up to the name's first dot."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.split(".", 1)[0]


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
