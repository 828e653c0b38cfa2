"""RecordIO, against a plain writer of the format (dmlc-core recordio.h) kept here."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from fr_edge.errors import FacesError
from fr_edge.faces import images as encoded_images
from fr_edge.faces.recordio import open_records
from fr_edge.faces.sources import open_faces, spread_picks

U8 = npt.NDArray[np.uint8]
MAGIC = b"\x0a\x23\xd7\xce"


def _record(payload: bytes) -> bytes:
    """Cut wherever the magic stands at a multiple of 4; those 4 bytes are left out."""
    parts, start = [], 0
    for place in range(0, len(payload) // 4 * 4, 4):
        if payload[place : place + 4] == MAGIC:
            parts.append(payload[start:place])
            start = place + 4
    parts.append(payload[start:])
    out = b""
    for number, part in enumerate(parts):
        kind = 0 if len(parts) == 1 else 1 if number == 0 else 3 if part is parts[-1] else 2
        word = kind << 29 | len(part)
        out += MAGIC + struct.pack("<I", word) + part + b"\0" * (-len(part) % 4)
    return out


def _payload(label: float | tuple[float, ...], image: bytes, key: int = 0) -> bytes:
    if isinstance(label, tuple):
        packed = np.array(label, "<f4").tobytes()
        return struct.pack("<IfQQ", len(label), 0, key, 0) + packed + image
    return struct.pack("<IfQQ", 0, label, key, 0) + image


def _write(folder: Path, payloads: dict[int, bytes], order: list[int] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    data, lines = b"", []
    for key in order or payloads:
        lines.append(f"{key}\t{len(data)}\n")
        data += _record(payloads[key])
    (folder / "train.rec").write_bytes(data)
    (folder / "train.idx").write_text("".join(lines))
    (folder / "property").write_text("3,112,112")
    return folder


def _classic(images: list[bytes], people: list[int]) -> dict[int, bytes]:
    """InsightFace's layout: header, images 1..N, then one range of keys per identity."""
    n, k = len(images), len(people)
    payloads = {0: _payload((n + 1, n + 1 + k), b"")}
    owners = np.repeat(np.arange(k), people)
    for key, image in enumerate(images, 1):
        payloads[key] = _payload(float(owners[key - 1]), image, key)
    first = 1
    for person, count in enumerate(people):
        payloads[n + 1 + person] = _payload((first, first + count), b"")
        first += count
    return payloads


@pytest.fixture
def images(pictures: U8, encode: Callable[[U8], bytes]) -> list[bytes]:
    return [encode(picture) for picture in pictures[:7]]


def test_the_classic_layout(tmp_path: Path, images: list[bytes], pictures: U8) -> None:
    faces = open_faces(_write(tmp_path / "set", _classic(images, [2, 1, 4])))
    assert list(faces.keys) == ["1", "2", "3", "4", "5", "6", "7"]
    assert list(faces.keys[2:4]) == ["3", "4"]
    assert faces.labels.tolist() == [0, 0, 1, 2, 2, 2, 2]
    for index in range(7):
        np.testing.assert_array_equal(faces.read(index), pictures[index])
    assert spread_picks(faces, 3) == [0, 2, 3]


def _from_list(images: list[bytes], labels: list[int]) -> dict[int, bytes]:
    """As insightface's face2rec2 packs a list: a new range wherever the label changes."""
    changes = [i for i in range(len(labels)) if i == 0 or labels[i] != labels[i - 1]]
    starts = [i + 1 for i in changes]
    payloads = {0: _payload((len(images) + 1, len(images) + 1 + len(starts)), b"")}
    for key, (image, label) in enumerate(zip(images, labels, strict=True), 1):
        payloads[key] = _payload(float(label), image, key)
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(images) + 1], strict=True)):
        payloads[len(images) + 1 + number] = _payload((start, end), b"")
    return payloads


