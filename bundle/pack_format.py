"""The file format of packs: an uncompressed tar of which exactly one form exists.

The members are regular files: the manifest, the list of parts, the signatures, then the manifest's
files in the order of their names. Owners, times and modes are fixed, so the same content gives the
same bytes, and a member whose header is not byte for byte the one that `pack` writes is refused. It is
not compressed: compressors of different versions give different bytes, and weights hardly shrink.
"""

import hashlib
import os
import tarfile
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ..errors import BundleError
from ..reading import check_limit, open_file
from .journal import JOURNAL
from .manifest import CHECKPOINTS, MANIFEST, STAGED, Bundle, FileEntry, inside
from .sbom import SBOM
from .signature import SIGNATURES

TEXTS = (MANIFEST, SBOM, SIGNATURES)  # the first members; the last one is missing where unsigned
AGAIN = "get the file again from its maker"

_MAX_UNLISTED = 1_000  # names; a bundle in a home folder would list it all

_BLOCK = 512  # of a tar, bytes
_RECORD = 10_240  # a tar's size is a multiple of this
_PIECE = 1 << 20
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a FIFO",
    tarfile.DIRTYPE: "a folder",
}
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5": "zstd",
    b"\xfd7": "xz",
    b"BZ": "bzip2",
    b"PK": "zip",
}

Write = Callable[[bytes], object]


def member_header(name: str, size: int) -> bytes:
    """The one header that a member of this name and size has, 512 bytes.

    Args:
        name: Path within the bundle.
        size: Of its data, bytes.

    Raises:
        BundleError: A tar cannot hold such a name or size.
    """
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    try:
        return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    except (ValueError, UnicodeError) as error:
        raise BundleError(
            f"a pack cannot hold {name!r} of {size} bytes: {error}",
            "names have at most 100 bytes, and 155 of folders; files have less than 8 GiB",
        ) from error


def filling(size: int) -> bytes:
    """Zeros behind a member's data.

    Args:
        size: Of the data, bytes.
    """
    return bytes(-size % _BLOCK)


def end_of_pack(size: int) -> bytes:
    """Zeros at the end.

    Args:
        size: Of all members with their headers and fillings, bytes.
    """
    return bytes(2 * _BLOCK + -(size + 2 * _BLOCK) % _RECORD)


