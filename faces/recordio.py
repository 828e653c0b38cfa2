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
from ..reading import open_file, read_file

logger = logging.getLogger(__name__)

MAGIC = struct.pack("<I", 0xCED7230A)  # begins every part of a record

_HEAD = struct.Struct("<4sI")  # magic; kind and length

_LABELS = struct.Struct("<IfQQ")  # flag, label, two ids

_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)  # kinds of parts

_NO_IMAGE = _HEAD.size + _LABELS.size + 2 * 4  # bytes of a record with two labels and no image: the
# header of the file, or one identity's range

_EXACT = 1 << 24  # above this, float32 does not hold every integer, and range bounds are float32

_MAX_LABEL = 1 << 40  # identity numbers are far below

_BLOCK = 1 << 16  # records whose labels are read at once


@dataclass(frozen=True)
class Records:
    """N images of a `.rec` file.

    Attributes:
        path: The file.
        data: Its bytes, memory-mapped.
        keys: Key of each image in the index, `(N,) int64`.
        labels: Identity of each image as the records have it, `(N,) int64`.
        offsets: Where each record begins in `data`, `(N,) int64`.
    """

    path: Path
    data: U8
    keys: I64
    labels: I64
    offsets: I64

    def image(self, index: int) -> bytes:
        """The encoded image; raises FacesError for a damaged record."""
        payload = _payload(self.data, int(self.offsets[index]), self._name(index))
        if len(payload) < _LABELS.size:
            raise _damaged(self._name(index), "is too short for its header")
        flag = _LABELS.unpack_from(payload)[0]
        start = _LABELS.size + 4 * flag
        if start > len(payload):
            raise _damaged(self._name(index), f"announces {flag} labels, which do not fit")
        return payload[start:]

    def _name(self, index: int) -> str:
        return f"{self.path.name}, record {self.keys[index]},"


