"""Decoding: every kind of image becomes the same kind of face, bad ones are named."""

import contextlib
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from fr_edge.errors import FacesError
from fr_edge.faces import images
from fr_edge.faces.images import decode_image, encode_png, stored_size

U8 = npt.NDArray[np.uint8]


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def test_rgb_is_unchanged(pictures: U8, encode: Callable[[U8], bytes]) -> None:
    face = decode_image(encode(pictures[0]), "a.png")
    assert face.dtype == np.uint8
    np.testing.assert_array_equal(face, pictures[0])


def test_grey_has_three_equal_channels(pictures: U8) -> None:
    grey = Image.fromarray(pictures[0]).convert("L")
    face = decode_image(_saved(grey, "PNG"), "a.png")
    np.testing.assert_array_equal(face, np.asarray(grey)[..., None].repeat(3, axis=2))


def test_sixteen_bits_lose_their_lower_eight() -> None:
    deep = np.arange(112 * 112, dtype=np.uint16).reshape(112, 112) * 5
    face = decode_image(_saved(Image.fromarray(deep), "PNG"), "a.png")
    np.testing.assert_array_equal(face[..., 0], (deep >> 8).astype(np.uint8))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PPM", "AVIF", "BMP", "WEBP"])
def test_kinds_that_people_have(kind: str, pictures: U8) -> None:
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "AVIF" else {}
    face = decode_image(_saved(Image.fromarray(pictures[0]), kind, **options), f"a.{kind}")
    limit = {"GIF": 12, "AVIF": 6}.get(kind, 0)  # palette of 256 colours; lossy
    assert np.abs(face.astype(int) - pictures[0]).mean() <= limit


def test_the_first_frame_counts(pictures: U8) -> None:
    frames = [Image.fromarray(picture) for picture in pictures[:3]]
    data = _saved(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode_image(data, "a.tif"), pictures[0])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\0\0\0\x18ftypheic\0\0", "a HEIC image"),
        (b"%PDF-1.7", "a PDF"),
        (b"<!DOCTYPE html>", "text, HTML or SVG"),
        (b"PK\x03\x04....", "a zip archive"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        (b"nothing", "not an image"),
    ],
)
def test_what_a_file_is(data: bytes, message: str) -> None:
    with pytest.raises(FacesError, match=f"a.jpg is {message}"):
        decode_image(data, "a.jpg")


def test_transparency_is_dropped(pictures: U8) -> None:
    image = Image.fromarray(pictures[0])
    image.putalpha(128)
    np.testing.assert_array_equal(decode_image(_saved(image, "PNG"), "a.png"), pictures[0])