def check_names(files: Mapping[str, FileEntry]) -> None:
    """Check that a pack can hold the files, and that they are as many files on any file system.

    Args:
        files: The manifest's entries.

    Raises:
        BundleError: A name or size that a tar cannot hold, names that differ in case or in the form
            of Unicode only, or a file that is another one's folder.
    """
    folded = {_folded(name): name for name in (*TEXTS, STAGED)}
    for name, entry in files.items():
        member_header(name, entry.size)
        if name.startswith("_"):  # `documents.encode_json` leaves such keys out
            raise BundleError(f"a pack cannot hold {name!r}: it begins with an underscore")
        key = _folded(name)
        if key in folded:
            raise BundleError(f"{folded[key]!r} and {name!r} are one name where case is ignored")
        folded[key] = name
    for key, name in folded.items():
        for parent in map(str, PurePosixPath(key).parents):
            if parent in folded:
                raise BundleError(f"{folded[parent]!r} is both a file and the folder of {name!r}")


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def unlisted_files(bundle: Bundle) -> Iterator[str]:
    """Files and links in a bundle's folder that are not part of the bundle; no command reads them.

    Args:
        bundle: An open bundle.

    Yields:
        Paths within the bundle; at most a thousand.
    """
    own = {*TEXTS, JOURNAL}
    count = 0
    for folder, folders, files in os.walk(bundle.root):
        place = Path(folder).relative_to(bundle.root)
        if place == Path():
            folders[:] = [name for name in folders if name not in (STAGED, CHECKPOINTS)]
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in sorted((*files, *links)):
            path = (place / name).as_posix()
            if path not in bundle.files and path not in own:
                yield path if path.isprintable() else ascii(path)
                if (count := count + 1) == _MAX_UNLISTED:
                    return


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; a FIFO or a device is never waited for.

    Args:
        path: The file.

    Raises:
        BundleError: There is no such file, it cannot be read, or it is not a regular file.
    """
    try:
        return open_file(path, None, BundleError)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error


class PackReader:
    """Reads a pack from its beginning to its end, and nothing that it should not hold.

    Attributes:
        where: The pack's path, for errors.
    """

    def __init__(self, stream: BinaryIO, where: Path) -> None:
        """Begin to read.

        Args:
            stream: The open file.
            where: Its path.
        """
        self.where = where
        self._stream, self._position = stream, 0
        self._pending: tuple[str, int] | None = None
        self._names: list[str] = []

    def read_text(self, name: str) -> bytes | None:
        """The data of the next member, if it is the one of that name.

        Args:
            name: One of `TEXTS`.

        Raises:
            BundleError: The file is not a pack, or the member is too large.
        """
        if self._peek() != name:
            if name == MANIFEST:
                raise BundleError(f"{self.where} is not a pack: it does not begin with {MANIFEST}")
            return None
        size = self._next()
        check_limit("JSON_MB", size, f"{self.where}: {name}", BundleError)
        return self._data(size)

    def copy(
        self, name: str, entry: FileEntry, files: Mapping[str, FileEntry], write: Write
    ) -> None:
        """Copy the data of the next member, which must be the given file.

        Args:
            name: Path within the bundle.
            entry: What the manifest says about it.
            files: The manifest's entries.
            write: Takes the data in pieces.

        Raises:
            BundleError: Another member comes, or its size or sha256 is not the manifest's.
        """
        if (there := self._peek()) != name:
            raise BundleError(f"{self.where} {self._surprise(there, files, name)}", AGAIN)
        size = self._next()
        if size != entry.size:
            raise BundleError(
                f"{self.where}: {name} has {size} bytes, the manifest says {entry.size}", AGAIN
            )
        digest, left = hashlib.sha256(), size
        while left:
            piece = self._read(min(_PIECE, left))
            digest.update(piece)
            write(piece)
            left -= len(piece)
        self._skip_filling(size)
        if digest.hexdigest() != entry.sha256:
            raise BundleError(
                f"{self.where}: {name} was changed: its sha256 is not the manifest's"
                f" {entry.sha256[:12]}...",
                AGAIN,
            )

    def check_end(self, files: Mapping[str, FileEntry]) -> None:
        """Check that nothing but zeros follows.

        Args:
            files: The manifest's entries.

        Raises:
            BundleError: Something does.
        """
        if (name := self._peek()) is not None:
            raise BundleError(f"{self.where} {self._surprise(name, files, None)}", AGAIN)
        rest = end_of_pack(self._position - _BLOCK)[_BLOCK:]
        if self._stream.read(len(rest) + 1) != rest:
            raise BundleError(f"{self.where} does not end where a pack ends", AGAIN)

    def _surprise(
        self, name: str | None, files: Mapping[str, FileEntry], expected: str | None
    ) -> str:
        if name is None:
            return f"lacks {expected}"
        if name in self._names:
            return f"holds {name!r} twice"
        if name not in files:
            return f"holds {name!r}, which its manifest does not list"
        return f"holds {name!r} where {expected!r} was expected"

    def _peek(self) -> str | None:
        """The name of the next member; None at the end."""
        if self._pending is None:
            block = self._read(_BLOCK)
            if block == bytes(_BLOCK):
                return None
            self._pending = self._parse(block)
        return self._pending[0]

    def _next(self) -> int:
        """Take the member that `_peek` has shown; its size."""
        assert self._pending is not None
        name, size = self._pending
        self._pending = None
        self._names.append(name)
        return size

    def _parse(self, block: bytes) -> tuple[str, int]:
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            kind = _COMPRESSED.get(block[:2]) if self._position == _BLOCK else None
            if kind:
                raise BundleError(
                    f"{self.where} is compressed ({kind}); a pack is not", "decompress it first"
                ) from error
            raise BundleError(f"{self.where} is not a pack, or is damaged: {error}") from error
        if info.type != tarfile.REGTYPE:
            kind = _KINDS.get(info.type, "of a kind that packs do not have")
            raise BundleError(f"{self.where} holds {info.name!r}, which is {kind}", AGAIN)
        if info.name not in TEXTS:
            try:
                inside(info.name)
            except ValueError as error:
                raise BundleError(f"{self.where}: {error}", AGAIN) from error
        if block != member_header(info.name, info.size):
            raise BundleError(
                f"{self.where}: {info.name!r} has a header that `fr-edge pack` does not write"
                " (owner, mode, time or size)",
                AGAIN,
            )
        return info.name, info.size

    def _data(self, size: int) -> bytes:
        data = self._read(size)
        self._skip_filling(size)
        return data

    def _skip_filling(self, size: int) -> None:
        zeros = filling(size)
        if self._read(len(zeros)) != zeros:
            raise BundleError(f"{self.where} holds data between its files", AGAIN)

    def _read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._position += len(data)
        if len(data) != size:
            raise BundleError(
                f"{self.where} is not a pack, or is cut off: it ends after {self._position} bytes",
                AGAIN,
            )
        return data
