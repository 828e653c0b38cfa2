"""Pair lists: three layouts, one value; what cannot be used is counted and named."""

import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from fr_edge.errors import FacesError, UsageError
from fr_edge.faces import pairs as module
from fr_edge.faces.pairs import read_groups, read_pairs
from fr_edge.faces.sources import open_faces

U8 = npt.NDArray[np.uint8]
HEADER = "fold,path1,path2,same\n"
ROWS = (
    "0,bo/2.png,bo/1.png,1\n"
    "0,anna/3.png,deep/cyd/1.png,0\n"
    "7,anna/1.png,anna/3.png,1\n"
    "7,bo/1.png,anna/3.png,0\n"
)


def _list(folder: Path, rows: str, header: str = HEADER) -> Path:
    path = folder / "pairs.csv"
    path.write_text(header + rows, encoding="utf-8")
    return path


def test_a_csv_beside_its_faces(people: Path, pictures: U8) -> None:
    pairs = read_pairs(_list(people, ROWS))
    names = [
        (pairs.faces.keys[a], pairs.faces.keys[b])
        for a, b in zip(pairs.first, pairs.second, strict=True)
    ]
    assert names[0] == ("bo/2.png", "bo/1.png")
    assert names[3] == ("bo/1.png", "anna/3.png")
    assert pairs.fold.tolist() == [0, 0, 7, 7]
    assert pairs.same.tolist() == [True, False, True, False]
    assert len(pairs) == 4
    # anna/2 is in no pair, so it is not among the faces
    assert list(pairs.faces.keys) == [
        "anna/1.png",
        "anna/3.png",
        "bo/1.png",
        "bo/2.png",
        "deep/cyd/1.png",
    ]
    assert pairs.faces.labels.tolist() == [0, 0, 1, 1, 2]
    assert pairs.faces.labelled
    np.testing.assert_array_equal(pairs.faces.read(3), pictures[4])


def test_a_list_of_photographs_names_their_crops(people: Path) -> None:
    """`align` writes a/b.png of a/b.jpg: the list stays as it is."""
    rows = ROWS.replace("2.png", "2.jpg").replace("deep/cyd/1.png", "deep/cyd/1.jpeg")
    crops, plain = read_pairs(_list(people, rows)), read_pairs(_list(people, ROWS))
    assert crops.faces.keys == plain.faces.keys
    assert np.array_equal(crops.first, plain.first)
    with pytest.raises(FacesError, match="1 of them are not in .*missing/7.jpg"):
        read_pairs(_list(people, ROWS.replace("anna/1.png", "missing/7.jpg")))


def test_the_same_from_anywhere(people: Path, tmp_path: Path) -> None:
    """A folder, a tar and shards with images the list does not name: equal pairs, equal faces."""
    path = _list(tmp_path, ROWS)
    with tarfile.open(tmp_path / "people.tar", "w") as archive:
        archive.add(people, ".")
    shards = tmp_path / "shards"
    shards.mkdir()
    shutil.copy(tmp_path / "people.tar", shards / "0.tar")
    plain = read_pairs(path, people)
    for source in (tmp_path / "people.tar", shards):
        pairs = read_pairs(path, source)
        assert list(pairs.faces.keys) == list(plain.faces.keys)
        for name in ("fold", "first", "second", "same"):
            np.testing.assert_array_equal(getattr(pairs, name), getattr(plain, name))
        assert pairs.faces.labels.tolist() == plain.faces.labels.tolist()
        assert pairs.faces.labelled
        for index in range(len(pairs.faces)):
            np.testing.assert_array_equal(pairs.faces.read(index), plain.faces.read(index))
        assert pairs.faces.encoded is not None
        assert plain.faces.encoded is not None
        assert pairs.faces.encoded(2) == plain.faces.encoded(2)


def test_synthetic_faces_may_be_paired(tmp_path: Path) -> None:
    path = _list(tmp_path, "0,00000/000,00000/001,1\n0,00000/000,00001/001,0\n")
    pairs = read_pairs(path, "synthetic:2x2")
    assert pairs.faces.synthetic
    assert pairs.faces.labels.tolist() == [0, 0, 1]


def test_spreadsheets_and_quotes_are_read(people: Path) -> None:
    (people / "anna" / "a,b.png").write_bytes((people / "anna/1.png").read_bytes())
    text = "\ufeff" + HEADER + '0,"anna/a,b.png",./anna/1.png,1\n\n0,bo/1.png,anna/1.png,0\n'
    (people / "pairs.csv").write_bytes(text.replace("\n", "\r\n").encode())
    assert list(read_pairs(people / "pairs.csv").faces.keys) == [
        "anna/1.png",
        "anna/a,b.png",
        "bo/1.png",
    ]


