"""JSON and TOML documents: one encoder for everything written, typed decoding for everything read."""

import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from .errors import DataError
from .reading import check_limit, check_values, read_file, read_limit

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")

_LONG_NUMBER = re.compile(rb"(?<![.0-9])[0-9]{19}")  # may not fit 64 bits

_DECIMALS = 6  # of written floats; smaller numbers keep as many significant digits


def to_builtins(value: Any) -> Any:
    """A value as JSON types.

    Args:
        value: Dataclasses, mappings, sequences, numpy scalars and arrays, paths, enums, dates and
            JSON's own types, nested in any way. Fields and keys whose name begins with an
            underscore are left out.

    Returns:
        Dictionaries, lists, strings, integers, floats, booleans and None. Floats are rounded to 6
        decimals, those below 0.001 to 6 significant digits; NaN and infinities become None.
    """
    return _rounded(msgspec.to_builtins(value, enc_hook=_foreign, str_keys=True))


def encode_json(value: Any, indent: int = 1) -> bytes:
    """A value as a JSON document that ends in a newline.

    Args:
        value: As `to_builtins` takes it.
        indent: Spaces per level; 0 writes one line.
    """
    data = msgspec.json.encode(to_builtins(value))
    return (msgspec.json.format(data, indent=indent) if indent else data) + b"\n"


def decode_json(data: bytes, kind: type[T], where: str | Path) -> T:
    """A JSON document as a value of a type.

    Args:
        data: The document, UTF-8.
        kind: A dataclass or any other type; fields that the document lacks take their default, keys
            that the type lacks are ignored.
        where: The file that the document comes from, for the error.

    Raises:
        DataError: The document is not JSON, not of that type, or larger or deeper than the limits;
            the message names the place.
    """
    check_limit("JSON_MB", len(data), where)
    try:
        deep = data.count(b"[") + data.count(b"{") > read_limit("DEPTH")
        if deep or _LONG_NUMBER.search(data):
            check_values(msgspec.json.decode(data), where)
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{where} is damaged: {error}") from error


def read_json(path: Path, kind: type[T]) -> T:
    """A JSON file as a value of a type.

    Args:
        path: The file.
        kind: As `decode_json` takes it.

    Raises:
        DataError: The file cannot be read, or `decode_json` refuses it.
    """
    try:
        data = read_file(path, "JSON_MB")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return decode_json(data, kind, path)


def convert(value: Any, kind: type[T], where: str | Path) -> T:
    """Builtins, for example a TOML table, as a value of a type.

    Args:
        value: Dictionaries, lists, strings and numbers.
        kind: A dataclass or any other type.
        where: What the value comes from, for the error.

    Raises:
        DataError: The value is not of that type; the message names the place.
    """
    try:
        return msgspec.convert(value, type=kind)
    except (msgspec.ValidationError, RecursionError, OverflowError) as error:
        raise DataError(f"{where}: {error}") from error


def parse_toml(text: str) -> dict[str, Any]:
    """TOML text as a dictionary.

    Args:
        text: The document.

    Raises:
        ValueError: The text is not TOML.
        DataError: It is deeper than the limit.
    """
    # A dotted key nests too, and tomllib's time grows with the square of its parts.
    dots = max(part.count(".") for part in re.split(r"[=\n]", text))
    check_limit("DEPTH", dots, "a key of the TOML text")
    value = tomllib.loads(text)
    check_values(value, "the TOML text")
    return value


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dictionary.

    Args:
        path: A UTF-8 file.

    Raises:
        DataError: The file cannot be read or is not TOML.
    """
    try:
        return parse_toml(read_file(path, "TOML_KB").decode("utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a TOML file: {error}") from error


def _foreign(value: Any) -> Any:
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {_text(k): _rounded(v) for k, v in value.items() if not str(k).startswith("_")}
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return round(value, _DECIMALS) if abs(value) >= 1e-3 else float(f"{value:.{_DECIMALS}g}")
    return value


def _text(value: Any) -> Any:
    """Names of files that are not UTF-8 hold surrogates, which JSON cannot: they are escaped."""
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    return value
