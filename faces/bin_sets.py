"""Verification sets in insightface's format: `lfw.bin` and others.

The file is a pickle of (2 P encoded images, P answers): images 2k and 2k + 1 are pair k. A pickle
can run code; this reader calls nothing. Every name that such files are known to use (numpy's
arrays, Python 2's bytes) becomes an inert box that keeps its arguments, any other is refused.
"""

import io
import pickle
import pickletools
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import I64
from ..errors import FacesError
from ..reading import check_limit, read_file, read_limit

_KNOWN = {
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    *((home, name) for home in ("builtins", "__builtin__") for name in ("bytes", "bytearray")),
}

_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}


@dataclass(frozen=True)
class BinSet:
    """A verification set.

    Attributes:
        images: Encoded images, each distinct one once.
        first: Index of each pair's first image, `(P,) int64`.
        second: Index of each pair's second image, `(P,) int64`.
        same: Whether both are one person, `(P,) bool`.
    """

    images: tuple[bytes, ...]
    first: I64
    second: I64
    same: npt.NDArray[np.bool_]


def read_bin(path: Path) -> BinSet:
    """Read a `.bin` set.

    Args:
        path: The file.

    Raises:
        FacesError: The file cannot be read, is not such a set, or its pickle asks for code.
    """
    try:
        images, answers = _contents(read_file(path, "SET_MB", FacesError))
    except FacesError as error:
        raise FacesError(f"{path}: {error.message}", error.hint) from None
    except OSError as error:
        raise FacesError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise FacesError(f"{path} is not a .bin verification set: {error}") from error
    if not answers or len(images) != 2 * len(answers):
        raise FacesError(
            f"{path} has {len(images)} images and {len(answers)} answers, expected two images each"
        )
    if not all(isinstance(image, bytes) for image in images):
        raise FacesError(f"{path} holds values that are not encoded images")
    same = [_truth(answer) for answer in answers]
    number = {image: index for index, image in enumerate(dict.fromkeys(images))}
    index = np.array([number[image] for image in images], np.int64)
    return BinSet(tuple(number), index[0::2], index[1::2], np.array(same, np.bool_))


def connected_labels(count: int, first: I64, second: I64) -> I64:
    """Labels of items that pairs connect: the connected components, by union-find.

    Args:
        count: Number of items.
        first: Index of each pair's first item, `(P,) int64`.
        second: Index of each pair's second item, `(P,) int64`.

    Returns:
        `(count,) int64`, 0..n-1; equal for items that pairs connect.
    """
    parent = list(range(count))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        parent[root(a)] = root(b)
    roots = np.array([root(item) for item in range(count)], np.int64)
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)


class _Box:
    """Replaces whatever the pickle calls: keeps the arguments, does nothing."""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Inert(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _Box
        raise FacesError(
            f"the pickle in it asks for {module}.{name}, which no verification set needs",
            "do not use it; download the set from its publisher",
        )


def _contents(data: bytes) -> tuple[list[Any], list[Any]]:
    _check_steps(data)
    content = _Inert(io.BytesIO(data), encoding="bytes").load()
    if not isinstance(content, tuple | list) or len(content) != 2:
        raise FacesError("not a .bin verification set, expected (images, answers)")
    images, answers = (_plain_items(part) for part in content)
    return images, answers


def _check_steps(data: bytes) -> None:
    """Refuse what makes the unpickler take memory or time that the file's size does not explain."""
    stream, most = io.BytesIO(data), read_limit("SET_STEPS")
    for step in count(1):
        code = _OPCODES[stream.read(1).decode("latin-1")]
        value = _argument(stream, code)
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(value) > step:
            raise FacesError("its pickle numbers a value higher than it has values: a memory bomb")
        if step > most:  # each has a byte at least
            check_limit("SET_STEPS", len(data), "its pickle", FacesError)
        if code.name == "STOP":
            return


def _argument(stream: io.BytesIO, code: pickletools.OpcodeInfo) -> Any:
    """An opcode's argument; raises ValueError for a length past the end of the file."""
    if code.arg is None:
        return None
    if code.arg.n != pickletools.UP_TO_NEWLINE:
        return code.arg.reader(stream)
    line = stream.readline()  # raw, for Python 2 wrote text in any encoding
    return stream.readline() if code.name in ("GLOBAL", "INST") else line


def _plain_items(part: Any) -> list[Any]:
    items, total, most = [], 0, read_limit("SET_MB")
    for item in _items(part):
        plain = _plain(item)
        if plain is not item and isinstance(plain, bytes):  # a copy
            total += len(plain)
        if total <= most:  # beyond it the rest is only counted
            items.append(plain)
    check_limit("SET_MB", total, "the set, unpacked,", FacesError)
    return items


def _items(part: Any) -> Any:
    """A list, or the elements of a pickled array."""
    if isinstance(part, list | tuple):
        return part
    data = _plain(part)
    return data if isinstance(data, list | bytes) else []


def _plain(item: Any) -> Any:
    """The value of a box: an array's data, encoded text; anything else as it is."""
    if isinstance(item, bytearray):
        return bytes(item)
    if not isinstance(item, _Box):
        return item
    if isinstance(item.state, tuple) and item.state:  # ndarray: version, shape, dtype, order, data
        return _plain(item.state[-1])
    first = item.args[0] if item.args else b""
    if isinstance(first, _Box):  # scalar: dtype, data; bytearray: encoded text
        return _plain(item.args[-1])
    if isinstance(first, str):  # _codecs.encode
        return first.encode("latin-1", "replace")
    return bytes(first) if isinstance(first, bytes | bytearray) else b""  # _frombuffer, bytes


def _truth(answer: Any) -> bool:
    if isinstance(answer, bytes):
        return any(answer)
    return bool(answer)
