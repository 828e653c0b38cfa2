"""MXNet RecordIO as InsightFace lays it: `train.rec`, `train.idx`; read without MXNet.

A record is one or more parts: magic, a word with the part's kind (3 bits) and length (29 bits),
payload, zeros up to a multiple of 4. A writer cuts a payload wherever it holds the magic itself at
a multiple of 4, and leaves those 4 bytes out. The payload begins with a header (flag, label, two
ids), `flag` more labels, and then the image.

The format is MXNet's (dmlc-core recordio.h, python/mxnet/recordio.py); the order of the records is
InsightFace's.
"""

import logging
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..arrays import F32, I64, U8
from ..errors import FacesError
from ..reading import read_file
from .images import KeptFile

logger = logging.getLogger(__name__)

MAGIC = struct.pack("<I", 0xCED7230A)  # begins every part of a record

_HEAD = struct.Struct("<4sI")  # magic; kind and length

_LABELS = struct.Struct("<IfQQ")  # flag, label, two ids

_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)  # kinds of parts

_NO_IMAGE = _HEAD.size + _LABELS.size + 2 * 4  # bytes of a record with two labels and no image: the
# header of the file, or one identity's range

_HELD = np.float32  # holds the numbers of labels and ranges

_EXACT = 1 << 24  # above this it does not hold every integer

_MAX_LABEL = 1 << 40  # identity numbers are far below

_BLOCK = 1 << 14  # records whose labels are read at once

_GAP = 512  # bytes between two of them that are read rather than left out

_AHEAD = 1 << 20  # bytes read at once of a record, at most


@dataclass(frozen=True)
class Records:
    """N images of a `.rec` file.

    Attributes:
        file: The file, open.
        keys: Key of each image in the index, `(N,) int64`.
        labels: Identity of each image as the records have it, `(N,) int64`.
        offsets: Where each record begins in the file, `(N,) int64`.
        starts: Where any record begins, ascending, `(M,) int64`.
    """

    file: KeptFile
    keys: I64
    labels: I64
    offsets: I64
    starts: I64

    def image(self, index: int) -> bytes:
        """The encoded image; raises FacesError for a damaged record."""
        offset = int(self.offsets[index])
        following = int(np.searchsorted(self.starts, offset, "right"))
        end = int(self.starts[following]) if following < len(self.starts) else self.file.size
        payload = _record(self.file, offset, self._name(index), end - offset)[0]
        if len(payload) < _LABELS.size:
            raise _damaged(self._name(index), "is too short for its header")
        flag = _LABELS.unpack_from(payload)[0]
        start = _LABELS.size + 4 * flag
        if start > len(payload):
            raise _damaged(self._name(index), f"announces {flag} labels, which do not fit")
        return payload[start:]

    def _name(self, index: int) -> str:
        return f"{self.file.path.name}, record {self.keys[index]},"


def open_records(path: str | Path) -> Records:
    """Index a RecordIO file; its images stay on disk.

    Labels come from the identities' ranges where the file has them (few reads), else from each
    record. Ranges that contradict the records' own labels come from a list that was not sorted by
    identity (insightface issue 791): the records' labels are taken, and a warning is logged.

    Args:
        path: A `.rec` file with its `.idx` in the same folder.

    Raises:
        FacesError: A file is missing, empty or cut short, or the two do not match.
    """
    path = Path(path)
    keys, offsets = _read_index(path.with_suffix(".idx"))
    try:
        file = KeptFile(path)
        if not file.size:
            raise FacesError(f"{path} is empty")
        return _indexed(file, keys, offsets)
    except OSError as error:
        raise FacesError(f"{path} cannot be read: {error.strerror}") from error


def _indexed(file: KeptFile, keys: I64, offsets: I64) -> Records:
    """With key 0 as header, 1..N are images, then come K ranges (first, past the last)."""
    _check_offsets(file, offsets)
    ascending = bool((np.diff(offsets) > 0).all())
    starts = offsets if ascending else np.sort(offsets)
    first = _labels_of(file, offsets[:1])
    ranges = _sizes(offsets, file.size) == _NO_IMAGE
    if keys[0] != 0 or first[0][0] != 2 or not ranges[0]:
        return Records(file, keys, _image_labels(file, keys, offsets), offsets, starts)
    # Counted, not read: the header's numbers are float32 and round above 2^24.
    end = len(ranges) - int(np.argmin(ranges[::-1])) if not ranges.all() else 1
    past, header = len(keys), first[1][0]
    if end == 1:
        raise FacesError(f"{file.path.name} holds no images")
    if (np.float32(end), np.float32(past)) != tuple(header) or keys[-1] != past - 1:
        raise FacesError(
            f"{file.path.name} announces {header[0] - 1:.0f} images and "
            f"{header[1] - header[0]:.0f} identities; its index holds {end - 1} and {past - end}",
            "copy both files of the same data set again, whole",
        )
    bounds = _labels_of(file, offsets[end:])[1]
    keys, offsets = keys[1:end], offsets[1:end]
    return Records(file, keys, _identities(file, keys, offsets, bounds), offsets, starts)


