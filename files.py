"""Files on disk: their identity, sha256 and atomic writes."""

import ctypes
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import UsageError
from .reading import open_file

_AT_FDCWD, _EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h: RENAME_EXCHANGE


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal.

    Args:
        path: The file; it is read in pieces of 1 MiB.

    Raises:
        DataError: It is not a regular file.
    """
    with open_file(path) as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def real_path(path: str | Path) -> Path:
    """A path without links in it, absolute; `Path.resolve` raises for a link to itself.

    Args:
        path: A file or folder, which may be missing.
    """
    return Path(os.path.realpath(path))


def is_own_file(path: Path) -> bool:
    """Whether writing into a file changes no other: it is regular, no link, and has one name.

    Args:
        path: A file, which may be missing.
    """
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1


def write_atomic(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write a file so that readers see the old content or the new: temporary file, fsync, rename.

    Args:
        path: The file to write or replace, in a folder that exists.
        data: Its content.
        private: Whether only this user may read it (mode 0600): faces, embeddings, people's names.
    """
    with replace_atomic(path, private=private) as stream:
        stream.write(data)


@contextmanager
def replace_atomic(
    path: Path, *, private: bool = False, durable: bool = True
) -> Iterator[BinaryIO]:
    """A stream whose content takes a file's place at the end; an error leaves the file as it was.

    A killed process leaves the temporary file, which the next write of the same file uses up.

    Args:
        path: The file to write or replace, in a folder that exists.
        private: As `write_atomic`.
        durable: Whether to wait until it is on the disk; without, a power failure may leave the file
            empty.

    Yields:
        A binary stream, open for writing.

    Raises:
        UsageError: A folder lies at the file's place.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder, expected a file", "name another file, or remove it")
    temporary = path.with_name(f".{path.name}.new")
    handle = _open_locked(temporary, 0o600 if private else 0o666)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
            temporary.replace(path)  # while it is locked: it is still ours
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def _open_locked(path: Path, mode: int) -> int:
    """An empty file that this process alone writes; waits for another one that writes it."""
    import fcntl  # not on Windows, where the command line refuses to start

    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(path, flags, mode)
        try:
            with suppress(OSError):  # file systems without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            status = os.fstat(handle)
            with suppress(FileNotFoundError):
                if status.st_nlink == 1 and os.path.samestat(status, os.lstat(path)):
                    os.ftruncate(handle, 0)
                    if mode == 0o600:
                        os.fchmod(handle, mode)
                    return handle
            if status.st_nlink > 1:  # a second name of another file
                path.unlink(missing_ok=True)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def exchange(first: Path, second: Path) -> bool:
    """Give two folders each other's name in one step, so that no moment is without either.

    Args:
        first: A folder.
        second: Another one on the same file system.

    Returns:
        Whether it was done; False where the system or the file system cannot.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        rename = libc.renameat2  # glibc 2.28; the only call that exchanges
    except AttributeError:
        return False
    done: int = rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _EXCHANGE)
    return done == 0


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk.

    Args:
        path: A file or folder that exists.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
