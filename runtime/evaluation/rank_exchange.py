"""The exchange between the processes that share a large set: signs of life, and parts of embeddings.

The processes meet in a folder of the user's cache. The environment says which one this is (RANK and
WORLD_SIZE, as torchrun sets them), so no torch is needed. Two processes belong to one run when each
has read the other's random number: what an earlier run has left is never taken for a part of this one.
"""

import hashlib
import logging
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...arrays import F32
from ...bundle.provenance import ImageDigests
from ...documents import encode_json, read_json
from ...errors import DataError, FrEdgeError, MachineError, RankLost, UsageError
from ...faces.embedding_log import log_path
from ...faces.sources import Faces
from ...files import replace_atomic
from ...reading import open_file

logger = logging.getLogger(__name__)

BATCH = (
    32  # faces embedded at a time; a share is whole batches, for a network may round by the batch
)

_MAX_RANKS = 4096
_BEAT_S = 1.0  # between signs of life
_POLL_S = 0.2
_ABSENT_S = 120.0  # for a process that has not begun when this one is done
_SILENT_S = (
    300.0  # for one that gives no sign; file systems over a network show a file a minute late
)
_LEAVE_S = 30.0  # for the others to remove their files
_LINGER_S = 10.0  # of a process that fails before the others have begun
_KEPT_S = 7 * 24 * 3600  # as embeddings of interrupted work
_DIGEST = 32  # bytes of a sha256
_AGAIN = "run the same command on all ranks again: long work goes on where it stopped"