def _identities(file: KeptFile, keys: I64, offsets: I64, bounds: F32) -> I64:
    """`(N,)`: the identities of the images 1..N, from their ranges where these tell them."""
    exact = _exact_bounds(file, keys, offsets, bounds)
    if exact is None:
        return _image_labels(file, keys, offsets)
    labels = _range_labels(file.path, exact, len(keys))
    if not _contradict(file, keys, offsets, exact):
        return labels
    own = _image_labels(file, keys, offsets)
    logger.warning(
        "%s: its %d identity ranges contradict its records' own labels, %d people: it was"
        " packed from a list that was not sorted; the records' labels are taken",
        file.path.name,
        len(bounds),
        len(np.unique(own)),
    )
    return own


def _exact_bounds(file: KeptFile, keys: I64, offsets: I64, bounds: F32) -> I64 | None:
    """`(K, 2)` ranges of keys without the rounding of large ones; None where they do not tell.

    Ranges that follow one another have K + 1 borders. Each border that may be rounded is where the
    records' own label changes, among those keys that round to what the file has.
    """
    if not len(bounds):
        return None
    with np.errstate(invalid="ignore"):  # NaN becomes a key that no image has
        rounded = bounds.astype(np.int64)
    if len(keys) < _EXACT:
        return rounded
    borders = np.append(rounded[:, 0], len(keys) + 1)
    joined = (bounds[1:, 0] == bounds[:-1, 1]).all() and bounds[-1, 1] == _HELD(len(keys) + 1)
    if not joined or borders[0] != 1 or (np.diff(borders) < 0).any():
        return None
    doubtful = np.flatnonzero(borders[:-1] >= _EXACT)
    reach = int(np.spacing(_HELD(len(keys) + 1))) // 2
    if len(doubtful) * 2 * (reach + 1) > len(keys):
        return None
    near = np.unique(borders[doubtful, None] + np.arange(-reach - 1, reach + 1))
    near = near[near <= len(keys)]
    own = _image_labels(file, keys[near - 1], offsets[near - 1])
    changes = near[1:][(np.diff(near) == 1) & (np.diff(own) != 0) & (near[1:] >= _EXACT)]
    if not np.array_equal(changes.astype(_HELD), bounds[doubtful, 0]):
        return None
    borders[doubtful] = changes
    return np.stack([borders[:-1], borders[1:]], axis=1)


def _range_labels(path: Path, bounds: I64, images: int) -> I64:
    """`(K, 2)` ranges of keys -> the identity of each of the keys 1..N."""
    starts, ends = bounds[:, 0], bounds[:, 1]
    good = (starts >= 1) & (starts <= ends) & (ends <= images + 1)
    if not good.all() or int((ends - starts).sum()) != images:
        raise FacesError(f"{path.name}: the identities' ranges do not cover its {images} images")
    labels = np.full(images, -1, np.int64)
    lengths = ends - starts
    within = np.arange(images) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    labels[np.repeat(starts, lengths) + within - 1] = np.repeat(np.arange(len(bounds)), lengths)
    if labels.min(initial=0) < 0:
        raise FacesError(f"{path.name}: the identities' ranges overlap")
    return labels