def test_a_list_that_was_not_sorted(
    tmp_path: Path, images: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """The records' labels decide: the same people as from the sorted list."""
    labels = [4, 9, 4, 7, 7, 9, 4]
    order = np.argsort(labels, kind="stable")
    kept = open_records(
        _write(tmp_path / "sorted", _from_list([images[i] for i in order], sorted(labels)))
        / "train.rec"
    )
    assert caplog.text == ""
    records = open_records(_write(tmp_path / "set", _from_list(images, labels)) / "train.rec")
    assert records.labels.tolist() == labels
    assert "6 identity ranges contradict its records' own labels, 3 people" in caplog.text
    people = [sorted(kept.image(i) for i in range(7) if kept.labels[i] == p) for p in range(3)]
    mixed = [sorted(images[i] for i in range(7) if labels[i] == p) for p in (4, 7, 9)]
    assert mixed == people
    faces, same = (open_faces(tmp_path / name) for name in ("set", "sorted"))
    assert faces.labels.tolist() == same.labels.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert list(faces.keys) == ["1", "3", "7", "4", "5", "2", "6"]
    for index in range(7):
        assert np.array_equal(faces.read(index), same.read(index))


def test_records_that_all_have_one_label_contradict_nothing(
    tmp_path: Path, images: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    payloads = _classic(images, [2, 1, 4])
    for key in range(1, 8):
        payloads[key] = _payload(0.0, images[key - 1], key)
    records = open_records(_write(tmp_path / "set", payloads) / "train.rec")
    assert records.labels.tolist() == [0, 0, 1, 2, 2, 2, 2]
    assert caplog.text == ""


def test_any_order_on_disk_and_in_the_index(tmp_path: Path, images: list[bytes]) -> None:
    payloads = _classic(images, [2, 1, 4])
    order = [int(key) for key in np.random.default_rng(1).permutation(len(payloads))]
    records = open_records(_write(tmp_path / "set", payloads, order) / "train.rec")
    assert records.keys.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert records.labels.tolist() == [0, 0, 1, 2, 2, 2, 2]
    assert [records.image(index) for index in range(7)] == images


def test_without_a_header_every_record_is_an_image(tmp_path: Path, images: list[bytes]) -> None:
    """As im2rec writes it; labels alone or several, of which the first counts."""
    labels: list[float | tuple[float, ...]] = [7.0, (5.0, 1.0), 7.0, (9.0, 0.0, 3.0), (5.0,)]
    payloads = {
        key: _payload(label, image)
        for key, (label, image) in enumerate(zip(labels, images, strict=False))
    }
    folder = _write(tmp_path / "set", payloads)
    records = open_records(folder / "train.rec")
    assert records.labels.tolist() == [7, 5, 7, 9, 5]
    assert [records.image(index) for index in range(5)] == images[:5]
    faces = open_faces(folder / "train.rec")  # by person
    assert faces.labels.tolist() == [0, 0, 1, 1, 2]
    assert list(faces.keys) == ["1", "4", "0", "2", "3"]


@pytest.mark.parametrize("places", [[0], [4], [8, 12], [0, 4, 8], [400, 404, 9000], [-4], [401]])
def test_the_magic_within_an_image(tmp_path: Path, places: list[int]) -> None:
    """At a multiple of 4 the writer cuts there, elsewhere it does not; both come back whole."""
    image = bytearray(np.random.default_rng(0).bytes(10_000))
    for place in places:
        place %= len(image)
        image[place : place + 4] = MAGIC
    other = bytes(range(200))
    folder = _write(tmp_path / "set", {3: _payload(1.0, bytes(image)), 4: _payload(2.0, other)})
    records = open_records(folder / "train.rec")
    assert records.labels.tolist() == [1, 2]
    assert records.image(0) == bytes(image)
    assert records.image(1) == other


def test_the_magic_within_the_record_header(tmp_path: Path) -> None:
    """In the image's number, ahead of the labels: they lie 4 bytes further on in the file."""
    number = int.from_bytes(MAGIC, "little")
    payload = _payload((6.0, 1.0), b"image", number)
    assert _record(payload).count(MAGIC) == 2
    records = open_records(_write(tmp_path / "set", {8: payload}) / "train.rec")
    assert records.labels.tolist() == [6]
    assert records.image(0) == b"image"


def test_counts_above_float32_are_taken_from_the_index(
    tmp_path: Path, images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where ranges round, each image's own label counts. The border is lowered for the test."""
    payloads = _classic(images, [2, 1, 4])
    payloads[10] = _payload((5, 8), b"")  # a range that would leave image 4 to nobody
    folder = _write(tmp_path / "set", payloads)
    with pytest.raises(FacesError, match="ranges do not cover"):
        open_records(folder / "train.rec")
    monkeypatch.setattr("fr_edge.faces.recordio._EXACT", 5)
    assert open_records(folder / "train.rec").labels.tolist() == [0, 0, 1, 2, 2, 2, 2]


def _rounded_set(
    folder: Path, counts: list[int], own: list[int], moved: tuple[int, int] = (0, 0)
) -> Path:
    """Small records whose ranges are written as float16 holds them: whole up to 2,048, then even."""
    images = [bytes([n % 251]) * 40 for n in range(sum(counts))]
    payloads = _classic(images, counts)
    labels = np.repeat(own, counts)
    for key in range(1, len(images) + 1):
        payloads[key] = _payload(float(labels[key - 1]), images[key - 1], key)
    for key in range(len(images) + 1, len(payloads)):
        bounds = np.frombuffer(payloads[key][-8:], "<f4").astype(np.float16)
        bounds = np.where(bounds == moved[0], np.float16(moved[1]), bounds)
        payloads[key] = _payload(tuple(map(float, bounds)), b"")
    return _write(folder, payloads) / "train.rec"


def _read_places(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Offset and size of each read from now on."""
    places: list[tuple[int, int]] = []
    plain = encoded_images.KeptFile.read

    def read(file: encoded_images.KeptFile, offset: int, size: int) -> bytes:
        places.append((offset, size))
        return plain(file, offset, size)

    monkeypatch.setattr(encoded_images.KeptFile, "read", read)
    return places


@pytest.mark.parametrize("last", [[7, 1, 1, 1, 2, 60, 33], [1001, 1000, 1, 1, 3, 2, 400, 401, 2]])
def test_ranges_that_round_are_made_exact_by_few_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: list[int]
) -> None:
    """By those alone that lie where a border may be. float16 rounds soon, as float32 does late."""
    monkeypatch.setattr("fr_edge.faces.recordio._HELD", np.float16)
    monkeypatch.setattr("fr_edge.faces.recordio._EXACT", 2048)
    monkeypatch.setattr("fr_edge.faces.recordio._GAP", 0)
    counts = [700, 700, 641, *last]
    path = _rounded_set(tmp_path / "set", counts, list(range(50, 50 + len(counts))))
    places = _read_places(monkeypatch)
    expected = np.repeat(np.arange(len(counts)), counts)
    records = open_records(path)
    assert records.labels.tolist() == expected.tolist()
    assert sum(size for _, size in places) < 40 * 15 * len(counts) < 40 * len(expected) // 4


@pytest.mark.parametrize(
    ("counts", "own", "moved"),
    [
        ([2047, 7, 0, 5, 60], [3, 4, 5, 6, 7], (0, 0)),  # at a range without images nothing changes
        ([2047, 7, 5, 60], [3, 4, 4, 6], (0, 0)),  # two ranges of one person
        ([2047, 7, 5, 60], [3, 3, 3, 3], (0, 0)),
        ([2047, 7, 5, 60], [3, 4, 5, 6], (2056, 2054)),  # 2,055 is beside it, and is rounded up
        ([2047, 7, 5, 60], [3, 4, 5, 6], (2056, 2050)),
    ],
)
def test_ranges_that_round_and_do_not_agree_are_not_taken(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    counts: list[int],
    own: list[int],
    moved: tuple[int, int],
) -> None:
    monkeypatch.setattr("fr_edge.faces.recordio._HELD", np.float16)
    monkeypatch.setattr("fr_edge.faces.recordio._EXACT", 2048)
    records = open_records(_rounded_set(tmp_path / "set", counts, own, moved))
    assert records.labels.tolist() == np.repeat(own, counts).tolist()


def test_an_image_is_one_read_of_its_length(
    tmp_path: Path, images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index gives the length, in any order; a mapping would read pages around it."""
    payloads = _classic(images, [2, 1, 4])
    order = [int(key) for key in np.random.default_rng(1).permutation(len(payloads))]
    records = open_records(_write(tmp_path / "set", payloads, order) / "train.rec")
    places = _read_places(monkeypatch)
    for index in (3, 0, 6):
        assert records.image(index) == images[index]
        assert places == [(records.offsets[index], len(_record(payloads[index + 1])))]
        places.clear()


def test_a_file_that_becomes_shorter_is_named(tmp_path: Path, images: list[bytes]) -> None:
    path = _write(tmp_path / "set", _classic(images, [2, 1, 4])) / "train.rec"
    records = open_records(path)
    os.truncate(path, int(records.offsets[5]) + 20)
    assert records.image(4) == images[4]
    with pytest.raises(FacesError, match=r"train\.rec was cut short after it was opened"):
        records.image(5)


@pytest.mark.parametrize(
    "ranges", [[(1, 3), (2, 4), (4, 8)], [(1, 3), (3, 4), (4, 99)], [(1, 1)] * 3]
)
def test_wrong_ranges_are_refused(
    tmp_path: Path, images: list[bytes], ranges: list[tuple[int, int]]
) -> None:
    payloads = _classic(images, [2, 1, 4])
    for key, bounds in enumerate(ranges, 8):
        payloads[key] = _payload(bounds, b"")
    with pytest.raises(FacesError, match="ranges"):
        open_records(_write(tmp_path / "set", payloads) / "train.rec")


def test_files_cut_short_are_refused(tmp_path: Path, images: list[bytes]) -> None:
    folder = _write(tmp_path / "set", _classic(images, [2, 1, 4]))
    whole, index = (folder / "train.rec").read_bytes(), (folder / "train.idx").read_text()
    for end in (1, len(whole) // 2, len(whole) - 4):
        (folder / "train.rec").write_bytes(whole[:end])
        with pytest.raises(FacesError, match="cut short"):
            open_faces(folder)
    (folder / "train.rec").write_bytes(whole)
    for lines in (3, 9):
        (folder / "train.idx").write_text("".join(index.splitlines(True)[:lines]))
        with pytest.raises(FacesError, match="after the last record"):
            open_faces(folder)


def test_a_header_that_counts_otherwise_is_refused(tmp_path: Path, images: list[bytes]) -> None:
    payloads = _classic(images, [2, 1, 4])
    del payloads[3]
    with pytest.raises(FacesError, match="announces 7 images and 3 identities"):
        open_faces(_write(tmp_path / "set", payloads))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "is missing"),
        ("", "is empty"),
        ("hello", "not a RecordIO index"),
        ("1\t2\n3", "not a RecordIO index"),
        ("1\t0\n2\tx\n", "not a RecordIO index"),
        ("1\t0\n1\t0\n", "more than once"),
        ("1\t0\n2\t-8\n", "lie beyond"),
        ("1\t0\n2\t99999999999999999999\n", "lie beyond"),
        ("1\t2\n", "does not begin a record"),
        ("1\té\n", "not a RecordIO index"),
    ],
)
def test_a_bad_index_is_refused(
    tmp_path: Path, images: list[bytes], text: str | None, said: str
) -> None:
    folder = _write(tmp_path / "set", {1: _payload(0.0, images[0])})
    (folder / "train.idx").unlink()
    if text is not None:
        (folder / "train.idx").write_text(text, encoding="utf-8")
    with pytest.raises(FacesError, match=said):
        open_faces(folder)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    folder = _write(tmp_path / "set", {1: _payload(0.0, b"x")})
    (folder / "train.rec").write_bytes(b"")
    with pytest.raises(FacesError, match="empty"):
        open_faces(folder)


def test_a_header_alone_holds_no_images(tmp_path: Path) -> None:
    with pytest.raises(FacesError, match="no images"):
        open_faces(_write(tmp_path / "set", {0: _payload((1, 1), b"")}))


def test_a_damaged_record_is_named_when_it_is_read(tmp_path: Path, images: list[bytes]) -> None:
    folder = _write(tmp_path / "set", _classic(images, [2, 1, 4]))
    offset = int((folder / "train.idx").read_text().splitlines()[3].split("\t")[1])
    data = bytearray((folder / "train.rec").read_bytes())
    data[offset] ^= 255
    (folder / "train.rec").write_bytes(data)
    faces = open_faces(folder)
    faces.read(1)
    with pytest.raises(FacesError, match=r"train\.rec, record 3,"):
        faces.read(2)


@pytest.mark.parametrize(
    "payload",
    [
        struct.pack("<IfQQ", 1 << 30, 0, 0, 0) + b"image",
        b"short",
        struct.pack("<If", 0, 5),
        _payload(float("nan"), b"image"),
        _payload((float("inf"), 1.0), b"image"),
    ],
)
def test_a_record_that_makes_no_sense_is_named(tmp_path: Path, payload: bytes) -> None:
    folder = _write(tmp_path / "set", {1: _payload(0.0, b"image"), 2: payload})
    with pytest.raises(FacesError, match="record 2,"):
        open_records(folder / "train.rec").image(1)
