"""`.bin` sets: every way they are pickled is read, and no pickle gets to run anything."""

import os
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fr_edge.errors import FacesError, UsageError
from fr_edge.faces.bin_sets import connected_labels, read_bin
from fr_edge.faces.pairs import read_pairs
from fr_edge.faces.sources import open_faces

U8 = npt.NDArray[np.uint8]
# images 0..3 with 0 and 2 equal, answers yes and no; as Python 2 wrote it: text is bytes
PYTHON_2 = b"(lp0\nS'one\\xff'\np1\naS'two'\np2\nag1\naS'three'\np3\na(lp4\nI01\naI00\na\x86p5\n."


@pytest.fixture
def images(pictures: U8, encode: Callable[[U8], bytes]) -> list[bytes]:
    return [encode(picture) for picture in pictures]


def _write(path: Path, stored: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(stored, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", [bytes, bytearray, "array"])
@pytest.mark.parametrize("answers", [list, tuple, "array", "numpy bools", "numbers"])
def test_every_pickling_is_read(
    tmp_path: Path, images: list[bytes], protocol: int, kind: Any, answers: Any
) -> None:
    truth = [True, False, True, True, False, False]
    made = {
        "array": np.array(truth),
        "numpy bools": list(np.array(truth)),
        "numbers": [1, 0, 1, 1, 0, 0],
    }
    same = made[answers] if isinstance(answers, str) else answers(truth)
    bins = [np.frombuffer(i, np.uint8) if kind == "array" else kind(i) for i in images]
    stored = read_bin(_write(tmp_path / "x.bin", (bins, same), protocol))
    assert list(stored.images) == images
    assert stored.first.tolist() == [0, 2, 4, 6, 8, 10]
    assert stored.second.tolist() == [1, 3, 5, 7, 9, 11]
    assert stored.same.tolist() == truth


def test_python_2_text_is_bytes_and_equal_images_are_one(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(PYTHON_2)
    stored = read_bin(tmp_path / "x.bin")
    assert stored.images == (b"one\xff", b"two", b"three")
    assert (stored.first.tolist(), stored.second.tolist()) == ([0, 0], [1, 2])
    assert stored.same.tolist() == [True, False]


class _Runs:
    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_wants_to_run_code_is_refused(
    tmp_path: Path, images: list[bytes], protocol: int
) -> None:
    trace = tmp_path / "trace"
    for function, args in [
        (os.mkdir, (str(trace),)),
        (eval, (f"__import__('os').mkdir({str(trace)!r})",)),
        (getattr, (0, "real")),
        (np.load, (str(trace),)),
    ]:
        for stored in [_Runs(function, *args), ([_Runs(function, *args), *images[1:]], [True] * 6)]:
            _write(tmp_path / "x.bin", stored, protocol)
            with pytest.raises(FacesError, match="asks for") as caught:
                read_bin(tmp_path / "x.bin")
            assert "x.bin" in caught.value.message
            assert not trace.exists()


def test_known_names_run_nothing_either(tmp_path: Path) -> None:
    """`bytes(10**12)` would take all memory; here it is a box with a number in it."""
    stored = ([_Runs(bytes, 10**12), b"x"], [True])
    assert read_bin(_write(tmp_path / "x.bin", stored)).images == (b"", b"x")


def test_a_box_within_itself_is_refused(tmp_path: Path) -> None:
    box = b"cnumpy\ndtype\np0\n(I0\ng0\ntRp1\n(g1\ng1\ntb"
    (tmp_path / "x.bin").write_bytes(b"((l" + box + b"ag1\na(lI01\nat.")
    with pytest.raises(FacesError, match="not a .bin verification set"):
        read_bin(tmp_path / "x.bin")


@pytest.mark.parametrize(
    "stored",
    [
        [],
        ([], []),
        ([b"1"], [True]),
        ([b"1", b"2", b"3"], [True]),
        ([1, 2], [True]),
        ([[b"1"], [b"2"]], [True]),
        (b"12", [True]),
        ({"a": b"1"}, [True]),
        (None, None),
        "text",
        7,
    ],
)
def test_other_contents_are_refused(tmp_path: Path, stored: Any) -> None:
    with pytest.raises(FacesError, match=r"x\.bin"):
        read_bin(_write(tmp_path / "x.bin", stored))


def test_damage_is_refused(tmp_path: Path, images: list[bytes]) -> None:
    data = pickle.dumps((images, [True] * 6), 2)
    rng = np.random.default_rng(3)
    cases = [b"", b"hello", data[:-20], data[: len(data) // 2], b"\x80\x05\x95" + b"\xff" * 8]
    cases += [rng.bytes(300) for _ in range(300)]
    for case in cases:
        (tmp_path / "x.bin").write_bytes(case)
        with pytest.raises(FacesError, match=r"x\.bin"):
            read_bin(tmp_path / "x.bin")
    with pytest.raises(FacesError, match="cannot be read"):
        read_bin(tmp_path / "gone.bin")


@pytest.mark.parametrize(
    ("pairs", "wanted"),
    [
        ([(0, 1), (4, 2), (2, 4), (4, 5)], [0, 0, 2, 1, 2, 2, 3]),
        ([(0, 1), (0, 2), (3, 0), (5, 6), (6, 3)], [0, 0, 0, 0, 1, 0, 0]),
        ([(6, 6)], [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_labels_are_equal_for_items_that_pairs_connect(
    pairs: list[tuple[int, int]], wanted: list[int]
) -> None:
    labels = connected_labels(7, *np.array(pairs).T)
    same = labels[:, None] == labels[None, :]
    np.testing.assert_array_equal(same, np.equal.outer(wanted, wanted))
    assert sorted(set(labels.tolist())) == list(range(max(wanted) + 1))


def test_a_set_is_a_pair_list_in_ten_folds(
    tmp_path: Path, images: list[bytes], pictures: U8
) -> None:
    same = [k % 2 == 0 for k in range(23)]
    bins = [images[k % 12] for k in range(46)]
    path = _write(tmp_path / "x.bin", (bins, same))
    pairs = read_pairs(path)
    assert np.bincount(pairs.fold).tolist() == [3, 3, 3, 2, 2, 2, 2, 2, 2, 2]
    assert (np.diff(pairs.fold) >= 0).all()
    assert pairs.same.tolist() == same
    assert len(pairs.faces) == 12
    np.testing.assert_array_equal(pairs.faces.read(int(pairs.second[7])), pictures[15 % 12])
    assert not pairs.faces.labelled
    labels = pairs.faces.labels
    assert (labels[pairs.first] == labels[pairs.second])[pairs.same].all()
    assert list(open_faces(path).keys) == list(pairs.faces.keys)
    with pytest.raises(UsageError, match="its own images"):
        read_pairs(path, tmp_path)


@pytest.mark.parametrize("same", [[True] * 12, [False] * 12, [True, False] * 3])
def test_too_few_or_one_kind_is_refused(
    tmp_path: Path, images: list[bytes], same: list[bool]
) -> None:
    path = _write(tmp_path / "x.bin", ([*images, *images][: 2 * len(same)], same))
    with pytest.raises(FacesError, match="of both kinds"):
        read_pairs(path)


def test_an_image_that_is_none_is_named(tmp_path: Path, images: list[bytes]) -> None:
    path = _write(tmp_path / "x.bin", ([b"spoilt", *images[1:]], [True] * 6))
    with pytest.raises(FacesError, match=r"x\.bin/00000 is not an image"):
        open_faces(path).read(0)


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x80\x04r\xff\xff\xff\x7f.",  # 9 bytes: value 2^31 - 1 of a table that is made that long
        b"\x80\x04]r\xff\xff\xff\x0f.",
        b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b".",  # a text of 1 TB
        b"\x80\x04\x95" + (1 << 40).to_bytes(8, "little") + b"N.",  # a frame of 1 TB
        b"p2147483647\n.",
    ],
)
def test_a_pickle_that_asks_for_memory_is_refused(bomb: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(bomb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FacesError):
        read_bin(tmp_path / "x.bin")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 100_000  # kB


def test_a_text_that_is_copied_often_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A megabyte that a pickle refers to a thousand times, each to be encoded anew."""
    text = b"X" + (1 << 20).to_bytes(4, "little") + b"a" * (1 << 20) + b"q\0"
    encode = b"c_codecs\nencode\n(h\0X\x06\0\0\0latin1tR"
    images = b"](" + text + b"0" + encode * 1000 + b"e"
    (tmp_path / "x.bin").write_bytes(b"\x80\x02" + images + b"](" + b"\x88" * 500 + b"e\x86.")
    monkeypatch.setenv("FR_EDGE_MAX_SET_MB", "8")
    with pytest.raises(FacesError, match="larger than 8 MB"):
        read_bin(tmp_path / "x.bin")
