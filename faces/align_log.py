"""Which photographs of a folder are aligned, so that interrupted work goes on with the others.

A line of JSON per photograph is appended to `.align.jsonl` in the folder of the crops, which is removed
when all are done. A photograph that changed since, or whose crop is gone, is done again.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..documents import decode_json, encode_json
from ..errors import DataError
from ..files import write_atomic
from ..interruption import keeping
from ..reading import read_file

_NAME = ".align.jsonl"


@dataclass(frozen=True)
class AlignedImage:
    """What came of a photograph.

    Attributes:
        faces: How many were found.
        unreadable: Why it cannot be decoded or aligned, "" where it can.
        crops: What was written of it, relative to the folder of the crops.
    """

    faces: int
    unreadable: str = ""
    crops: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Line:
    """A photograph as it was, and what came of it; the first line has the detector's identity."""

    key: str
    size: int
    mtime_ns: int
    done: AlignedImage


class AlignLog:
    """The log of one folder of crops.

    Args:
        source: The folder of photographs.
        out: The folder of crops.
        identity: What crops depend on besides the photograph; another one's log is begun anew.
    """

    def __init__(self, source: Path, out: Path, identity: str) -> None:
        self._source, self._out, self._path = source, out, out / _NAME
        lines = _read_lines(self._path)
        self._known = {line.key: line for line in lines[1:]}
        self._head = _Line(identity, 0, 0, AlignedImage(0))
        if not lines or lines[0] != self._head:
            self._known = {}
        self._waiting = [self._head, *self._known.values()]
        self._begun = False
        self.count = 0

    def recall(self, key: str) -> AlignedImage | None:
        """What came of a photograph in an interrupted run, if it is as it was and its crops are there.

        Args:
            key: The photograph's path within the source.
        """
        line = self._known.get(key)
        if line is None or line != self._line(key, line.done):
            return None
        if not all(_has_content(self._out / crop) for crop in line.done.crops):
            return None
        self.count += 1
        return line.done

    def add(self, key: str, done: AlignedImage) -> None:
        """Note a photograph that is done; its crop is on the disk.

        Args:
            key: The photograph's path within the source.
            done: What came of it.
        """
        self.count += 1
        self._waiting.append(self._line(key, done))
        if not self._out.is_dir():  # no face so far
            return
        data = b"".join(encode_json(line, indent=0) for line in self._waiting)
        self._waiting = []
        if self._begun:
            with self._path.open("ab") as stream:
                stream.write(data)
        else:
            write_atomic(self._path, data, private=True)
            self._begun = True

    def remove(self) -> None:
        """All photographs are done."""
        self._path.unlink(missing_ok=True)

    def _line(self, key: str, done: AlignedImage) -> _Line:
        status = (self._source / key).stat()
        return _Line(key, status.st_size, status.st_mtime_ns, done)


@contextmanager
def align_log(source: Path, out: Path, identity: str) -> Iterator[AlignLog]:
    """The log of an alignment, removed when the work is complete.

    Args:
        source: The folder of photographs.
        out: The folder of crops.
        identity: What crops depend on besides the photograph.

    Raises:
        Interrupted: A signal came; it says how many photographs are done.
    """
    log = AlignLog(source, out, identity)
    with keeping(lambda: f"{log.count:,} photographs are done in {out}" if log.count else ""):
        yield log
    log.remove()


def _has_content(path: Path) -> bool:
    """Crops are not synchronised to the disk: a power failure may leave an empty file."""
    return path.is_file() and path.stat().st_size > 0


def _read_lines(path: Path) -> list[_Line]:
    lines: list[_Line] = []
    with suppress(DataError, OSError):  # a torn last line ends the list
        for text in read_file(path, "LIST_MB").splitlines():
            lines.append(decode_json(text, _Line, path))
    return lines
