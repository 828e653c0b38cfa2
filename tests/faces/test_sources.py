"""Sources: what is found, in which order, whose it is, and what is said of the rest."""

import contextlib
import dataclasses
import io
import os
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from fr_edge.bundle.provenance import with_digests
from fr_edge.errors import FacesError
from fr_edge.faces import archives, images
from fr_edge.faces.contract import PRESETS, InputSpec, preprocess
from fr_edge.faces.quality import faces_for, size_warning
from fr_edge.faces.sources import Faces, open_faces, readable, spread_picks
from fr_edge.faces.synthetic.render import draw_face

U8 = npt.NDArray[np.uint8]
KEYS = ["anna/1.png", "anna/2.png", "anna/3.png", "bo/1.png", "bo/2.png", "deep/cyd/1.png"]


def _tar(path: Path, folder: Path, names: list[str], kind: str = "w") -> Path:
    with tarfile.open(path, kind) as archive:  # type: ignore[call-overload]
        for name in names:
            archive.add(folder / name, f"./{name}")
    return path


def test_a_folder_is_sorted_and_labelled_by_folder(people: Path, pictures: U8) -> None:
    (people / "labels.csv").write_text("path,label\n")
    (people / ".hidden").mkdir()
    (people / ".hidden" / "x.png").write_bytes(b"no")
    (people / "bo" / "._1.png").write_bytes(b"left by a Mac")
    faces = open_faces(people)
    assert list(faces.keys) == KEYS
    assert faces.labels.tolist() == [0, 0, 0, 1, 1, 2]
    assert (len(faces), faces.identities, faces.synthetic, faces.labelled) == (6, 3, False, True)
    for index in range(6):
        np.testing.assert_array_equal(faces.read(index), pictures[index])


def test_an_identity_is_the_whole_path_of_its_folder(people: Path) -> None:
    (people / "bo" / "cyd").mkdir()
    (people / "bo" / "cyd" / "1.png").write_bytes((people / KEYS[0]).read_bytes())
    (people / "loose.png").write_bytes((people / KEYS[0]).read_bytes())
    faces = open_faces(people)
    assert list(faces.keys[3:]) == ["bo/1.png", "bo/2.png", "bo/cyd/1.png", *KEYS[5:], "loose.png"]
    assert faces.labels.tolist() == [1, 1, 1, 2, 2, 3, 4, 0]


def test_batches_follow_the_picks(people: Path, pictures: U8) -> None:
    faces = open_faces(people)
    shapes = [batch.shape for batch in faces.batches(4)]
    assert shapes == [(4, 112, 112, 3), (2, 112, 112, 3)]
    batch = np.concatenate(list(faces.batches(2, [5, 0, 3])))
    np.testing.assert_array_equal(batch, pictures[[5, 0, 3]])


def test_a_tar_is_the_folder(people: Path, tmp_path: Path, pictures: U8) -> None:
    faces = open_faces(_tar(tmp_path / "people.tar", people, KEYS))
    assert list(faces.keys) == KEYS
    assert faces.labels.tolist() == [0, 0, 0, 1, 1, 2]
    np.testing.assert_array_equal(faces.read(4), pictures[4])


def test_shards_are_one_source(people: Path, tmp_path: Path, pictures: U8) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    _tar(shards / "1.tar", people, KEYS[3:])
    _tar(shards / "2.tar", people, KEYS[:3])
    faces = open_faces(shards)
    assert list(faces.keys) == KEYS
    np.testing.assert_array_equal(faces.read(3), pictures[3])
    _tar(shards / "3.tar", people, KEYS[:1])
    with pytest.raises(FacesError, match=r"both hold anna/1\.png"):
        open_faces(shards)


