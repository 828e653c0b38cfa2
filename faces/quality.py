"""What an aligned face looks like: measures of it, degraded copies, and whether it is aligned.

Size and pose are estimates from the crop alone: a face that was small in the photograph has no fine
detail, and a frontal one is much like its mirror image (side light makes it less so).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter

from ..arrays import F32, U8
from .contract import ALIGNED_SIZE, ARCFACE_TEMPLATE
from .sources import Faces

STRATA: Mapping[str, tuple[str, str]] = {  # measure: names of its lowest and highest quarter
    "brightness": ("dark", "bright"),
    "contrast": ("flat", "contrasty"),
    "sharpness": ("blurred", "sharp"),
    "size": ("small", "large"),
    "pose": ("turned or lit from the side", "frontal"),
}

MIN_FACES = 16  # with fewer, alignment is not judged

_MAX_FACES = 64  # looked at to judge alignment

_LUMA = np.array((0.299, 0.587, 0.114), np.float32)  # ITU-R BT.601

_BLOCK = 4  # pixels: a face of 28 pixels, scaled to 112

_EYE_CONTRAST = (
    0.4  # aligned faces of two sources gave 0.7 to 1.2; shifted by 10 pixels 0.4 to 0.6,
)
# by 20 0.1, cropped at 1.5 times the size 0.3 to 0.5, lying on the side -0.1

_CHEEK = 24.0  # pixels from an eye down to its cheek

_PATCH = 5  # half side of the squares compared, in pixels

_SMALL = 24  # side that a face is shrunk to, in pixels

_BLUR = 2.0  # radius of the Gaussian, in pixels

_NOISE = 25.0  # standard deviation, in grey levels

_DARK = 0.25  # share of the light that is left

_SENSOR_NOISE = 4.0  # standard deviation of a dark face's noise, in grey levels


def measure_quality(faces: U8) -> F32:
    """Brightness, contrast, sharpness, size and pose of faces.

    Args:
        faces: RGB `(N, 112, 112, 3) uint8`.

    Returns:
        `(N, 5) float32`, in the order of `STRATA`: the mean luma 0..255; its standard deviation;
        that of its Laplacian (4 neighbours) over its own; the share of its deviation that a face of
        28 pixels could not hold; its correlation with its mirror image.
    """
    luma = faces.astype(np.float32) @ _LUMA
    inner = luma[:, 1:-1, 1:-1]
    edges = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    contrast = luma.std(axis=(1, 2))
    safe = np.maximum(contrast, 1.0)
    detail = (edges - 4 * inner).std(axis=(1, 2)) / safe
    count, side = len(luma), luma.shape[1] // _BLOCK
    coarse = luma.reshape(count, side, _BLOCK, side, _BLOCK).mean(axis=(2, 4))
    lost = luma - np.repeat(np.repeat(coarse, _BLOCK, axis=1), _BLOCK, axis=2)
    centred = luma - luma.mean(axis=(1, 2), keepdims=True)
    mirrored = (centred * centred[:, :, ::-1]).mean(axis=(1, 2)) / safe**2
    measures = [luma.mean(axis=(1, 2)), contrast, detail, lost.std(axis=(1, 2)) / safe, mirrored]
    out: F32 = np.stack(measures, axis=1)
    return out


def alignment_warning(faces: Faces, picks: Sequence[int]) -> str:
    """A warning when faces do not look aligned.

    Args:
        faces: A source of faces.
        picks: Indices of the faces to look at; 64 of them, evenly spread, are decoded.

    Returns:
        A sentence; empty when they look aligned, are synthetic, or are fewer than 16.
    """
    some = picks[:: max(1, len(picks) // _MAX_FACES)][:_MAX_FACES]
    if len(some) < MIN_FACES or faces.synthetic:
        return ""
    contrast = eye_contrast(np.stack([faces.read(index) for index in some]))
    if contrast >= _EYE_CONTRAST:
        return ""
    return (
        "the faces do not look aligned: where the ArcFace template has the eyes, their mean is"
        f" darker than around by {contrast:.2f}, aligned faces by about 0.8: see `fr-edge align`"
    )


def eye_contrast(faces: U8) -> float:
    """How much darker the mean face is at the template's eyes than between and below them.

    Eyes are darker than the bridge of the nose and the cheeks. The mean of a few dozen aligned
    faces shows it; in shifted, turned or loosely cropped ones it is blurred away.

    Args:
        faces: RGB `(N, 112, 112, 3) uint8`.

    Returns:
        A difference in standard deviations of a face's grey levels.
    """
    grey = faces.astype(np.float32).mean(axis=3)
    grey -= grey.mean(axis=(1, 2), keepdims=True)
    grey /= grey.std(axis=(1, 2), keepdims=True) + 1e-6
    mean = grey.mean(axis=0)

    def level(x: float, y: float) -> float:
        column, row = round(x), round(y)
        return float(
            mean[row - _PATCH : row + _PATCH + 1, column - _PATCH : column + _PATCH + 1].mean()
        )

    eyes = ARCFACE_TEMPLATE[:2]
    bridge = ((eyes[0][0] + eyes[1][0]) / 2.0, (eyes[0][1] + eyes[1][1]) / 2.0)
    around = [bridge, *((x, y + _CHEEK) for x, y in eyes)]
    bright = sum(level(*place) for place in around) / len(around)
    return bright - sum(level(*place) for place in eyes) / len(eyes)


def degraded(faces: Faces, picks: list[int], kind: str) -> Faces:
    """Degraded copies of faces; INT8 loses most on such ones.

    Args:
        faces: A source of faces.
        picks: Indices of the faces.
        kind: A key of `DEGRADATIONS`.

    Returns:
        As many faces as picks; the same faces give the same pixels.
    """
    degrade = DEGRADATIONS[kind]
    return replace(
        faces.subset(picks),
        read=lambda index: degrade(faces.read(picks[index]), picks[index]),
        encoded=None,
    )


def _small(face: U8, _: int) -> U8:
    image = Image.fromarray(face).resize((_SMALL, _SMALL), Image.Resampling.BOX)
    return np.asarray(image.resize((ALIGNED_SIZE, ALIGNED_SIZE), Image.Resampling.BILINEAR))


def _blurred(face: U8, _: int) -> U8:
    return np.asarray(Image.fromarray(face).filter(ImageFilter.GaussianBlur(_BLUR)))


def _noisy(face: U8, seed: int) -> U8:
    noise = np.random.default_rng(seed).normal(0, _NOISE, face.shape)
    return np.clip(np.rint(face + noise), 0, 255).astype(np.uint8)


def _dark(face: U8, seed: int) -> U8:
    noise = np.random.default_rng(seed).normal(0, _SENSOR_NOISE, face.shape)
    return np.clip(np.rint(_DARK * face + noise), 0, 255).astype(np.uint8)


DEGRADATIONS: Mapping[str, Callable[[U8, int], U8]] = {  # functions of a face and a seed
    f"shrunk to {_SMALL} px": _small,
    f"blurred by {_BLUR:g} px": _blurred,
    f"noise of {_NOISE:g} levels": _noisy,
    "a quarter of the light": _dark,
}
