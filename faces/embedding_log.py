"""Embeddings of interrupted work, so that the same command goes on where it stopped.

The log of a session and a source of faces lies in the user's cache folder, for that user alone, until
the work is complete. Each batch is stored with the sha256 of its pixels: a batch of other pixels is
embedded anew. Work of a few seconds writes nothing.
"""

import hashlib
import logging
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from ..arrays import F32, U8
from ..errors import RankLost
from ..interruption import interrupted
from .sources import Faces

logger = logging.getLogger(__name__)

_AFTER_S = 5.0  # of work; before that there is not enough to lose
_KEPT_S = 7 * 24 * 3600  # an older log is not continued
_HEAD = struct.Struct("<32sII")  # sha256 of the pixels, rows, numbers per row


class FaceEmbedder(Protocol):
    """What embeds aligned faces: a session, or a double of one."""

    @property
    def dim(self) -> int:
        """Numbers per embedding."""

    def embed(self, images: U8) -> F32:
        """Aligned faces `(N, 112, 112, 3) uint8`, RGB -> `(N, D) float32`."""


class _Network:
    """A network as a function of its inputs, in a session's place."""

    def __init__(self, embed: Callable[[F32], F32], shape: tuple[int, int, int]) -> None:
        probe = np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(1, *shape)
        rows = embed(probe)
        self.embed: Any = embed
        self.dim = rows.shape[1]
        self.identity = hashlib.sha256(rows.tobytes()).hexdigest()


@contextmanager
def logged_network(
    embed: Callable[[F32], F32], shape: tuple[int, int, int], faces: Faces, purpose: str
) -> Iterator[Callable[[F32], F32]]:
    """As `logged_embedder`, for a network that is known by what it computes.

    Args:
        embed: Network inputs `(N, C, H, W) float32 -> (N, D) float32`.
        shape: C, H and W.
        faces: The source of what is embedded.
        purpose: Tells apart passes over the same faces.

    Yields:
        What embeds in the network's place.

    Raises:
        Interrupted: As `logged_embedder`.
    """
    network = _Network(embed, shape)
    with logged_embedder(network, faces, network.identity, str(shape), purpose) as log:
        logged: Any = log.embed  # it hashes and passes on any array
        yield logged


@contextmanager
def logged_embedder(session: FaceEmbedder, faces: Faces, *identity: str) -> Iterator[FaceEmbedder]:
    """A session whose embeddings of a source survive an interruption.

    The batches must come in the same order each time. The log is removed at the end, and by an error.

    Args:
        session: An open session.
        faces: The source of the batches.
        *identity: What the embeddings depend on besides the pixels: the sha256 of the network's file,
            the backend; and what tells apart two passes over the same faces, as "mirrored".

    Yields:
        What embeds in the session's place.

    Raises:
        Interrupted: A signal came; it says how many embeddings are kept.
    """
    log = _Log(session, log_path(faces, identity))
    try:
        yield log
    except KeyboardInterrupt as stop:
        raise interrupted(stop, log.close()) from stop
    except (GeneratorExit, RankLost):  # who takes the batches was interrupted, or another process
        log.close()
        raise
    except BaseException:
        log.remove()
        raise
    log.remove()


def log_path(faces: Faces, identity: Iterable[str]) -> Path:
    """Where the log of a source lies, in the user's cache folder.

    Args:
        faces: The source.
        identity: What the embeddings depend on besides the pixels.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256()
    for text in (*identity, faces.where):
        digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
    for key in faces.keys:
        digest.update(key.encode("utf-8", "surrogateescape") + b"\n")
    return cache / "fr-edge" / "embeddings" / digest.hexdigest()[:32]


class _Log:
    """The log's file: read while its batches are those that are asked for, then written."""

    def __init__(self, session: FaceEmbedder, path: Path) -> None:
        self._session, self._path, self._start = session, path, time.monotonic()
        self._waiting: list[bytes] = []
        self._kept = 0  # faces in the file
        self._file: BinaryIO | None = None
        self._usable = True
        self._replaying = path.is_file() and self._open()
        if self._replaying:
            logger.info("going on with embeddings that an interrupted run has kept")

    @property
    def dim(self) -> int:
        return self._session.dim

    def embed(self, images: npt.NDArray[Any]) -> F32:
        """The embeddings of a batch, from the file or made now."""
        digest = hashlib.sha256(images.tobytes()).digest()
        if self._replaying:
            known = self._read(digest, len(images))
            if known is not None:
                return known
        rows = self._session.embed(images)
        self._write(_HEAD.pack(digest, *rows.shape) + rows.astype("<f4").tobytes(), len(images))
        return rows

    def close(self) -> str:
        """End the file where the work stopped, and say what it holds."""
        self._flush()
        if self._file is None or not self._kept:
            self.remove()
            return ""
        self._file.close()
        return f"the embeddings of {self._kept:,} faces are kept"

    def remove(self) -> None:
        """The work is complete, or cannot be completed."""
        if self._file is not None:
            self._file.close()
            self._path.unlink(missing_ok=True)

    def _open(self) -> bool:
        """Open the file unless another process has it, or it cannot be written."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.fdopen(os.open(self._path, flags, 0o600), "r+b")
        except OSError:
            self._usable = False
            return False
        try:
            import fcntl  # not on Windows, where the command line refuses to start

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            self._usable = False
            return False
        self._file = file
        with suppress(OSError):  # somebody's embeddings are not kept for ever
            for other in self._path.parent.iterdir():
                if time.time() - other.stat().st_mtime > _KEPT_S:
                    other.unlink()
        return True

    def _read(self, digest: bytes, count: int) -> F32 | None:
        """The next batch of the file, or None and no more of it where it is another or torn."""
        assert self._file is not None
        begin = self._file.tell()
        head = self._file.read(_HEAD.size)
        if len(head) == _HEAD.size:
            stored, rows, dim = _HEAD.unpack(head)
            if stored == digest and (rows, dim) == (count, self._session.dim):
                data = self._file.read(4 * rows * dim)
                if len(data) == 4 * rows * dim:
                    self._kept += count
                    values: F32 = np.frombuffer(data, "<f4").reshape(rows, dim).copy()
                    return values
        self._replaying = False
        self._file.seek(begin)
        self._file.truncate()
        return None

    def _write(self, record: bytes, count: int) -> None:
        if not self._usable:
            return
        self._waiting.append(record)
        self._kept += count
        if self._file is not None or time.monotonic() - self._start > _AFTER_S:
            self._flush()

    def _flush(self) -> None:
        """Write what waits; a full disk ends the log, not the work."""
        if self._file is None and time.monotonic() - self._start > _AFTER_S:
            self._open()
        if self._file is None or not self._waiting:
            return
        try:
            self._file.write(b"".join(self._waiting))
            self._file.flush()
        except OSError as error:
            logger.info("embeddings are not kept for a continuation: %s", error.strerror)
            self.remove()
            self._file, self._kept, self._usable = None, 0, False
        self._waiting.clear()
