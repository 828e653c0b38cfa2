"""Every foreign byte enters here: regular files only, within the limits of one table.

A link that the caller names is followed once, by the kernel, when the file is opened; what is then
read is what was checked. A bundle's own files are never links (`bundle.manifest`).
"""

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal
from unicodedata import category

from .errors import DataError, UsageError

Limited = Literal[
    "JSON_MB", "TOML_KB", "DEPTH", "LIST_MB", "ARRAYS_MB", "IMAGE_MB", "FACE_SIDE", "PHOTO_MPIXELS",
    "SET_MB", "SET_STEPS", "MODEL_MB", "SIDE_FILES_MB", "NODES", "APART_SECONDS", "APART_MB",
    "WEIGHTS_MB", "ENGINE_MB", "CACHE_MB",
]  # fmt: skip

_NUMBER = re.compile(r"[1-9][0-9]{0,14}", re.ASCII)

_PIECE = 1 << 16  # bytes read at once beyond the size that a file has when it is opened


@dataclass(frozen=True)
class ReadLimit:
    """One row of the table of limits.

    Attributes:
        value: In `unit`.
        unit: KB and MB are 2^10 and 2^20 bytes.
        covers: What it bounds.
    """

    value: int
    unit: str
    covers: str

    @property
    def scale(self) -> int:
        """What one of the unit is in bytes, pixels, or what else is counted."""
        return {"KB": 1 << 10, "MB": 1 << 20, "million pixels": 1_000_000}.get(self.unit, 1)


LIMITS: dict[Limited, ReadLimit] = {
    "JSON_MB": ReadLimit(64, "MB", "a JSON document: manifest, report, sidecar, table, note"),
    "TOML_KB": ReadLimit(256, "KB", "a TOML document: recipe, policy"),
    "DEPTH": ReadLimit(64, "levels", "nesting of a JSON or TOML document"),
    "LIST_MB": ReadLimit(1024, "MB", "a text table: pairs, groups, IJB's lists, RecordIO index"),
    "ARRAYS_MB": ReadLimit(4096, "MB", "the arrays of an .npz file, unpacked"),
    "IMAGE_MB": ReadLimit(64, "MB", "one encoded image"),
    "FACE_SIDE": ReadLimit(4096, "pixels a side", "an aligned face"),
    "PHOTO_MPIXELS": ReadLimit(89, "million pixels", "a photograph to align"),
    "SET_MB": ReadLimit(4096, "MB", "a .bin verification set"),
    "SET_STEPS": ReadLimit(10_000_000, "operations", "the pickle of a .bin set"),
    "MODEL_MB": ReadLimit(2047, "MB", "an ONNX file"),
    "SIDE_FILES_MB": ReadLimit(16_384, "MB", "weights that an ONNX file keeps in side files"),
    "NODES": ReadLimit(50_000, "operators", "a network"),
    "APART_SECONDS": ReadLimit(
        60, "seconds", "the trial run of a network of unknown cost, or of a program"
    ),
    "APART_MB": ReadLimit(8192, "MB", "address space of that trial run"),
    "WEIGHTS_MB": ReadLimit(16_384, "MB", "a checkpoint, unpacked"),
    "ENGINE_MB": ReadLimit(8192, "MB", "an engine: a TensorRT plan or onnxruntime's graph"),
    "CACHE_MB": ReadLimit(256, "MB", "a calibration or timing cache"),
}


def limit_variable(name: Limited) -> str:
    """The environment variable that replaces a limit.

    Args:
        name: A key of `LIMITS`.
    """
    return f"FR_EDGE_MAX_{name}"


def raise_limit_hint(name: Limited, value: str) -> str:
    """How a limit is raised, for an error.

    Args:
        name: A key of `LIMITS`.
        value: What would do.
    """
    option = name.lower().replace("_", "-")
    return f"if you trust it, add --raise-limit {option}={value}, or set {limit_variable(name)}={value}"


def raised_limits(texts: Iterable[str]) -> dict[str, str]:
    """The environment variables of limits that the command line raises.

    Args:
        texts: As `--raise-limit` takes them: `json-mb=128`.

    Returns:
        Environment variable -> its value.

    Raises:
        UsageError: A text does not name a limit and a whole number above 0.
    """
    names = {name.lower().replace("_", "-"): name for name in LIMITS}
    variables = {}
    for text in texts:
        option, _, value = text.partition("=")
        if option not in names or not _NUMBER.fullmatch(value):
            raise UsageError(
                f"--raise-limit is {text[:60]!r}, expected NAME=N with a whole number above 0",
                f"NAME is one of {', '.join(names)}",
            )
        variables[limit_variable(names[option])] = value
    return variables


