"""What a student sees of a face: random changes that its target knows nothing of.

Crop, low resolution and light are what AdaFace (arXiv 2204.00964, section 4.1) trains with, occlusion is
random erasing (arXiv 1708.04896). Everything follows from numbers that are given: an image of a step is
the same on every run and rank.
"""

import numpy as np
from PIL import Image, ImageFilter

from ..arrays import F64, U8
from .recipe import Recipe

DRAWS = 20  # numbers that the changes of one image take
_MIDDLE_GREY = 127.5
_MAX_ASPECT = 10 / 3  # of an occlusion; random erasing's r2
_RESAMPLING = (
    Image.Resampling.BOX,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)


def augment(pixels: U8, draws: F64, recipe: Recipe) -> U8:
    """Change faces as a recipe allows.

    Args:
        pixels: `(B, H, W, 3) uint8`.
        draws: Uniform numbers of 0..1, `(B, DRAWS) float64`.
        recipe: Its `shift`, `crop`, `low_resolution`, `blur`, `light`, `occlusion` and `augment`.

    Returns:
        Like `pixels`; `pixels` itself where the recipe changes nothing.
    """
    limits = (
        recipe.shift,
        recipe.crop,
        recipe.low_resolution,
        recipe.blur,
        recipe.light,
        recipe.occlusion,
    )
    if not any(limits):
        return pixels
    out = np.empty_like(pixels)
    for number, (face, draw) in enumerate(zip(pixels, draws, strict=True)):
        shift, crop, low, blur, light, occlusion = (
            limit if limit and chance < recipe.augment else 0
            for limit, chance in zip(limits, draw[:6], strict=True)
        )
        face = translate(face, int(shift), draw[6], draw[7])
        face = cut_away(face, float(crop), draw[8:12])
        face = lose_resolution(face, low * draw[12], draw[13])
        face = gaussian_blur(face, blur * draw[14])
        face = relight(face, light * (2 * draw[15] - 1), light * (2 * draw[16] - 1))
        out[number] = occlude(face, occlusion * draw[17], draw[18:20])
    return out


def translate(face: U8, shift: int, down: float, right: float) -> U8:
    """Move a face by up to `shift` pixels; border pixels repeat.

    Args:
        face: `(H, W, 3) uint8`.
        shift: Largest move, in pixels.
        down: 0..1: from `shift` upwards to `shift` downwards.
        right: The same to the right.
    """
    if shift == 0:
        return face
    wide = np.pad(face, ((shift, shift), (shift, shift), (0, 0)), mode="edge")
    y, x = (round(2 * shift * (1 - place)) for place in (down, right))
    return wide[y : y + face.shape[0], x : x + face.shape[1]]


def cut_away(face: U8, crop: float, draw: F64) -> U8:
    """Blacken what lies outside a random rectangle.

    Args:
        face: `(H, W, 3) uint8`.
        crop: Largest share of height and width that is lost.
        draw: How much of it of height and width, and where from: four numbers of 0..1.
    """
    if crop == 0:
        return face
    out = np.zeros_like(face)
    ends = []
    for side, share, place in zip(face.shape[:2], draw[:2], draw[2:], strict=True):
        kept = side - int(round(side * crop * share))
        start = int(round((side - kept) * place))
        ends.append(slice(start, start + kept))
    out[ends[0], ends[1]] = face[ends[0], ends[1]]
    return out


def lose_resolution(face: U8, lost: float, kind: float) -> U8:
    """Shrink a face and enlarge it again.

    Args:
        face: `(H, W, 3) uint8`.
        lost: Share of its sides that is lost.
        kind: 0..1: which of four ways of resampling.
    """
    height, width = face.shape[:2]
    small = tuple(max(1, round(side * (1 - lost))) for side in (width, height))
    if small == (width, height):
        return face
    way = _RESAMPLING[min(int(kind * len(_RESAMPLING)), len(_RESAMPLING) - 1)]
    image = Image.fromarray(face).resize(small, way)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def gaussian_blur(face: U8, sigma: float) -> U8:
    """Blur a face.

    Args:
        face: `(H, W, 3) uint8`.
        sigma: Standard deviation, in pixels.
    """
    if sigma == 0:
        return face
    return np.asarray(Image.fromarray(face).filter(ImageFilter.GaussianBlur(float(sigma))))


def relight(face: U8, contrast: float, brightness: float) -> U8:
    """Change contrast and brightness around the middle grey.

    Args:
        face: `(H, W, 3) uint8`.
        contrast: Relative change.
        brightness: Change, as a share of the middle grey.
    """
    if contrast == 0 and brightness == 0:
        return face
    out = (face.astype(np.float32) - _MIDDLE_GREY) * (1 + contrast)
    out += _MIDDLE_GREY * (1 + brightness)
    lit: U8 = np.clip(np.rint(out), 0, 255).astype(np.uint8)
    return lit


def occlude(face: U8, area: float, draw: F64) -> U8:
    """Hide a rectangle behind the middle grey.

    Args:
        face: `(H, W, 3) uint8`.
        area: Its share of the face.
        draw: Shape and place: two numbers of 0..1.
    """
    if area == 0:
        return face
    aspect = _MAX_ASPECT ** (2 * draw[0] - 1)
    height, width = face.shape[:2]
    rows = min(height, round(height * (area * aspect) ** 0.5))
    columns = min(width, round(width * (area / aspect) ** 0.5))
    # One number gives both coordinates: its fraction after a thousand steps is as good as drawn.
    top = round((height - rows) * draw[1])
    left = round((width - columns) * (draw[1] * 1000 % 1))
    out = face.copy()
    out[top : top + rows, left : left + columns] = round(_MIDDLE_GREY)
    return out