@dataclass(frozen=True)
class RankShare:
    """Which process of how many this is.

    Attributes:
        rank: From 0; the process of rank 0 has the result.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    def range(self, count: int, rank: int | None = None) -> range:
        """The indices of a process's share of faces: whole batches, in order.

        Args:
            count: Number of faces.
            rank: Of which process; None for this one.
        """
        own = self.rank if rank is None else rank
        batches = -(-count // BATCH)
        first, end = (BATCH * (batches * r // self.size) for r in (own, own + 1))
        return range(first, min(end, count))


ALONE = RankShare()


def share_of_environment(environment: Mapping[str, str] = os.environ) -> RankShare:
    """The share of this process by RANK and WORLD_SIZE; without them it is the only one.

    Args:
        environment: Of the process.

    Raises:
        UsageError: They are no numbers, or no rank of so many.
    """
    texts = [environment.get(name, "") for name in ("RANK", "WORLD_SIZE")]
    if not texts[1]:
        return ALONE
    if all(t.isascii() and t.isdigit() and len(t) < 6 for t in texts):
        rank, size = map(int, texts)
        if rank < size <= _MAX_RANKS:
            return RankShare(rank, size)
    raise UsageError(
        f"RANK={texts[0][:20]!r} and WORLD_SIZE={texts[1][:20]!r} in the environment, expected a rank"
        f" from 0 of at most {_MAX_RANKS} processes",
        "torchrun sets both; unset WORLD_SIZE for a single process",
    )


@dataclass(frozen=True)
class _RankState:
    """A process's sign of life, as its JSON document.

    Attributes:
        run: A random number of this process.
        knows: Rank -> its number, of those whose sign this process has read.
        state: "working", "done" (its part is there), "taken" (rank 0 has read all), "failed".
        beat: Counts the signs.
        place: Where `pid` means something: the kernel's boot and the namespace of process numbers.
        pid: The process.
        host: Its machine's name.
        begun: UTC, ISO 8601.
        sha256: Of its part.
        message: Why it failed.
        exit_code: With which it ends then.
    """

    run: str
    knows: Mapping[str, str] = field(default_factory=dict)
    state: str = "working"
    beat: int = 0
    place: str = ""
    pid: int = 0
    host: str = ""
    begun: str = ""
    sha256: str = ""
    message: str = ""
    exit_code: int = 0

    def process(self) -> str:
        return f"process {self.pid} on {self.host}, begun {self.begun}"


@contextmanager
def exchange_parts(
    faces: Faces, identity: tuple[str, ...], ranks: RankShare
) -> Iterator["RankParts"]:
    """The exchange of a run's parts; the other ranks are told how this one ends.

    Args:
        faces: All faces, the same on every rank.
        identity: What the embeddings depend on besides the pixels.
        ranks: Which process of how many this is.

    Yields:
        What sends or receives parts; with one process nothing is written.

    Raises:
        MachineError: The cache folder cannot be used.
    """
    log = log_path(faces, (*identity, f"{ranks.size} ranks"))
    parts = RankParts(log.parent.parent / "ranks" / log.name, ranks)
    if ranks.size == 1:
        yield parts
        return
    parts.begin()
    try:
        yield parts
    except BaseException as error:
        message, code = "it was interrupted", MachineError.exit_code
        if isinstance(error, FrEdgeError):
            message, code = error.message, error.exit_code
        elif isinstance(error, Exception):
            message = type(error).__name__
        if isinstance(error, Exception) and not isinstance(error, RankLost):
            parts.linger(message, code)
        parts.end(state="failed", message=message, exit_code=code)
        raise
    parts.end()


class RankParts:
    """The files of a run as one of its processes sees them: states, and parts of embeddings."""

    def __init__(self, folder: Path, ranks: RankShare) -> None:
        self._folder, self._ranks = folder, ranks
        self._others = range(1, ranks.size) if ranks.rank == 0 else range(min(1, ranks.rank))
        self._own = _RankState(
            secrets.token_hex(8),
            place=_place_of_processes(),
            pid=os.getpid(),
            host=socket.gethostname(),
            begun=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._checked = 0.0
        self._signs: dict[int, tuple[tuple[str, int], float]] = {}  # rank -> last sign, and when
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def begin(self) -> None:
        """Show the first sign of life, and go on showing it."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._tell()
        except OSError as error:
            raise MachineError(
                f"{self._folder} cannot be written: {error.strerror}; there the ranks exchange their"
                " parts",
                "set XDG_CACHE_HOME to a folder that all ranks see and may write",
            ) from error
        if self._ranks.rank == 0:
            logger.info("rank 0 of %d: parts go through %s", self._ranks.size, self._folder)
            with suppress(OSError):  # what a killed run has left is not kept for ever
                for other in self._folder.parent.iterdir():
                    if time.time() - other.stat().st_mtime > _KEPT_S:
                        shutil.rmtree(other, ignore_errors=True)
        self._thread.start()

    def end(self, **changes: Any) -> None:
        """Tell the others how this process ends; remove what they do not need."""
        self._ended.set()
        self._thread.join()
        own = self._folder / f"part-{self._ranks.rank}"
        with suppress(OSError):
            if changes:
                self._tell(**changes)
                own.unlink(missing_ok=True)
            elif self._ranks.rank:
                own.unlink(missing_ok=True)
                self._file(self._ranks.rank).unlink(missing_ok=True)
            else:
                until = time.monotonic() + _LEAVE_S
                while any(map(self._awaited, self._others)) and time.monotonic() < until:
                    time.sleep(_POLL_S)
                shutil.rmtree(self._folder, ignore_errors=True)

    def linger(self, message: str, code: int) -> None:
        """Wait until the other processes know this one, so that they hear why it fails."""
        with suppress(OSError):
            self._tell(state="failed", message=message, exit_code=code)
        until = time.monotonic() + _LINGER_S
        while not all(map(self._awaited, self._others)) and time.monotonic() < until:
            time.sleep(_POLL_S)

    @contextmanager
    def part(self) -> Iterator[Callable[[bytes], None]]:
        """Write this rank's part."""
        digest = hashlib.sha256()
        try:
            with replace_atomic(
                self._folder / f"part-{self._ranks.rank}", private=True, durable=False
            ) as stream:

                def write(data: bytes) -> None:
                    digest.update(data)
                    stream.write(data)

                yield write
        except OSError as error:
            raise MachineError(
                f"the part of rank {self._ranks.rank} cannot be written in {self._folder}:"
                f" {error.strerror}",
                "make room there, or set XDG_CACHE_HOME to another folder that all ranks see",
            ) from error
        self._tell(sha256=digest.hexdigest())

    def check(self) -> None:
        """Every two beats, raise RankLost where another process of this run has failed or died."""
        if self._ranks.size == 1 or time.monotonic() - self._checked < 2 * _BEAT_S:
            return
        self._checked = time.monotonic()
        for rank in self._others:
            if (state := self._read(rank)) is not None and self._is_ours(state):
                self._refuse_lost(rank, state)

    def receive(
        self, rank: int, indices: range, dim: int, digests: ImageDigests | None
    ) -> Iterator[F32]:
        """Wait for a rank's part, and read it: batches `(n, dim) float32`."""
        state = self._wait(rank, "done")
        path, digest = self._folder / f"part-{rank}", hashlib.sha256()
        wanted = len(indices) * (4 * dim + (_DIGEST if digests is not None else 0))
        with suppress(FileNotFoundError), open_file(path) as stream:
            if os.fstat(stream.fileno()).st_size == wanted:
                while block := stream.read(1 << 20):
                    digest.update(block)
        if digest.hexdigest() != state.sha256:
            raise RankLost(f"the part of rank {rank} is not what it wrote: {path}", _AGAIN)
        with open_file(path) as stream:
            for start in range(0, len(indices), BATCH):
                count = len(indices[start : start + BATCH])
                yield np.frombuffer(stream.read(4 * dim * count), "<f4").reshape(count, dim).copy()
            if digests is not None:
                for index in indices:
                    digests.by_index[index] = stream.read(_DIGEST)

    def release(self) -> None:
        """Rank 0 has read all parts: the others may leave."""
        if self._ranks.size > 1:
            self._tell(state="taken")

    def hand_over(self) -> None:
        """Wait until rank 0 has read this rank's part."""
        self._tell(state="done")
        self._wait(0, "taken")

    def _wait(self, rank: int, state: str) -> _RankState:
        begun = time.monotonic()
        while True:
            other = self._read(rank)
            if other is not None and self._is_ours(other):
                if other.state == state:
                    return other
                self._refuse_lost(rank, other)
            elif time.monotonic() - begun > _ABSENT_S:
                left = "" if other is None else f"; what lies there is of {other.process()}"
                left += f", which failed: {other.message}" if other and other.message else ""
                raise RankLost(
                    f"rank {rank} of {self._ranks.size} has not begun{left}",
                    "start all ranks with the same command, faces and engine, and one XDG_CACHE_HOME"
                    f" that all of them see; this one looks into {self._folder}",
                )
            for third in self._others:  # who waits for one rank hears of the others' end too
                if third != rank and (state_3 := self._read(third)) and self._is_ours(state_3):
                    self._refuse_lost(third, state_3)
            time.sleep(_POLL_S)

    def _refuse_lost(self, rank: int, state: _RankState) -> None:
        name = f"rank {rank} of {self._ranks.size} ({state.process()})"
        if state.state == "failed":
            raise RankLost(f"{name} failed: {state.message}", _AGAIN, state.exit_code)
        if state.place == self._own.place and not Path(f"/proc/{state.pid}").exists():
            raise RankLost(f"{name} died before its part was done", _AGAIN)
        sign, now = (state.run, state.beat), time.monotonic()
        if self._signs.get(rank, (None, 0.0))[0] != sign:
            self._signs[rank] = (sign, now)
        elif now - self._signs[rank][1] > _SILENT_S:
            raise RankLost(f"{name} has given no sign for {_SILENT_S:.0f} s", _AGAIN)

    def _is_ours(self, state: _RankState) -> bool:
        """Whether a process has read this one's number, so that both are of one run."""
        return state.knows.get(str(self._ranks.rank)) == self._own.run

    def _awaited(self, rank: int) -> bool:
        """Whether a process of this run is there: it has its files still."""
        state = self._read(rank)
        return state is not None and self._is_ours(state)

    def _beat(self) -> None:
        while not self._ended.wait(
            _BEAT_S if len(self._own.knows) == len(self._others) else _POLL_S
        ):
            with suppress(OSError):
                self._tell()

    def _tell(self, **changes: Any) -> None:
        with self._lock:
            known = {str(rank): state.run for rank in self._others if (state := self._read(rank))}
            self._own = replace(self._own, beat=self._own.beat + 1, knows=known, **changes)
            with replace_atomic(self._file(self._ranks.rank), private=True, durable=False) as out:
                out.write(encode_json(self._own))

    def _file(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.json"

    def _read(self, rank: int) -> _RankState | None:
        try:
            return read_json(self._file(rank), _RankState)
        except (OSError, DataError):
            return None


def _place_of_processes() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return secrets.token_hex(8)  # of this run alone