def _webdataset(path: Path, samples: dict[str, tuple[bytes, bytes | None]]) -> Path:
    """A shard as webdataset writes it: the members of a sample one after the other."""
    with tarfile.open(path, "w") as archive:
        for name, (image, number) in samples.items():
            parts = {"png": image, "json": b"{}"} | ({"cls": number} if number else {})
            for kind, data in parts.items():
                member = tarfile.TarInfo(f"{name}.{kind}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


def test_webdataset_gives_classes_by_number(people: Path, tmp_path: Path, pictures: U8) -> None:
    encoded = [(people / key).read_bytes() for key in KEYS]
    shards = tmp_path / "shards"
    shards.mkdir()
    numbers = [b"85741", b"7\n", b"85741", b"10", b"7", b"10"]
    samples = {f"{n:06}": pair for n, pair in enumerate(zip(encoded, numbers, strict=True))}
    _webdataset(shards / "0.tar", dict(list(samples.items())[:2]))
    _webdataset(shards / "1.tar", dict(list(samples.items())[2:]))
    faces = open_faces(shards)
    assert faces.labels.tolist() == [2, 0, 2, 1, 0, 1]
    assert faces.labels.dtype == np.int64
    np.testing.assert_array_equal(faces.read(4), pictures[4])


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (None, "1 of 2 images have no class, for example 1.png"),
        (b"anna", "1.cls holds b'anna', expected the number"),
        (b"-3", "expected the number"),
        (b"9" * 19, "expected the number"),
        (b"7" + b" " * 5000, "expected the number"),
        ("\N{SUPERSCRIPT TWO}".encode(), "expected the number"),
    ],
)
def test_classes_that_are_none(
    people: Path, tmp_path: Path, number: bytes | None, message: str
) -> None:
    image = (people / KEYS[0]).read_bytes()
    shard = _webdataset(tmp_path / "a.tar", {"0": (image, b"1"), "1": (image, number)})
    with pytest.raises(FacesError, match=message):
        open_faces(shard)


def test_images_beside_a_tar_come_first(people: Path) -> None:
    (people / "backup.tar").write_bytes(b"none at all")
    assert len(open_faces(people)) == 6


