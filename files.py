"""Files on disk: sha256 and atomic writes."""

import hashlib
import os
from pathlib import Path

from .reading import open_file


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


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old content or the new: temporary file, fsync, rename.

    Args:
        path: The file to write or replace, in a folder that exists.
        data: Its content.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


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
