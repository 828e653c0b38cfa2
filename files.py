"""Files on disk: hashes, TOML, and atomic writes."""

import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib
import hashlib
import os


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Temporary file, fsync, rename: readers see the old content or the new."""
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
    """Let a file or folder reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def parse_toml(text: str) -> dict[str, Any]:
    """TOML text as a dictionary.

    Raises:
        ValueError: The text is not TOML.
    """
    return tomllib.loads(text)


def read_toml(path: Path) -> dict[str, Any]:
    """The TOML file at `path` as a dictionary.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is not UTF-8 or not TOML.
    """
    return parse_toml(path.read_text(encoding="utf-8"))