def _header(size: int) -> bytes:
    """The header of an image in a tar."""
    header = bytearray(tarfile.TarInfo("a/0.png").tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = (b"\xff" if size < 0 else b"\x80") + size.to_bytes(11, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def test_bad_tars_are_refused(people: Path, tmp_path: Path) -> None:
    whole = _tar(tmp_path / "people.tar", people, KEYS).read_bytes()
    cases = {"text.tar": b"hello" * 400, "cut.tar": whole[:700], "empty.tar": b""}
    last = whole.rindex(b"IEND")
    cases["almost.tar"] = whole[: last - 200]
    for size in (
        -1,
        -512,
        -(2**62),
    ):  # in GNU's base 256; of -512 bytes is an endless loop in tarfile
        cases[f"size {size}.tar"] = _header(0) + _header(size) + whole
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(FacesError, match=name):
            open_faces(tmp_path / name)
    packed = _tar(tmp_path / "packed.tar", people, KEYS, "w:gz")
    with pytest.raises(FacesError) as caught:
        open_faces(packed)
    assert "unpack a compressed one" in caught.value.hint
    (people / "notes.txt").write_text("hello")
    with pytest.raises(FacesError, match="holds no images"):
        open_faces(_tar(tmp_path / "texts.tar", people, ["notes.txt"]))


def _shard(path: Path, count: int, **options: object) -> list[tarfile.TarInfo]:
    """Images and classes as webdataset's ShardWriter lays them, with times of fractions."""
    with tarfile.open(path, "w|", **options) as archive:  # type: ignore[call-overload]
        for number in range(count):
            for kind, data in (("jpg", b"image" * (100 + number)), ("cls", b"%d" % (number // 5))):
                member = tarfile.TarInfo(f"{path.stem}{number:04}.{kind}")
                member.size, member.mtime = len(data), 1.7e9 + number / 8
                archive.addfile(member, io.BytesIO(data))
    with tarfile.open(path) as archive:
        return archive.getmembers()


def _overwritten(data: bytes, at: int, end: int, new: bytes) -> bytes:
    return data[:at] + new * (end - at) + data[end:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data, at: _overwritten(data, at, at + 512, b"\xff"), "no header of a member"),
        (
            lambda data, at: _overwritten(data, at, at + 1024, b"\0"),
            "zeros end a tar here, and yet",
        ),
        (lambda data, at: data[:at], "the file ends here"),
        (lambda data, at: data[: at + 300], "no header of a member"),
        (lambda data, at: data[: at + 512], "bytes are announced, 0 follow"),
    ],
)
def test_a_tar_that_is_damaged_within_is_refused_with_its_place(
    tmp_path: Path, damage: Callable[[bytes, int], bytes], message: str
) -> None:
    """Python's reader takes such a place for the end of the file, and leaves out the rest."""
    _shard(tmp_path / "a.tar", 50)
    member = _shard(tmp_path / "b.tar", 50)[40]
    assert len(open_faces(tmp_path)) == 100
    whole = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(damage(whole, member.offset))
    with pytest.raises(FacesError, match=message) as caught:
        open_faces(tmp_path)
    numbers = [member.offset, member.offset + 512, member.offset + 1024]  # it is three headers long
    assert any(f"b.tar cannot be read at byte {n}: " in caught.value.message for n in numbers)


def test_what_ends_a_tar(tmp_path: Path) -> None:
    """Two zero blocks and padding of any length; one block misses no member, and none is a cut."""
    _shard(tmp_path / "a.tar", 3)
    whole = (tmp_path / "a.tar").read_bytes()
    members = whole.rstrip(b"\0")
    members += bytes(-len(members) % 512)
    for blocks in (1, 2, 3, 400, 5000):
        (tmp_path / "a.tar").write_bytes(members + bytes(blocks * 512))
        assert len(open_faces(tmp_path)) == 3
    for end in (b"", bytes(300)):
        (tmp_path / "a.tar").write_bytes(members + end)
        with pytest.raises(FacesError, match=f"at byte {len(members)}: the file ends here"):
            open_faces(tmp_path)
    (tmp_path / "a.tar").write_bytes(whole + whole)
    with pytest.raises(FacesError, match=f"goes on at byte {len(whole)}") as caught:
        open_faces(tmp_path)
    assert "`tar --ignore-zeros`" in caught.value.hint


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_all_formats_are_read_as_by_python(tmp_path: Path, kind: int) -> None:
    """Long names, other kinds of members and times of fractions stand in headers of their own."""
    long = "/".join(["folder" * 10] * 3)
    files = {"./b/1.jpg": b"1", "b//2.jpg": b"x" * 512, f"{long}/3.jpg": b"y" * 513, "b/4.jpg": b""}
    if kind != tarfile.USTAR_FORMAT:
        files |= {f"{long}/{long}/\N{LATIN SMALL LETTER E WITH ACUTE}.jpg": b"z" * 5000}
    with tarfile.open(tmp_path / "a.tar", "w", format=kind) as archive:
        for name, data in files.items():
            for other in (tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
                member = tarfile.TarInfo(f"{name}.of.{other.decode()}.jpg")
                member.type, member.linkname = other, "b/1.jpg"
                member.size = 700  # of what it links to: nothing follows
                archive.addfile(member)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    faces = open_faces(tmp_path / "a.tar")
    expected = {name.replace("./", "").replace("//", "/"): data for name, data in files.items()}
    assert faces.encoded is not None
    assert {key: faces.encoded(i) for i, key in enumerate(faces.keys)} == expected
    assert list(faces.keys) == sorted(expected)


def test_headers_that_extend_others_are_bounded(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    _shard(shard, 2, format=tarfile.GNU_FORMAT)
    whole = shard.read_bytes()
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 9
    block = name.tobuf(tarfile.GNU_FORMAT) + b"a0000.png".ljust(512, b"\0")
    shard.write_bytes(block * 5000 + whole)  # each extends the next: no recursion
    faces = open_faces(shard)
    assert list(faces.keys) == ["a0000.png", "a0001.jpg"]
    name.size = 2 << 20
    shard.write_bytes(name.tobuf(tarfile.GNU_FORMAT) + bytes(2 << 20) + whole)
    with pytest.raises(FacesError, match="a name or what is beside it has 2097152 bytes"):
        open_faces(shard)
    for pax in (b"99 path=x\n", b"0 path=x\n", b"x", b"9 path=x"):
        header = tarfile.TarInfo("pax")
        header.type, header.size = tarfile.XHDTYPE, len(pax)
        shard.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + pax.ljust(512, b"\0") + whole)
        with pytest.raises(FacesError, match="a record of a pax header is damaged"):
            open_faces(shard)
    for pax in (b"22 GNU.sparse.major=1\n", b"22 GNU.sparse.minor=0\n"):
        header.size = len(pax)
        shard.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + pax.ljust(512, b"\0") + whole)
        with pytest.raises(FacesError, match="without --sparse"):
            open_faces(shard)


def test_a_shard_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is opened once for its headers and once for its images, by a process and its children."""
    opened: list[str] = []

    class Counted(images.KeptFile):
        def __init__(self, path: Path) -> None:
            opened.append(path.name)
            super().__init__(path)

    monkeypatch.setattr(archives, "KeptFile", Counted)
    for name in "ab":
        _shard(tmp_path / f"{name}.tar", 5)
    faces = open_faces(tmp_path)
    assert faces.encoded is not None
    for index in [*range(10), *range(9, -1, -1)]:
        assert faces.encoded(index) == b"image" * (100 + index % 5)
    assert opened == ["a.tar", "b.tar"] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads that other tests left
        child = os.fork()
    if not child:
        failed = 1
        with contextlib.suppress(BaseException):
            failed = int(faces.encoded(7) != b"image" * 102 or len(opened) != 4)
        os._exit(failed)
    assert os.waitpid(child, 0)[1] == 0
    os.truncate(tmp_path / "b.tar", 600)
    with pytest.raises(FacesError, match="cut short after it was opened"):
        faces.encoded(9)


def test_names_in_one_block_are_a_sequence() -> None:
    texts = ("a", "", "\N{LATIN SMALL LETTER E WITH ACUTE}/1.jpg", "zz")
    names = archives.Names.joined([archives.Names(texts[:2]), archives.Names(texts[2:])])
    assert tuple(names) == texts
    assert (len(names), names[-1], names[1:3], names[::-1]) == (4, "zz", texts[1:3], texts[::-1])
    assert (names.index("zz"), "a" in names, "b" in names) == (3, True, False)
    with pytest.raises(IndexError):
        names[4]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "there are no faces at"),
        (lambda path: path.mkdir(), "holds no images"),
        (lambda path: (path / "a").mkdir(parents=True), "holds no images"),
        (lambda path: path.write_text("hello"), "not a file of faces"),
    ],
)
def test_nothing_there_is_said(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    make(tmp_path / "src")
    with pytest.raises(FacesError, match=said):
        open_faces(tmp_path / "src")


@pytest.mark.parametrize("text", ["x" * 5000, "nul\0", ""])
def test_impossible_paths_are_not_there(text: str, tmp_path: Path) -> None:
    with pytest.raises(FacesError):
        open_faces(f"{tmp_path}/{text}")


def test_a_folder_of_texts_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(FacesError, match="holds no images"):
        open_faces(tmp_path)


def test_unicode_names_work_and_broken_ones_are_named(people: Path, pictures: U8) -> None:
    name = "Жозé　宏\u200d/1.png"
    (people / name).parent.mkdir()
    (people / name).write_bytes((people / KEYS[0]).read_bytes())
    faces = open_faces(people)
    np.testing.assert_array_equal(faces.read(list(faces.keys).index(name)), pictures[0])
    try:
        Path(os.fsdecode(os.fsencode(people) + b"/bo/\xff.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes text alone")
    with pytest.raises(FacesError, match="not UTF-8") as caught:
        open_faces(people)
    caught.value.message.encode()


def test_links_are_followed_once(people: Path) -> None:
    (people / "anna" / "loop").symlink_to(people)
    (people / "anna" / "self").symlink_to(people / "anna")
    elsewhere = people.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "9.png").write_bytes((people / KEYS[0]).read_bytes())
    (people / "dan").symlink_to(elsewhere)
    assert list(open_faces(people).keys) == [*KEYS[:5], "dan/9.png", KEYS[5]]


def test_an_unreadable_file_is_named_when_it_is_read(people: Path) -> None:
    (people / "bo" / "3.png").symlink_to(people / "gone.png")
    faces = open_faces(people)
    with pytest.raises(FacesError, match=r"bo/3\.png cannot be read"):
        faces.read(5)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_locked_folder_is_named(people: Path) -> None:
    (people / "bo").chmod(0)
    with pytest.raises(FacesError, match="bo cannot be listed"):
        open_faces(people)


def test_synthetic_faces_are_those_of_draw_face() -> None:
    faces = open_faces("synthetic:3x2@9")
    assert (len(faces), faces.identities, faces.synthetic) == (6, 3, True)
    assert faces.labels.tolist() == [0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(faces.read(3), draw_face(1, 1, 9))


@pytest.mark.parametrize(
    "text",
    [
        "synthetic:",
        "synthetic:0x3",
        "synthetic:3",
        "synthetic:-1x2",
        "synthetic:2x2@x",
        "synthetic:٣x٣",
        "synthetic:99999999999x9",
        "synthetic:999999x999999",
    ],
)
def test_other_texts_are_not(text: str) -> None:
    with pytest.raises(FacesError, match="IDSxIMAGES"):
        open_faces(text)


def _labelled(counts: list[int]) -> Faces:
    labels = np.repeat(np.arange(len(counts)), counts)
    return Faces(
        "here", tuple(map(str, labels)), labels, lambda index: np.zeros((112, 112, 3), np.uint8)
    )


def test_spread_takes_many_people_before_many_images() -> None:
    faces = _labelled([5, 1, 3])
    assert spread_picks(faces, 3) == [0, 5, 6]
    assert spread_picks(faces, 5) == [0, 5, 6, 1, 7]
    assert spread_picks(faces, 9) == spread_picks(faces, 99) == [0, 5, 6, 1, 7, 2, 8, 3, 4]
    assert spread_picks(faces, 0) == []
    assert spread_picks(_labelled([1] * 100), 4) == [0, 25, 50, 75]


def test_spread_of_many_faces_takes_as_many_of_each() -> None:
    picks = spread_picks(_labelled([1000] * 300), 299_500)
    assert len(set(picks)) == 299_500
    assert set(np.bincount(np.array(picks) // 1000)) == {998, 999}


def test_readable_leaves_out_as_many_as_it_may(people: Path) -> None:
    for name in ("anna/2.png", "bo/1.png"):
        (people / name).write_bytes(b"spoilt")
    faces = open_faces(people)
    assert [index for index, _ in readable(faces, range(6), 2)] == [0, 2, 4, 5]
    with pytest.raises(FacesError, match=r"bo/1\.png.*1 others"):
        list(readable(faces, range(6), 1))


def test_a_larger_network_reads_the_stored_pixels(
    people: Path, encode: Callable[[U8], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    large = np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)
    (people / "bo" / "1.png").write_bytes(encode(large))
    usual, spec = open_faces(people), InputSpec(height=160, width=120)
    faces = faces_for(usual, spec)
    assert "5 of 6 faces looked at are enlarged to the 160x160 pixels" in caplog.text
    assert "`fr-edge align --size 160`" in caplog.text
    here = faces.keys.index("bo/1.png")
    for source in (
        faces,
        faces.cached(),
        faces.subset([here, 0]).subset([0]),
        with_digests(faces)[0],
    ):
        index = 0 if len(source) == 1 else here
        assert np.array_equal(source.read(index), large)
        assert source.side == 160
    assert np.array_equal(
        preprocess(large[None], PRESETS["raw"]), preprocess(usual.read(here)[None], PRESETS["raw"])
    )
    # An enlarged crop is what it was; an image has one digest for networks of all sizes.
    wide = preprocess(np.stack([faces.read(0)]), spec)
    assert np.array_equal(wide, preprocess(np.stack([usual.read(0)]), spec))
    digests = [with_digests(source) for source in (usual, faces)]
    for source, _ in digests:
        assert len(list(source.batches(4))) == 2
    assert digests[0][1].by_index == digests[1][1].by_index
    assert with_digests(usual)[0].sized(160).read(here).shape == (160, 160, 3)  # no longer decodes


def test_other_sizes_are_noted(people: Path, encode: Callable[[U8], bytes]) -> None:
    assert size_warning(open_faces(people)) == ""
    assert size_warning(open_faces("synthetic:2x2")) == ""
    (people / "bo" / "1.png").write_bytes(encode(np.zeros((60, 50, 3), np.uint8)))
    (people / "bo" / "2.png").write_bytes(b"spoilt")
    assert "1 of 6" in size_warning(open_faces(people))
    assert "bo/1.png is 50x60" in size_warning(open_faces(people))


@pytest.mark.real
def test_the_real_tar_is_what_its_readme_says(real_data: Path) -> None:
    faces = open_faces(real_data / "faces_dev.tar")
    assert (len(faces), faces.identities) == (10_076, 2_923)
    assert size_warning(faces) == ""
    picks = spread_picks(faces, 64)
    assert len({int(faces.labels[i]) for i in picks}) == 64
    batch = next(faces.batches(64, picks))
    assert 60 < batch.mean() < 180


def test_cached_faces_are_decoded_once(people: Path, pictures: U8) -> None:
    decoded: list[int] = []
    faces = open_faces(people)

    def read(index: int) -> U8:
        decoded.append(index)
        return faces.read(index)

    counted = dataclasses.replace(faces, read=read)
    cached = counted.cached()
    for _ in range(2):
        np.testing.assert_array_equal(next(cached.batches(6)), pictures[:6])
    assert decoded == [0, 1, 2, 3, 4, 5]
    decoded.clear()
    some = counted.cached(picks=[1, 4])
    for index in (1, 2, 4, 1, 2, 4):
        some.read(index)
    assert decoded == [1, 2, 4, 2]


def test_a_cached_face_that_cannot_be_decoded_raises_every_time(people: Path) -> None:
    (people / "bo" / "1.png").write_bytes(b"")
    cached = open_faces(people).cached()
    for _ in range(2):
        with pytest.raises(FacesError, match="empty"):
            cached.read(3)


def test_a_subset_is_a_source_of_its_own(people: Path, pictures: U8) -> None:
    some = open_faces(people).subset([4, 0])
    assert list(some.keys) == [KEYS[4], KEYS[0]]
    assert some.labels.tolist() == [1, 0]
    np.testing.assert_array_equal(some.read(0), pictures[4])
    assert some.encoded is not None
    assert some.encoded(1) == (people / KEYS[0]).read_bytes()


def test_files_left_out_are_counted_by_kind(
    tmp_path: Path, encode: Callable[[U8], bytes], pictures: U8, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for name in ("anna/1.png", "anna/2.PNG", "anna/3.heic", "anna/4.heic", "notes"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encode(pictures[0]))
    assert list(open_faces(tmp_path).keys) == ["anna/1.png", "anna/2.PNG"]
    assert "not read as images: 2 of .heic, 1 of no suffix" in caplog.text
    assert "anna" not in caplog.text.replace(str(tmp_path), "")
