"""IJB from a small folder: lists, alignment, pooling, refusals."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fr_edge.errors import FacesError
from fr_edge.faces.contract import ARCFACE_TEMPLATE
from fr_edge.faces.ijb import pool_templates, read_ijb, template_cosines


def test_faces_are_aligned_by_their_points(tmp_path: Path, ijb_folder: Path) -> None:
    """A face already in the frame, and the same face turned and moved, come out the same."""
    base = np.zeros((112, 112, 3), np.uint8)
    y, x = np.mgrid[0:112, 0:112]
    base[..., 0], base[..., 1] = 2 * x, 2 * y
    base[..., 2] = (120 + 80 * np.sin(x / 9) * np.cos(y / 11)).astype(np.uint8)
    upright = np.array(ARCFACE_TEMPLATE)
    turned = np.stack([111 - upright[:, 1], upright[:, 0]], axis=1) + (20, 10)
    canvas = np.zeros((160, 160, 3), np.uint8)
    canvas[10:122, 20:132] = np.rot90(base, -1)
    names = (ijb_folder / "meta" / "x_name_5pts_score.txt").read_text().splitlines()
    for row, (pixels, points) in enumerate(((base, upright), (canvas, turned))):
        Image.fromarray(pixels).save(ijb_folder / "loose_crop" / f"{row + 1}.jpg", "PNG")
        names[row] = f"{row + 1}.jpg " + " ".join(f"{v:.6f}" for v in points.reshape(-1)) + " 0.9"
    (ijb_folder / "meta" / "x_name_5pts_score.txt").write_text("\n".join(names))
    faces = read_ijb(ijb_folder).faces
    inner = np.s_[2:-2, 2:-2]
    for index in (0, 1):
        difference = np.abs(faces.read(index)[inner].astype(int) - base[inner].astype(int))
        assert difference.max() <= 2


@pytest.mark.parametrize(("norm", "detector"), [(True, True), (False, False), (True, False)])
def test_pooling_is_that_of_a_plain_loop(ijb_folder: Path, norm: bool, detector: bool) -> None:
    ijb = read_ijb(ijb_folder)
    rows = np.random.default_rng(1).normal(size=(len(ijb.faces), 7)).astype(np.float32) * 5
    templates, numbers = pool_templates(
        [rows[:6], rows[6:7], rows[7:]], ijb, norm=norm, detector=detector
    )
    for template, number in zip(templates, numbers, strict=True):
        total = np.zeros(7)
        for medium in set(ijb.media[ijb.template == number]):
            members = np.flatnonzero((ijb.template == number) & (ijb.media == medium))
            parts = [
                rows[i]
                / (1 if norm else np.linalg.norm(rows[i]))
                * (ijb.score[i] if detector else 1)
                for i in members
            ]
            total += np.mean(parts, axis=0)
        assert template == pytest.approx(total / np.linalg.norm(total), abs=1e-5)
    scores = template_cosines(templates, numbers, ijb)
    where = {int(n): t for n, t in zip(numbers, templates, strict=True)}
    expected = [where[int(a)] @ where[int(b)] for a, b in zip(ijb.first, ijb.second, strict=True)]
    assert scores == pytest.approx(np.array(expected), abs=1e-6)


def test_what_is_missing_is_counted(ijb_folder: Path) -> None:
    (ijb_folder / "loose_crop" / "7.jpg").unlink()
    with pytest.raises(FacesError, match=r"lacks 1 of 20 images, the first is 7.jpg"):
        read_ijb(ijb_folder)


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("x_face_tid_mid.txt", lambda t: t.replace("7.jpg", "x.jpg"), "same images"),
        ("x_face_tid_mid.txt", lambda t: t.replace("1.jpg 0 1", "1.jpg zero 1"), "cannot be read"),
        ("x_name_5pts_score.txt", lambda t: t[:-30], "line 20"),
        ("x_template_pair_label.txt", lambda t: t + "99 1 0\n", "1 templates .* the first is 99"),
        ("x_template_pair_label.txt", lambda t: "", "empty"),
        ("x_template_pair_label.txt", lambda t: t[:-1] + " 7\n", "line 25: 4 columns"),
        ("x_template_pair_label.txt", lambda t: t[:-2] + "\n", "line 25: 2 columns"),
        ("x_template_pair_label.txt", lambda t: t + "1 2\n1 2 3 4\n", "line 26: 2 columns"),
        ("x_template_pair_label.txt", lambda t: t + "1-2 0\n", "line 26: 2 columns"),
        ("x_template_pair_label.txt", lambda t: t + "1 2-3 0\n", "cannot be read: .*2-3"),
        ("x_template_pair_label.txt", lambda t: t + "1 2 -", "cannot be read: .*'-'"),
        ("x_template_pair_label.txt", lambda t: t + "1 2.5 0\n", "cannot be read: .*2.5"),
        ("x_template_pair_label.txt", lambda t: t + " \n", "line 26: 0 columns"),
        ("x_name_5pts_score.txt", lambda t: t.replace("2.jpg ", "2.jpg\t5 "), "line 2: 13 columns"),
        (
            "x_name_5pts_score.txt",
            lambda t: t.replace("2.jpg ", "2.jpg 1e5e "),
            "line 2: 13 columns",
        ),
        ("x_template_pair_label.txt", lambda t: t + f"{9**30} 1 0\n", "cannot be read"),
    ],
)
def test_damaged_lists(
    ijb_folder: Path, name: str, edit: Callable[[str], str], message: str
) -> None:
    file = ijb_folder / "meta" / name
    file.write_text(edit(file.read_text()))
    with pytest.raises(FacesError, match=message):
        read_ijb(ijb_folder)


@pytest.mark.parametrize("piece", [1, 40, 1 << 20])
@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text,
        lambda text: text.rstrip("\n"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\n\n"),
        lambda text: text.replace(" ", " \t "),
        lambda text: text.replace("\n", "\x0c"),
        lambda text: text.replace(" 1\n", " +1\n").replace(" 2 ", " \N{FULLWIDTH DIGIT TWO} "),
    ],
)
def test_lists_are_read_in_pieces_as_line_by_line(
    ijb_folder: Path, monkeypatch: pytest.MonkeyPatch, edit: Callable[[str], str], piece: int
) -> None:
    """However their lines end, and with all that Python takes for a number."""
    plain = read_ijb(ijb_folder)
    rows = (ijb_folder / "meta" / "x_name_5pts_score.txt").read_text().splitlines()
    assert plain.score.tolist() == [np.float32(float(row.split()[11])) for row in rows]
    assert list(plain.faces.keys) == [row.split()[0] for row in rows]
    pairs = [
        f"{a} {b} {int(c)}" for a, b, c in zip(plain.first, plain.second, plain.same, strict=True)
    ]
    file = ijb_folder / "meta" / "x_template_pair_label.txt"
    assert file.read_text().splitlines() == pairs
    for file in (ijb_folder / "meta").iterdir():
        file.write_bytes(edit(file.read_text()).encode())
    monkeypatch.setattr("fr_edge.faces.ijb._PIECE", piece)
    again = read_ijb(ijb_folder)
    assert list(again.faces.keys) == list(plain.faces.keys)
    for name in ("template", "media", "score", "first", "second", "same"):
        assert getattr(again, name).tolist() == getattr(plain, name).tolist()
    assert np.array_equal(again.faces.read(3), plain.faces.read(3))


def test_plain_lists_are_read_by_numpy_alone(
    ijb_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists of Python's numbers would be 6 GB for the pairs of IJB-C."""
    monkeypatch.setattr("fr_edge.faces.ijb._split_lines", lambda *_: pytest.fail("line by line"))
    assert len(read_ijb(ijb_folder).first) == 25