def test_a_transparent_palette_gives_its_colours() -> None:
    image = Image.new("P", (112, 112), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    data = _saved(image, "PNG", transparency=bytes([0, 90]))
    assert decode_image(data, "a.png")[5, 5].tolist() == [10, 200, 30]


def test_cmyk_becomes_rgb(pictures: U8) -> None:
    data = _saved(Image.fromarray(pictures[0]).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decode_image(data, "a.jpg").astype(int) - pictures[0]).mean() < 6


def test_exif_orientation_is_applied(pictures: U8) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    data = _saved(Image.fromarray(pictures[0]), "PNG", exif=exif)
    np.testing.assert_array_equal(decode_image(data, "a.png"), pictures[0][::-1, ::-1])


@pytest.mark.parametrize("side", [1, 56, 224, 333])
def test_other_squares_are_scaled(pictures: U8, side: int) -> None:
    small = Image.fromarray(pictures[0]).resize((side, side), Image.Resampling.BILINEAR)
    face = decode_image(_saved(small, "PNG"), "a.png")
    assert face.shape == (112, 112, 3)
    if side > 1:
        assert np.abs(face.astype(int) - pictures[0]).mean() < 12


def test_a_narrow_face_keeps_its_shape(pictures: U8) -> None:
    """112 high, 96 wide, as some networks take it: the middle is untouched, the sides are black."""
    face = decode_image(_saved(Image.fromarray(pictures[0][:, 8:104]), "PNG"), "a.png")
    np.testing.assert_array_equal(face[:, 8:104], pictures[0][:, 8:104])
    assert not face[:, :8].any()
    assert not face[:, 104:].any()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_cut_short_is_refused_by_name(pictures: U8, kind: str, share: float) -> None:
    data = _saved(Image.fromarray(pictures[0]), kind)
    with pytest.raises(FacesError, match=r"ann/1\.x"):
        decode_image(data[: int(len(data) * share)], "ann/1.x")


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff\xd8\xff\xe0" + b"\0" * 50, b"%!PS-Adobe-3"])
def test_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(FacesError, match="note"):
        decode_image(data, "note")


def test_flipped_bytes_never_raise_anything_else(
    pictures: U8, encode: Callable[[U8], bytes]
) -> None:
    rng = np.random.default_rng(0)
    for source in (encode(pictures[0]), _saved(Image.fromarray(pictures[0]), "JPEG")):
        for _ in range(60):
            data = bytearray(source)
            for place in rng.integers(0, len(data), 3):
                data[place] = rng.integers(256)
            with contextlib.suppress(FacesError):
                assert decode_image(bytes(data), "x").shape == (112, 112, 3)


@pytest.mark.parametrize("side", [5000, 12000, 40000])
def test_a_bomb_is_refused_before_it_is_unpacked(side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + name + body
        data += struct.pack(">I", zlib.crc32(name + body))
    with pytest.raises(FacesError, match="larger than 4096"):
        decode_image(data, "bomb.png")


def test_the_stored_size_is_width_and_height(pictures: U8) -> None:
    assert stored_size(_saved(Image.fromarray(pictures[0][:50, :70]), "PNG"), "x") == (70, 50)


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (1, 4096)])
def test_a_stripe_is_no_face(size: tuple[int, int]) -> None:
    with pytest.raises(FacesError, match=f"is {size[0]}x{size[1]} pixels, expected a face"):
        decode_image(_saved(Image.new("RGB", size), "PNG"), "stripe.png")


@pytest.mark.parametrize("size", [(1, 1), (112, 112), (7, 30)])
def test_a_png_of_ours_holds_the_pixels(size: tuple[int, int]) -> None:
    """Read by Pillow, which checks the sums of the chunks."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    with Image.open(io.BytesIO(encode_png(image)), formats=["PNG"]) as opened:
        assert (opened.mode, opened.size) == ("RGB", size[::-1])
        assert np.array_equal(np.asarray(opened), image)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}])
def test_the_faster_decoder_gives_pillows_pixels(
    mode: str, options: dict[str, object], pictures: U8, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of whole files, turned ones, and those with flipped bytes, which Pillow shows or refuses."""
    pytest.importorskip("simplejpeg", reason="without the extra `jpeg` Pillow decodes alone")
    image = Image.fromarray(pictures[0]).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = _saved(image, "JPEG", **options)
    random = np.random.default_rng(0)
    files = [data, _saved(image, "JPEG", exif=exif, **options), data[: len(data) // 2]]
    for _ in range(20):
        damaged = bytearray(data)
        damaged[random.integers(len(data))] = random.integers(256)
        files.append(bytes(damaged))

    def decoded() -> list[list[int] | str]:
        results: list[list[int] | str] = []
        for file in files:
            try:
                results.append(decode_image(file, "x").ravel().tolist())
            except FacesError as error:
                results.append(error.message)
        return results

    fast = decoded()
    monkeypatch.setattr(images, "simplejpeg", None)
    assert fast == decoded()


def test_the_faster_decoder_is_used(pictures: U8, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = pytest.importorskip("simplejpeg", reason="without the extra `jpeg` Pillow decodes alone")
    calls = []
    decode = fast.decode_jpeg

    def count(data: bytes) -> U8:
        calls.append(len(data))
        pixels: U8 = decode(data)
        return pixels

    monkeypatch.setattr(fast, "decode_jpeg", count)
    data = _saved(Image.fromarray(pictures[0]), "JPEG")
    decode_image(data, "x")
    assert calls == [len(data)]