def open_records(path: str | Path) -> Records:
    """Index a RecordIO file; its images stay on disk, memory-mapped.

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
        with open_file(path, None, FacesError) as stream:
            data = np.asarray(np.memmap(stream, np.uint8, "r"))
    except (OSError, ValueError) as error:
        raise FacesError(f"{path} cannot be read, or is empty: {error}") from error
    _check_offsets(path, data, offsets)
    first = _labels_of(data, offsets[:1])
    if keys[0] != 0 or first[0][0] != 2 or _sizes(offsets, len(data))[0] != _NO_IMAGE:
        return Records(path, data, keys, _image_labels(path, data, keys, offsets), offsets)
    return _insightface(path, data, keys, offsets, first[1])


def _insightface(
    path: Path,
    data: U8,
    keys: I64,
    offsets: I64,
    header: F32,
) -> Records:
    """Key 0 holds (N + 1, N + 1 + K); 1..N are images, then come K ranges (first, past the last)."""
    ranges = _sizes(offsets, len(data)) == _NO_IMAGE
    # Counted, not read: the header's numbers are float32 and round above 2^24.
    end = len(ranges) - int(np.argmin(ranges[::-1])) if not ranges.all() else 1
    images, past = end - 1, len(keys)
    if not images:
        raise FacesError(f"{path.name} holds no images")
    if (np.float32(end), np.float32(past)) != (header[0, 0], header[0, 1]) or keys[-1] != past - 1:
        raise FacesError(
            f"{path.name} announces {header[0, 0] - 1:.0f} images and "
            f"{header[0, 1] - header[0, 0]:.0f} identities; its index holds {images} and {past - end}",
            "copy both files of the same data set again, whole",
        )
    if past > _EXACT or past == end:
        labels = _image_labels(path, data, keys[1:end], offsets[1:end])
    else:
        bounds = _labels_of(data, offsets[end:])[1]
        labels = _range_labels(path, bounds, images)
        if _contradict(path, data, keys[1:end], offsets[1:end], bounds.astype(np.int64)):
            own = _image_labels(path, data, keys[1:end], offsets[1:end])
            people = len(np.unique(own))
            logger.warning(
                "%s: its %d identity ranges contradict its records' own labels, %d people: it was"
                " packed from a list that was not sorted; the records' labels are taken",
                path.name,
                len(bounds),
                people,
            )
            labels = own
    return Records(path, data, keys[1:end], labels, offsets[1:end])


def _range_labels(path: Path, bounds: F32, images: int) -> I64:
    """`(K, 2)` ranges of keys -> the identity of each of the keys 1..N."""
    starts, ends = bounds[:, 0].astype(np.int64), bounds[:, 1].astype(np.int64)
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


def _contradict(path: Path, data: U8, keys: I64, offsets: I64, bounds: I64) -> bool:
    """Whether a range holds records of two labels, or two ranges records of one; `keys` are 1..N.

    The first, middle and last record of each range are read. Records that all have one label do not
    tell people apart at all, and contradict nothing.
    """
    filled = bounds[bounds[:, 0] < bounds[:, 1]]
    first, last = filled[:, 0] - 1, filled[:, 1] - 2
    picks = np.stack([first, (first + last) // 2, last])
    own = _image_labels(path, data, keys[picks.ravel()], offsets[picks.ravel()]).reshape(3, -1)
    if len(np.unique(own)) <= 1:
        return False
    return bool((own != own[0]).any() or len(np.unique(own[0])) < len(filled))


def _image_labels(path: Path, data: U8, keys: I64, offsets: I64) -> I64:
    """The label of each record, or the first of several."""
    parts = []
    for start in range(0, len(offsets), _BLOCK):
        flags, several, single = _labels_of(data, offsets[start : start + _BLOCK])
        parts.append(np.where(flags > 0, several[:, 0], single))
    labels = np.concatenate(parts)
    wrong = np.flatnonzero(~(np.abs(labels) < _MAX_LABEL))  # NaN too
    if len(wrong):
        key = keys[wrong[0]]
        raise _damaged(f"{path.name}, record {key},", f"has the label {labels[wrong[0]]}")
    return labels.astype(np.int64)


def _labels_of(data: U8, offsets: I64) -> tuple[I64, F32, F32]:
    """Of n records: `flags (n,)`, the first two of several labels `(n, 2)`, the single one `(n,)`."""
    reach = np.arange(_NO_IMAGE)
    heads = data[np.minimum(offsets[:, None] + reach, len(data) - 1)]
    for row in np.flatnonzero(heads[:, 7] >> 5 != _WHOLE):  # rare: the magic within a payload
        payload = _payload(data, int(offsets[row]), f"the record at byte {offsets[row]}")
        start = np.frombuffer(payload[: _NO_IMAGE - _HEAD.size], np.uint8)
        heads[row, _HEAD.size : _HEAD.size + len(start)] = start
    words = np.ascontiguousarray(heads[:, _HEAD.size :])
    flags = words[:, :4].copy().view("<u4")[:, 0].astype(np.int64)
    single = words[:, 4:8].copy().view("<f4")[:, 0]
    return flags, words[:, _LABELS.size :].copy().view("<f4"), single


def _payload(data: U8, offset: int, name: str) -> bytes:
    return _record(data, offset, name)[0]


def _record(data: U8, offset: int, name: str) -> tuple[bytes, int]:
    """A record's payload, its parts joined by the magic that the writer left out, and its end."""
    parts: list[bytes] = []
    while True:
        if offset + _HEAD.size > len(data):
            raise _damaged(name, "is cut short: the file ends in it")
        magic, word = _HEAD.unpack(data[offset : offset + _HEAD.size].tobytes())
        kind, length = word >> 29, word & 0x1FFFFFFF
        wanted = (_MIDDLE, _LAST) if parts else (_WHOLE, _FIRST)
        if magic != MAGIC or kind not in wanted:
            raise _damaged(name, f"does not begin a record at byte {offset}")
        start, end = offset + _HEAD.size, offset + _HEAD.size + length
        if end > len(data):
            raise _damaged(name, f"is cut short: {end - len(data)} bytes are missing")
        parts.append(data[start:end].tobytes())
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


def _check_offsets(path: Path, data: U8, offsets: I64) -> None:
    outside = int(((offsets < 0) | (offsets > len(data) - _HEAD.size)).sum())
    if outside:
        raise FacesError(
            f"{path.name} is cut short: {outside} of {len(offsets)} records lie beyond its "
            f"{len(data)} bytes",
            "copy it again, whole",
        )
    last = int(offsets.max())
    end = _record(data, last, f"{path.name}, the last record,")[1]
    if end < len(data):
        raise FacesError(
            f"{path.name} goes on for {len(data) - end} bytes after the last record of its index",
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
