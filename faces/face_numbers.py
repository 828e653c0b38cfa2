"""Numbers in the place of faces' names, which only the user who wrote them can turn back.

A number is an HMAC of the name under a salt that lies in the user's state folder and never leaves it.
Reports travel with their bundle; who has no salt cannot even try names.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

from ..files import write_atomic
from ..reading import read_file
from .sources import Faces

logger = logging.getLogger(__name__)

_SALT_BYTES = 32
_DIGITS = 16  # hexadecimal: two of a million faces share a number once in 40 million sources
_NUMBER = re.compile(rf"face-[0-9a-f]{{{_DIGITS}}}")


class FaceNumbers(Sequence[str]):
    """The numbers of faces, each computed when it is asked for.

    Args:
        keys: Names of the faces.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = keys
        self._salt = read_salt()

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [_number(key, self._salt) for key in self._keys[index]]
        return _number(self._keys[index], self._salt)


def reported_names(faces: Faces, *, keep_names: bool = False) -> Sequence[str]:
    """What reports call faces.

    Args:
        faces: The source.
        keep_names: Whether their names are wanted.

    Returns:
        One text per face: its name where that is wanted or the face is synthetic, else its number.
    """
    return faces.keys if keep_names or faces.synthetic else FaceNumbers(faces.keys)


def with_names(text: str, keys: Iterable[str]) -> str:
    """Turn the numbers in a text back into names.

    Args:
        text: A report, or a part of one.
        keys: Names of faces that may be meant; a number of another face stays.
    """
    names = numbered_faces(text, keys)
    return _NUMBER.sub(lambda match: names.get(match[0], match[0]), text) if names else text


def numbered_faces(text: str, keys: Iterable[str]) -> dict[str, str]:
    """Which faces the numbers in a text stand for.

    Args:
        text: A report, or a part of one.
        keys: Names of faces that may be meant.

    Returns:
        Number -> name, for the numbers of `keys`.
    """
    wanted = set(_NUMBER.findall(text))
    if not wanted:
        return {}
    salt = read_salt()
    return {number: key for key in keys if (number := _number(key, salt)) in wanted}


def read_salt() -> bytes:
    """The user's salt, 32 bytes; made when it is first needed, mode 0600.

    It lies in `$XDG_STATE_HOME/fr-edge`, by default `~/.local/state/fr-edge`. Where that cannot be
    written, the salt is of this process alone, and a warning says so.
    """
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    file = Path(state) / "fr-edge" / "face-numbers.salt"
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            import fcntl  # not on Windows, where the command line refuses to start

            fcntl.flock(folder, fcntl.LOCK_EX)
            salt = read_file(file, "JSON_MB") if file.is_file() else b""
            if len(salt) != _SALT_BYTES:
                salt = secrets.token_bytes(_SALT_BYTES)
                write_atomic(file, salt, private=True)
            return salt
        finally:
            os.close(folder)
    except OSError as error:
        logger.warning(
            "%s cannot be kept (%s): the numbers of faces in this report cannot be turned back",
            file,
            error.strerror,
        )
        return secrets.token_bytes(_SALT_BYTES)


def _number(key: str, salt: bytes) -> str:
    digest = hmac.new(salt, key.encode("utf-8", "surrogateescape"), hashlib.sha256)
    return f"face-{digest.hexdigest()[:_DIGITS]}"
