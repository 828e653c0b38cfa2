"""Encoded images: decoded into aligned faces."""

import io

import numpy as np
from PIL import Image, ImageOps

from ..arrays import U8
from ..errors import FacesError
from .contract import ALIGNED_SIZE

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")  # of files that are images

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")  # that Pillow may open

_MAX_SIDE = 4096  # pixels: an aligned face has 112, more is a photograph or a decompression bomb

_EXIF_ORIENTATION = 0x0112  # tag


def decode_image(data: bytes, name: str) -> U8:
    """Decode an aligned face.

    Grey, palette, CMYK and 16-bit images become RGB, transparency is dropped, an EXIF orientation
    is applied. Another size is scaled, its aspect ratio kept, centred on black.

    Args:
        data: An encoded JPEG, PNG, BMP or WebP image.
        name: For the error.

    Returns:
        `(112, 112, 3) uint8` RGB.

    Raises:
        FacesError: The data is not an image, is damaged, cut short or larger than 4096 pixels.
    """
    try:
        with _open(data, name) as opened:
            opened.load()
            image = _as_rgb(opened)
    except FacesError:
        raise
    except Exception as error:  # decoders of damaged bytes raise nearly anything
        raise FacesError(f"{name} is damaged ({error})", "remove or replace the file") from error
    if image.size != (ALIGNED_SIZE, ALIGNED_SIZE):
        image = ImageOps.pad(image, (ALIGNED_SIZE, ALIGNED_SIZE), Image.Resampling.BILINEAR)
    return np.asarray(image)


def stored_size(data: bytes, name: str) -> tuple[int, int]:
    """The size of an image; only its header is read.

    Args:
        data: An encoded image.
        name: For the error.

    Returns:
        Width and height in pixels, as stored.

    Raises:
        FacesError: The data is not an image, or larger than 4096 pixels.
    """
    with _open(data, name) as opened:
        return opened.size


def _open(data: bytes, name: str) -> Image.Image:
    try:
        opened = Image.open(io.BytesIO(data), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name) from error
    except Exception as error:
        what = "not an image" if data else "empty"
        raise FacesError(f"{name} is {what}", "remove or replace the file") from error
    if max(opened.size) > _MAX_SIDE:
        raise _too_large(name)
    return opened


def _too_large(name: str) -> FacesError:
    return FacesError(
        f"{name} is larger than {_MAX_SIDE} pixels a side, expected an aligned {ALIGNED_SIZE}x{ALIGNED_SIZE} face",
        "detect and align the face first",
    )


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips it to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P":
        image = image.convert("RGBA")  # directly to RGB, Pillow warns of transparent palettes
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    return image.convert("RGB")