def test_a_flat_folder_is_labelled_by_the_list(people: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in sorted(people.rglob("*.png")):
        shutil.copy(path, flat / path.relative_to(people).as_posix().replace("/", "-"))
    rows = ROWS.replace("anna/", "anna-").replace("bo/", "bo-").replace("deep/cyd/", "deep-cyd-")
    faces = read_pairs(_list(flat, rows)).faces
    assert not faces.labelled
    assert faces.labels.tolist() == [0, 0, 1, 1, 2]


def test_a_folder_is_asked_not_walked(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def walked(source: object) -> None:
        raise AssertionError("the folder was walked")

    monkeypatch.setattr(module, "open_faces", walked)
    assert len(read_pairs(_list(people, ROWS))) == 4


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("", "0 genuine pairs among 0"),
        ("0,bo/1.png,bo/2.png,1\n", "1 genuine pairs among 1"),
        ("0,bo/1.png,anna/1.png,0\n", "0 genuine pairs among 1"),
        (ROWS + ",bo/1.png,anna/1.png,0\n", "line 6"),
        (ROWS + "0,bo/1.png,anna/1.png\n", "line 6"),
        (ROWS + "0,bo/1.png,anna/1.png,0,1\n", "line 6"),
        (ROWS + "0,bo/1.png,anna/1.png,yes\n", "line 6"),
        (ROWS + "-1,bo/1.png,anna/1.png,0\n", "line 6"),
        (ROWS + f"{9**30},bo/1.png,anna/1.png,0\n", "line 6"),
        (ROWS + "0,,anna/1.png,0\n", "line 6"),
        (
            ROWS + "0,bo/1.png,bo/2.png,0\n",
            r"the pair bo/1\.png, bo/2\.png twice, as one person and as two",
        ),
        (ROWS + "0,bo/1.png,bo/1.png,1\n", r"compares bo/1\.png with itself"),
        (ROWS + '0,"bo/1.png,anna/1.png,0\n', "not a CSV file"),
        (
            ROWS + "0,x/1.png,y/1.png,0\n",
            r"names 7 images, 2 of them are not in .*x/1\.png, y/1\.png",
        ),
        (ROWS + "0,bo,anna/1.png,0\n", "1 of them are not in"),
        (ROWS + f"0,{'x' * 5000},anna/1.png,0\n", "1 of them are not in"),
        (ROWS + "0,bo/\0.png,anna/1.png,0\n", "pairs.csv"),
    ],
)
def test_what_cannot_be_used_is_named(people: Path, rows: str, said: str) -> None:
    with pytest.raises(FacesError, match=said):
        read_pairs(_list(people, rows))


@pytest.mark.parametrize(
    "data", [b"", b"path1,path2\n", b"\xff\xfe\0\0", b"hello world\n", b"\x89PNG\r\n"]
)
def test_other_files_are_no_list(people: Path, data: bytes) -> None:
    (people / "pairs.csv").write_bytes(data)
    with pytest.raises(FacesError, match=r"pairs\.csv"):
        read_pairs(people / "pairs.csv")