def test_images_are_looked_for_in_one_listing(
    ijb_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those alone that it does not have are looked at: in folders within, and behind links."""
    crops = ijb_folder / "loose_crop"
    (crops / "inner").mkdir()
    (crops / "3.jpg").rename(crops / "inner" / "3.jpg")
    (crops / "4.jpg").rename(ijb_folder / "4.jpg")
    (crops / "4.jpg").symlink_to(ijb_folder / "4.jpg")
    (crops / "loop").symlink_to("loop")
    for file in (ijb_folder / "meta").iterdir():
        file.write_text(file.read_text().replace("\n3.jpg", "\ninner/3.jpg"))
    looked: list[str] = []
    isfile = os.path.isfile

    def look(path: str) -> bool:
        looked.append(path)
        return isfile(path)

    monkeypatch.setattr("fr_edge.faces.ijb.os.path.isfile", look)
    assert len(read_ijb(ijb_folder).faces) == 20
    (crops / "loop").unlink()
    looked.clear()
    assert len(read_ijb(ijb_folder).faces) == 20
    assert looked == [str(crops / "inner/3.jpg")]


def test_two_lists_of_one_kind(ijb_folder: Path) -> None:
    (ijb_folder / "meta" / "y_template_pair_label.txt").write_text("0 1 1\n")
    with pytest.raises(FacesError, match="has 2 files"):
        read_ijb(ijb_folder)


def test_an_image_that_cannot_be_decoded(ijb_folder: Path) -> None:
    (ijb_folder / "loose_crop" / "3.jpg").write_bytes(b"\xff\xd8 no picture")
    with pytest.raises(FacesError, match="3.jpg is not an image"):
        read_ijb(ijb_folder).faces.read(2)