def _contradict(file: KeptFile, keys: I64, offsets: I64, bounds: I64) -> bool:
    """Whether a range holds records of two labels, or two ranges records of one; `keys` are 1..N.

    The first, middle and last record of each range are read. Records that all have one label do not
    tell people apart at all, and contradict nothing.
    """
    filled = bounds[bounds[:, 0] < bounds[:, 1]]
    first, last = filled[:, 0] - 1, filled[:, 1] - 2
    picks = np.stack([first, (first + last) // 2, last])
    own = _image_labels(file, keys[picks.ravel()], offsets[picks.ravel()]).reshape(3, -1)
    if len(np.unique(own)) <= 1:
        return False
    return bool((own != own[0]).any() or len(np.unique(own[0])) < len(filled))


def _image_labels(file: KeptFile, keys: I64, offsets: I64) -> I64:
    """The label of each record, or the first of several."""
    flags, several, single = _labels_of(file, offsets)
    labels = np.where(flags > 0, several[:, 0], single)
    wrong = np.flatnonzero(~(np.abs(labels) < _MAX_LABEL))  # NaN too
    if len(wrong):
        key = keys[wrong[0]]
        raise _damaged(f"{file.path.name}, record {key},", f"has the label {labels[wrong[0]]}")
    return labels.astype(np.int64)


def _labels_of(file: KeptFile, offsets: I64) -> tuple[I64, F32, F32]:
    """Of n records: `flags (n,)`, the first two of several labels `(n, 2)`, the single one `(n,)`."""
    flags = np.empty(len(offsets), np.int64)
    several, single = np.empty((len(offsets), 2), np.float32), np.empty(len(offsets), np.float32)
    for start in range(0, len(offsets), _BLOCK):
        part = slice(start, start + _BLOCK)
        heads = _heads(file, offsets[part])
        for row in np.flatnonzero(heads[:, 7] >> 5 != _WHOLE):  # rare: the magic within a payload
            place = int(offsets[start + row])
            payload = _record(file, place, f"the record at byte {place}")[0]
            words = np.frombuffer(payload[: _NO_IMAGE - _HEAD.size], np.uint8)
            heads[row, _HEAD.size : _HEAD.size + len(words)] = words
        flags[part] = heads[:, 8:12].copy().view("<u4")[:, 0]
        single[part] = heads[:, 12:16].copy().view("<f4")[:, 0]
        several[part] = heads[:, _HEAD.size + _LABELS.size :].copy().view("<f4")
    return flags, several, single


def _heads(file: KeptFile, offsets: I64) -> U8:
    """The first bytes of n records, `(n, 40) uint8`; neighbours are read at once."""
    order = np.argsort(offsets, kind="stable")
    places = offsets[order]
    apart = np.flatnonzero(np.diff(places) > _GAP) + 1
    firsts = np.concatenate([[0], apart])
    starts = places[firsts]
    ends = np.minimum(places[np.append(apart, len(places)) - 1] + _NO_IMAGE, file.size)
    pieces = [file.read(a, b - a) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
    data = np.frombuffer(b"".join(pieces) + bytes(_NO_IMAGE), np.uint8)
    moved = np.cumsum(ends - starts) - ends  # from a place in the file to that in the pieces
    runs = np.repeat(np.arange(len(firsts)), np.diff(np.append(firsts, len(places))))
    heads = np.empty((len(offsets), _NO_IMAGE), np.uint8)
    heads[order] = data[(places + moved[runs])[:, None] + np.arange(_NO_IMAGE)]
    return heads


def _record(file: KeptFile, offset: int, name: str, ahead: int = _HEAD.size) -> tuple[bytes, int]:
    """A record's payload, its parts joined by the magic that the writer left out, and its end.

    `ahead` bytes are read at once: the record's length where the index tells it.
    """
    parts: list[bytes] = []
    first = offset
    begun = file.read(first, max(0, min(ahead, _AHEAD, file.size - first)))

    def piece(start: int, end: int) -> bytes:
        within = end - first <= len(begun)
        return begun[start - first : end - first] if within else file.read(start, end - start)

    while True:
        start = offset + _HEAD.size
        if start > file.size:
            raise _damaged(name, "is cut short: the file ends in it")
        magic, word = _HEAD.unpack(piece(offset, start))
        kind, length = word >> 29, word & 0x1FFFFFFF
        wanted = (_MIDDLE, _LAST) if parts else (_WHOLE, _FIRST)
        if magic != MAGIC or kind not in wanted:
            raise _damaged(name, f"does not begin a record at byte {offset}")
        end = start + length
        if end > file.size:
            raise _damaged(name, f"is cut short: {end - file.size} bytes are missing")
        parts.append(piece(start, end))
        offset = end + -end % 4
        if kind in (_WHOLE, _LAST):
            return MAGIC.join(parts), offset


def _read_index(path: Path) -> tuple[I64, I64]:
    """Lines of `key<TAB>offset` -> both `(N,) int64`, sorted by key."""
    if not path.is_file():
        raise FacesError(f"{path} is missing", "the .rec file needs its .idx beside it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy 1 only warns of text it cannot read
            rows = np.fromstring(
                read_file(path, "LIST_MB", FacesError).decode("ascii"), np.int64, sep=" "
            ).reshape(-1, 2)
    except (OSError, ValueError, DeprecationWarning) as error:
        raise FacesError(
            f"{path} is not a RecordIO index, expected lines of key, tab, offset: {error}"
        ) from error
    if not len(rows):
        raise FacesError(f"{path} is empty")
    if not (np.diff(rows[:, 0]) > 0).all():
        rows = rows[np.argsort(rows[:, 0], kind="stable")]
        if not np.diff(rows[:, 0]).all():
            raise FacesError(f"{path} has keys more than once")
    return rows[:, 0], rows[:, 1]


def _check_offsets(file: KeptFile, offsets: I64) -> None:
    outside = int(((offsets < 0) | (offsets > file.size - _HEAD.size)).sum())
    if outside:
        raise FacesError(
            f"{file.path.name} is cut short: {outside} of {len(offsets)} records lie beyond its "
            f"{file.size} bytes",
            "copy it again, whole",
        )
    end = _record(file, int(offsets.max()), f"{file.path.name}, the last record,")[1]
    if end < file.size:
        raise FacesError(
            f"{file.path.name} goes on for {file.size - end} bytes after the last record of its index",
            "copy the index again, whole",
        )


def _sizes(offsets: I64, total: int) -> I64:
    """Bytes from each record to the next one in the file."""
    order = np.argsort(offsets, kind="stable")
    sizes = np.empty_like(offsets)
    sizes[order] = np.diff(offsets[order], append=total)
    return sizes


def _damaged(name: str, what: str) -> FacesError:
    return FacesError(f"{name} {what}", "copy the .rec and .idx files again, whole")