@pytest.mark.parametrize(
    "text",
    [
        "bo/2.png bo/1.png 1\nanna/3.png deep/cyd/1.png 0\nanna/1.png anna/3.png 1\n",
        "bo/2.png\tbo/1.png\t1\nanna/3.png\tdeep/cyd/1.png\t0\nanna/1.png\tanna/3.png\t1\n",
        "bo/2.png,bo/1.png,1\nanna/3.png,deep/cyd/1.png,0\n\nanna/1.png,anna/3.png,1\n",
        "path1,path2,same\nbo/2.png,bo/1.png,1\nanna/3.png,deep/cyd/1.png,0\n"
        "anna/1.png,anna/3.png,1\n",
        "label,img1,img2\nTrue,bo/2.png,bo/1.png\nFalse,anna/3.png,deep/cyd/1.png\n"
        "True,anna/1.png,anna/3.png\n",
        "id,A,B,match\n7,bo/2.png,bo/1.png,1\n8,anna/3.png,deep/cyd/1.png,0\n"
        "9,anna/1.png,anna/3.png,1\n",
        "bo/2.png 1\nbo/1.png 1\nanna/3.png 0\ndeep/cyd/1.png 0\nanna/1.png 1\nanna/3.png 1\n",
        "img1;img2;issame\nbo/2.png;bo/1.png;1\nanna/3.png;deep/cyd/1.png;0\nanna/1.png;anna/3.png;1\n",
    ],
)
def test_lists_of_other_shapes(people: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    """Without folds: these go by the first face's person, anna before bo."""
    caplog.set_level("INFO")
    (people / "list.txt").write_text(text)
    pairs = read_pairs(people / "list.txt")
    assert [pairs.faces.keys[i] for i in pairs.first] == ["bo/2.png", "anna/3.png", "anna/1.png"]
    assert [pairs.faces.keys[i] for i in pairs.second] == [
        "bo/1.png",
        "deep/cyd/1.png",
        "anna/3.png",
    ]
    assert pairs.same.tolist() == [True, False, True]
    assert pairs.fold.tolist() == [1, 0, 0]
    assert "list.txt has no folds" in caplog.text


def test_columns_of_peoples_own(people: Path) -> None:
    (people / "own.csv").write_text(
        "left face\tmatch?\tright face\tround\tpath1\n"
        "bo/2.png\t1\tbo/1.png\t4\tx\nanna/3.png\t0\tbo/1.png\t7\ty\n"
    )
    names = ["left face", "right face", "match?"]
    pairs = read_pairs(people / "own.csv", columns=names)
    assert [pairs.faces.keys[i] for i in pairs.first] == ["bo/2.png", "anna/3.png"]
    assert [pairs.faces.keys[i] for i in pairs.second] == ["bo/1.png", "bo/1.png"]
    assert pairs.same.tolist() == [True, False]
    assert read_pairs(people / "own.csv", columns=[*names, "round"]).fold.tolist() == [4, 7]
    for wrong, message in (
        (names[:2], "three or four columns"),
        ([*names[:2], "left face"], "three or four columns"),
        ([*names[:2], "same"], "has no column 'same'"),
    ):
        with pytest.raises(UsageError, match=message):
            read_pairs(people / "own.csv", columns=wrong)
    with pytest.raises(FacesError, match="begins with"):
        read_pairs(people / "own.csv")
    with pytest.raises(UsageError, match="has no columns"):
        read_pairs(people / "set.bin", columns=names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png b.png 1\na.png b.png\n", "line 2: 'a.png b.png', expected path path 0 or 1"),
        ("a.png b.png 1\na.png b.png 2\n", "line 2"),
        ("a.png 1\nb.png 0\n", "two lines with one verdict a pair"),
        ("a.png 1\nb.png 1\nc.png 0\n", "two lines with one verdict a pair"),
        ("img1,img2,path1,same\na,b,c,1\n", "begins with"),
    ],
)
def test_lists_of_other_shapes_that_are_refused(people: Path, text: str, message: str) -> None:
    (people / "list.txt").write_text(text)
    with pytest.raises(FacesError, match=message):
        read_pairs(people / "list.txt")


