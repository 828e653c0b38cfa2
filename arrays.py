"""Numpy arrays: names for their types in signatures, and reading them from .npz and .npy files."""

import zipfile
from collections.abc import Collection
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from .errors import DataError
from .reading import check_limit, open_file

F64 = npt.NDArray[np.float64]

F32 = npt.NDArray[np.float32]

I32 = npt.NDArray[np.int32]

U32 = npt.NDArray[np.uint32]

I64 = npt.NDArray[np.int64]

F16 = npt.NDArray[np.float16]

U8 = npt.NDArray[np.uint8]


def read_npz(
    path: Path, names: Collection[str], kind: type[DataError] = DataError
) -> dict[str, npt.NDArray[Any]]:
    """Read arrays of an .npz file; nothing is unpickled, no other array is unpacked.

    Args:
        path: The file.
        names: The arrays.
        kind: Class of the error.

    Returns:
        Name -> array, of those of `names` that the file holds.

    Raises:
        DataError: The file is not an .npz file, is damaged, or unpacks to more than the limit.
        FileNotFoundError: There is no file.
    """
    try:
        with open_file(path, "ARRAYS_MB", kind) as stream, zipfile.ZipFile(stream) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            wanted = {name: members[name] for name in names if name in members}
            total = sum(info.file_size for info in wanted.values())
            check_limit("ARRAYS_MB", total, path, kind)
            return {name: _read(archive, info) for name, info in wanted.items()}
    except (DataError, FileNotFoundError):
        raise
    except Exception as error:  # zipfile, zlib and numpy each raise their own
        raise kind(f"{path} cannot be read: {error}") from error


def map_npy(path: Path, kind: type[DataError] = DataError) -> npt.NDArray[Any]:
    """Map the array of an .npy file into memory.

    Args:
        path: The file.
        kind: Class of the error.

    Returns:
        The array, read-only.

    Raises:
        DataError: The file is not an .npy file of plain numbers, or is cut short.
    """
    try:
        with open_file(path, None, kind) as stream:
            shape, fortran, dtype = _header(stream)
            start, end = stream.tell(), stream.seek(0, 2)
            if end - start != prod(shape) * dtype.itemsize:
                raise ValueError(f"it holds {end - start:,} bytes, its header announces {shape}")
            order: Any = "F" if fortran else "C"
            return np.memmap(stream, dtype, "r", start, shape, order)
    except DataError:
        raise
    except Exception as error:  # numpy's header is parsed by Python's parser
        raise kind(f"{path} cannot be read: {error}") from error


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> npt.NDArray[Any]:
    with archive.open(info) as member:
        shape, _, dtype = _header(member)
        size = member.tell() + prod(shape) * dtype.itemsize
        if size != info.file_size:
            raise ValueError(f"{info.filename} has {info.file_size:,} bytes, expected {size:,}")
        member.seek(0)
        array: npt.NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
        return array


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and type; raises ValueError for anything but plain numbers and text."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the array format, expected 1.0 or 2.0")
    reader = np.lib.format.read_array_header_1_0
    shape, fortran, dtype = (reader if version == (1, 0) else np.lib.format.read_array_header_2_0)(
        stream
    )
    if dtype.kind not in "biufUS" or any(size < 0 for size in shape):
        raise ValueError(f"it holds {dtype} {shape}, expected numbers or text")
    return shape, fortran, dtype
