"""Encoded images: decoded into aligned faces and photographs, and aligned faces encoded."""

import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..arrays import U8
from ..errors import FacesError
from ..reading import check_limit, open_file
from .contract import ALIGNED_SIZE

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

SUFFIXES = (  # of files that are images
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".avif"),
    *(".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"),
)

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "AVIF", "GIF", "TIFF", "PPM")  # that Pillow may open

_BOUND_OF_PILLOW = threading.Lock()

_OTHER_FILES = (  # place and beginning of files that are taken for images -> what they are
    (4, b"ftyphei", "a HEIC image (of an iPhone, mostly): convert it to JPEG"),
    (4, b"ftypmif1", "a HEIF image: convert it to JPEG"),
    (4, b"ftyp", "a film or an image of a camera: convert it to JPEG"),
    (0, b"%PDF", "a PDF"),
    (0, b"<", "text, HTML or SVG"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull`"),
)

_EXIF_ORIENTATION = 0x0112  # tag

CheckSize = Callable[[int, int, str], None]  # width, height and name; raises for what is too large


class KeptFile:
    """A regular file that stays open and is read at given places.

    Processes that are forked share its descriptor, which has no position that one could change for
    another; what is read is what was asked for, with no pages around it as in a mapping.

    Args:
        path: The file; a link is followed.

    Raises:
        FacesError: It is not a regular file.
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream = open_file(path, None, FacesError)
        self.size = os.fstat(self._stream.fileno()).st_size

    def __del__(self) -> None:
        if stream := getattr(self, "_stream", None):
            stream.close()

    def read(self, offset: int, size: int) -> bytes:
        """The bytes from `offset` on, exactly `size` of them.

        Args:
            offset: Of the first.
            size: How many.

        Raises:
            FacesError: The file has become shorter.
            OSError: It cannot be read.
        """
        data = os.pread(self._stream.fileno(), size, offset)
        while len(data) < size:
            more = os.pread(self._stream.fileno(), size - len(data), offset + len(data))
            if not more:
                raise FacesError(f"{self.path} was cut short after it was opened")
            data += more
        return data


def decode_image(data: bytes, name: str, side: int = ALIGNED_SIZE) -> U8:
    """Decode an aligned face.

    Grey, palette, CMYK and 16-bit images become RGB, transparency is dropped, an EXIF orientation
    is applied. Another size is scaled, its aspect ratio kept, centred on black.

    Args:
        data: An encoded JPEG, PNG, BMP, WebP, AVIF, GIF, TIFF or PPM image; of several frames the
            first is taken.
        name: For the error.
        side: Of the face, in pixels.

    Returns:
        `(side, side, 3) uint8` RGB.

    Raises:
        FacesError: The data is not an image, is damaged, cut short, a stripe, or larger than the
            limit FACE_SIDE.
    """
    try:
        pixels = _decode_jpeg(data, name, _check_face)
        if pixels is None:
            with _open(data, name) as opened:
                _check_face(*opened.size, name)
                opened.load()
                pixels = np.asarray(_as_rgb(opened))
    except FacesError:
        raise
    except Exception as error:  # decoders of damaged bytes raise nearly anything
        raise FacesError(f"{name} is damaged ({error})", "remove or replace the file") from error
    height, width = pixels.shape[:2]
    if max(height, width) > ALIGNED_SIZE * min(height, width):
        raise FacesError(
            f"{name} is {width}x{height} pixels, expected a face",
            "remove or replace the file",
        )
    if (height, width) == (side, side):
        return pixels
    image = Image.fromarray(pixels)
    return np.asarray(ImageOps.pad(image, (side, side), Image.Resampling.BILINEAR))


def decode_photograph(data: bytes, name: str) -> U8:
    """Decode a photograph as it was meant to be seen: its EXIF orientation is applied.

    Args:
        data: As `decode_image` takes it.
        name: For the error.

    Returns:
        `(H, W, 3) uint8` RGB.

    Raises:
        FacesError: The data is not an image, is damaged, or larger than the limit PHOTO_MPIXELS.
    """
    try:
        pixels = _decode_jpeg(data, name, _check_photograph)
        if pixels is not None:
            return pixels
        with _open(data, name) as opened:
            _check_photograph(*opened.size, name)
            opened.load()
            return np.asarray(_as_rgb(opened))
    except FacesError:
        raise
    except Exception as error:  # decoders of damaged bytes raise nearly anything
        raise FacesError(f"{name} cannot be read ({error})") from error


def stored_size(data: bytes, name: str) -> tuple[int, int]:
    """The size of an image; only its header is read.

    Args:
        data: An encoded image.
        name: For the error.

    Returns:
        Width and height in pixels, as stored.

    Raises:
        FacesError: The data is not an image, or larger than the limit FACE_SIDE.
    """
    with _open(data, name) as opened:
        _check_face(*opened.size, name)
        return opened.size


def encode_png(image: U8) -> bytes:
    """Encode an image without loss, for speed: each line as its difference from the one above.

    Pillow tries five ways of writing each line, which takes twice the time and saves a sixth of the
    bytes. Format: W3C, Portable Network Graphics, 3rd edition, chapters 5, 9 and 11.

    Args:
        image: RGB `(H, W, 3) uint8`.
    """
    height, width = image.shape[:2]
    lines = image.reshape(height, width * 3)
    filtered = np.empty((height, 1 + width * 3), np.uint8)
    filtered[:, 0] = 2  # filter "Up": minus the line above; above the first one are zeros
    filtered[0, 1:] = lines[0]
    np.subtract(lines[1:], lines[:-1], out=filtered[1:, 1:])  # modulo 256
    packer = zlib.compressobj(1, strategy=zlib.Z_HUFFMAN_ONLY)
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB, not interlaced
    chunks = (
        (b"IHDR", header),
        (b"IDAT", packer.compress(filtered.tobytes()) + packer.flush()),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _open(data: bytes, name: str) -> Image.Image:
    """An image of which only the header was read; callers check its size before they decode it."""
    check_limit("IMAGE_MB", len(data), name, FacesError)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes: the limits decide
            try:
                return Image.open(io.BytesIO(data), formats=_FORMATS)
            except Image.DecompressionBombError:  # Pillow's own bound, 179 million pixels
                return _open_large(data)
    except Exception as error:
        what = _describe(data) if data else "empty"
        raise FacesError(f"{name} is {what}", "remove or replace the file") from error


def _open_large(data: bytes) -> Image.Image:
    with _BOUND_OF_PILLOW:
        bound, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(data), formats=_FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = bound


def _describe(data: bytes) -> str:
    """What a file is that Pillow does not take for an image, by its first bytes."""
    for place, start, kind in _OTHER_FILES:
        if data[place : place + len(start)] == start:
            return kind
    return "not an image"


def _check_face(width: int, height: int, name: str) -> None:
    """Raise for what is no aligned face: a photograph or a decompression bomb."""
    try:
        check_limit("FACE_SIDE", max(width, height), name, FacesError)
    except FacesError as error:
        raise FacesError(error.message, f"detect and align the face first; {error.hint}") from error


def _check_photograph(width: int, height: int, name: str) -> None:
    check_limit("PHOTO_MPIXELS", width * height, name, FacesError)


def _decode_jpeg(data: bytes, name: str, check_size: CheckSize) -> U8 | None:
    """The pixels of a plain JPEG by simplejpeg, where it is installed; None leaves it to Pillow.

    It takes half the time (docs/results/training-path.md). What it decodes has the pixels that Pillow
    gives; Pillow shows some damaged files that it refuses. Orientation and Adobe's colours are
    Pillow's too.
    """
    plain = data[:3] == b"\xff\xd8\xff" and b"Exif" not in data and b"dobe" not in data
    if simplejpeg is None or not plain:
        return None
    check_limit("IMAGE_MB", len(data), name, FacesError)
    with suppress(ValueError):
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours in ("YCbCr", "Gray"):
            check_size(width, height, name)
            pixels: U8 = simplejpeg.decode_jpeg(data)
            return pixels
    return None


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips it to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P":
        image = image.convert("RGBA")  # directly to RGB, Pillow warns of transparent palettes
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    return image.convert("RGB")