def test_a_pair_that_is_listed_again_counts_once(
    people: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = ROWS + "7,bo/1.png,bo/2.png,1\n"
    pairs = read_pairs(_list(people, rows))
    assert len(pairs) == 4
    assert "1 pairs are listed again and count once" in caplog.text


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(FacesError, match="the pair list .* does not exist"):
        read_pairs(tmp_path / "pairs.csv")
    with pytest.raises(FacesError, match="cannot be read"):
        read_pairs(tmp_path)
    with pytest.raises(FacesError, match="there are no faces at"):
        read_pairs(_list(tmp_path, ROWS), tmp_path / "gone")


def test_missing_from_a_tar_is_counted(people: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "people.tar", "w") as archive:
        archive.add(people / "anna", "anna")
    with pytest.raises(FacesError, match="names 5 images, 3 of them"):
        read_pairs(_list(tmp_path, ROWS), tmp_path / "people.tar")


def _lfw(folder: Path, encode: bytes, lines: list[str], suffix: str = ".jpg") -> Path:
    for line in lines[1:]:
        words = line.split("\t")
        names = [words[0], words[0] if len(words) == 3 else words[2]]
        numbers = [words[1], words[-1]]
        for name, number in zip(names, numbers, strict=True):
            path = folder / name / f"{name}_{int(number):04d}{suffix}"
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_bytes(encode)
    (folder / "pairs.txt").write_text("\n".join(lines) + "\n")
    return folder / "pairs.txt"


LFW = [
    "2\t2",
    "Abel\t1\t2",
    "Abel\t1\t12",
    "Bo\t1\tCyd_E\t1",
    "Bo\t1\tAbel\t2",
    "Cyd_E\t1\t3",
    "Dan\t4\t1",
    "Dan\t1\tBo\t1",
    "Dan\t4\tBo\t1",
]


def test_the_layout_of_lfw(tmp_path: Path, people: Path) -> None:
    path = _lfw(tmp_path / "lfw", (people / "bo/1.png").read_bytes(), LFW)
    pairs = read_pairs(path)
    assert pairs.fold.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert pairs.same.tolist() == [True, True, False, False] * 2
    keys = pairs.faces.keys
    assert keys[pairs.second[1]] == "Abel/Abel_0012.jpg"
    assert (keys[pairs.first[2]], keys[pairs.second[2]]) == (
        "Bo/Bo_0001.jpg",
        "Cyd_E/Cyd_E_0001.jpg",
    )
    assert pairs.faces.labelled
    shutil.move(path, tmp_path / "pairs.txt")
    assert len(read_pairs(tmp_path / "pairs.txt", tmp_path / "lfw")) == 8


def test_lfw_names_with_other_suffixes_are_found(tmp_path: Path, people: Path) -> None:
    path = _lfw(tmp_path / "lfw", (people / "bo/1.png").read_bytes(), LFW, ".png")
    assert "Abel/Abel_0012.png" in read_pairs(path).faces.keys


def test_lfw_names_with_spaces(tmp_path: Path, people: Path) -> None:
    lines = [line.replace("Cyd_E", "Cyd E") for line in LFW]
    path = _lfw(tmp_path / "lfw", (people / "bo/1.png").read_bytes(), lines)
    assert "Cyd E/Cyd E_0003.jpg" in read_pairs(path).faces.keys


@pytest.mark.parametrize(
    ("line", "text", "said"),
    [
        (0, "2\t3", "which is 12 lines, and has 8"),
        (1, "Abel\t1\tBo\t2", "expected 'name i j'"),
        (3, "Bo\t1\tCyd", "expected 'name1 i name2 j'"),
        (4, "Bo\tone\tAbel\t2", "'Bo one Abel 2'"),
        (5, "Eve\t1\t2", "2 of them are not in"),
    ],
)
def test_a_wrong_lfw_line_is_shown(
    tmp_path: Path, people: Path, line: int, text: str, said: str
) -> None:
    path = _lfw(tmp_path / "lfw", (people / "bo/1.png").read_bytes(), LFW)
    path.write_text("\n".join([*LFW[:line], text, *LFW[line + 1 :]]))
    with pytest.raises(FacesError, match=said):
        read_pairs(path)


@pytest.mark.real
def test_real_pairs_from_the_tar_and_from_its_folder(real_data: Path, tmp_path: Path) -> None:
    with tarfile.open(real_data / "faces_dev.tar") as archive:
        members = {member.name.removeprefix("./"): member for member in archive}
        listed = archive.extractfile(members["pairs.csv"])
        assert listed is not None
        (tmp_path / "pairs.csv").write_bytes(listed.read())
    pairs = read_pairs(tmp_path / "pairs.csv", real_data / "faces_dev.tar")
    assert (len(pairs), int(pairs.same.sum())) == (4000, 2000)
    assert np.unique(pairs.fold).tolist() == list(range(10))
    assert pairs.faces.labelled
    for fold in range(10):
        inside = np.unique(
            pairs.faces.labels[np.r_[pairs.first, pairs.second][np.tile(pairs.fold == fold, 2)]]
        )
        outside = np.unique(
            pairs.faces.labels[np.r_[pairs.first, pairs.second][np.tile(pairs.fold != fold, 2)]]
        )
        assert not np.intersect1d(inside, outside).size
    for key in pairs.faces.keys:  # as if unpacked
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).touch()
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    unpacked = read_pairs(tmp_path / "pairs.csv")
    sys.setprofile(before)
    assert calls < 200 * (len(pairs) + len(pairs.faces))  # no face is looked for among all others
    assert list(unpacked.faces.keys) == list(pairs.faces.keys)
    assert len(open_faces(tmp_path)) == len(pairs.faces)


def test_groups_of_faces(tmp_path: Path) -> None:
    (tmp_path / "g.csv").write_text("path,group\na/1,young\na/2,old\na/1,tall\nother,old\n")
    groups = read_groups(tmp_path / "g.csv", ("a/1", "a/2", "a/3"))
    assert {name: mask.tolist() for name, mask in groups.items()} == {
        "old": [False, True, False],
        "tall": [True, False, False],
        "young": [True, False, False],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [("file,kind\na,b\n", "expected path,group"), ("path,group\nx,y\n", "none of the 2 faces")],
)
def test_lists_of_groups_that_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "g.csv").write_text(text)
    with pytest.raises(FacesError, match=message):
        read_groups(tmp_path / "g.csv", ("a/1", "a/2"))
    with pytest.raises(FacesError, match="the list of groups .* does not exist"):
        read_groups(tmp_path / "none.csv", ("a/1",))