def read_limit(name: Limited) -> int:
    """A limit, from the environment or the table.

    Args:
        name: A key of `LIMITS`.

    Returns:
        Bytes, pixels, or what else the limit counts.

    Raises:
        UsageError: The environment variable is not a whole number above 0.
    """
    text = os.environ.get(limit_variable(name), "")
    if text and not _NUMBER.fullmatch(text):
        raise UsageError(
            f"{limit_variable(name)} is {text[:40]!r}, expected a whole number above 0",
            f"unset it for the default, {LIMITS[name].value}",
        )
    return (int(text) if text else LIMITS[name].value) * LIMITS[name].scale


def check_limit(name: Limited, value: int, what: object, kind: type[DataError] = DataError) -> None:
    """Refuse what exceeds a limit.

    Args:
        name: A key of `LIMITS`.
        value: In bytes, pixels, or what else the limit counts.
        what: The file or its part, for the error.
        kind: Class of the error.

    Raises:
        DataError: The value exceeds the limit; the message says how to raise it.
        UsageError: As `read_limit`.
    """
    if value <= (most := read_limit(name)):
        return
    limit = LIMITS[name]
    needed = -(-value // limit.scale)
    raise kind(
        f"{what} is larger than {most // limit.scale} {limit.unit}, the limit of {limit.covers}:"
        f" {needed}",
        raise_limit_hint(name, str(needed)),
    )


def open_file(
    path: Path, limit: Limited | None = None, kind: type[DataError] = DataError
) -> BinaryIO:
    """Open a regular file for reading.

    Args:
        path: The file; a link is followed.
        limit: The limit of its size; None for files that are read in pieces or in place.
        kind: Class of the error.

    Returns:
        The open file.

    Raises:
        DataError: The path is something else than a regular file, the file is larger than the limit,
            or no file can have such a name.
        OSError: The file cannot be opened.
    """
    try:
        # Opening a pipe or a device must neither wait nor act.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except ValueError as error:
        raise kind(f"{str(path)[:80]!a} cannot be the name of a file: {error}") from error
    try:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            raise kind(f"{path} cannot be read: it is a folder, expected a file")
        if not stat.S_ISREG(status.st_mode):
            raise kind(
                f"{path} cannot be read: it is {_special(status.st_mode)}, expected a regular file"
            )
        if limit is not None:
            check_limit(limit, status.st_size, path, kind)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_file(path: Path, limit: Limited, kind: type[DataError] = DataError) -> bytes:
    """Read a regular file whole.

    Args:
        path: The file; a link is followed.
        limit: The limit of its size.
        kind: Class of the error.

    Raises:
        DataError: As `open_file`; also a file that is larger than its size says.
        OSError: The file cannot be read.
    """
    pieces, total = [], 0
    with open_file(path, limit, kind) as stream:
        # Never the limit at once: Python would take that memory first. A growing file, and one of
        # /proc, has more than its size says.
        piece = os.fstat(stream.fileno()).st_size + 1
        while data := stream.read(piece):
            total += len(data)
            check_limit(limit, total, path, kind)
            pieces.append(data)
            piece = _PIECE
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def check_values(document: object, what: object) -> None:
    """Refuse a document that is nested too deeply or holds an integer of more than 64 bits.

    Args:
        document: What was decoded: dictionaries, lists and plain values.
        what: Where it comes from, for the error.

    Raises:
        DataError: The nesting exceeds the limit DEPTH, or an integer is too large for what is
            computed with it.
        UsageError: As `read_limit`.
    """
    depth = 0
    level: list[Any] = [document]
    while level:
        if any(isinstance(item, int) and not -(2**63) <= item < 2**63 for item in level):
            raise DataError(f"{what} is damaged: it holds an integer of more than 64 bits")
        level = [item for item in level if isinstance(item, dict | list)]
        depth += bool(level)
        level = [
            child for item in level for child in (item.values() if isinstance(item, dict) else item)
        ]
    check_limit("DEPTH", depth, what)


def printable(text: str) -> str:
    """Text without what a terminal or a page obeys: escape codes, reversed writing, no text at all.

    Args:
        text: Any text, with names and messages from files.

    Returns:
        The text; control and format characters other than line ends and tabs as `\\x1b`.
    """
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(c if c in "\n\t" or _harmless(c) else _escaped(c) for c in text)


def _harmless(character: str) -> bool:
    return category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def _special(mode: int) -> str:
    kinds = (
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((text for test, text in kinds if test(mode)), "not a file")
