"""What is plain to see in an aligned face: its light, detail, size and turn. Knows no network.

Size and turn are guesses from the crop alone: a face that was small in the photograph has no fine
detail, and one that looks ahead is much like its mirror image (so is side light unlike it).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from ..arrays import U8
from .contract import ALIGNED_SIZE, ARCFACE_TEMPLATE
from .sources import Faces

_BLOCK = 4

_LUMA = np.array((0.299, 0.587, 0.114), np.float32)  # ITU-R BT.601

STRATA: Mapping[str, tuple[str, str]] = {
    "brightness": ("dark", "bright"),
    "contrast": ("flat", "contrasty"),
    "sharpness": ("blurred", "sharp"),
    "size": ("small", "large"),
    "pose": ("turned or lit from the side", "frontal"),
}
"""The measures, and what their lowest and highest quarter are called."""


def measure_quality(faces: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """`(N, 112, 112, 3) uint8` RGB -> `(N, 5) float32`, in the order of `STRATA`.

    Mean luma 0..255; its standard deviation; that of its Laplacian (4 neighbours) over its own; the
    share of its deviation that a face of 28 pixels could not hold; its correlation with its mirror.
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
    out: npt.NDArray[np.float32] = np.stack(measures, axis=1)
    return out


# Whether faces look aligned: the eyes of their mean are where the template has them.
#
# Eyes are darker than the bridge of the nose between them and the cheeks below. In the mean of a few
# dozen aligned faces that stands out; shifted, turned or loosely cropped ones blur it away. Knows
# nothing of networks.

MOST, FEWEST = 64, 16
"""Faces looked at; of fewer than `FEWEST` nothing is said."""

_CONTRAST = 0.4
"""In standard deviations of a face's grey levels. Aligned faces of two sources gave 0.7 to 1.2;
shifted by 10 pixels .4 to .6, by 20 .1, cropped at 1.5 times the size .3 to .5, lying -.1."""

_CHEEK = 24.0
"""Pixels from an eye down to its cheek."""

_PATCH = 5


def alignment_warning(faces: Faces, picks: Sequence[int]) -> str:
    """What to tell the user when the faces at `picks` do not look aligned; else, or when they are
    too few to say, empty."""
    some = picks[:: max(1, len(picks) // MOST)][:MOST]
    if len(some) < FEWEST or faces.drawn:
        return ""
    contrast = eye_contrast(np.stack([faces.read(index) for index in some]))
    if contrast >= _CONTRAST:
        return ""
    return (
        f"the faces do not look aligned: where the ArcFace template has the eyes, their mean is"
        f" darker than around by {contrast:.2f}, aligned faces by about 0.8: see `fr-edge align`"
    )


def eye_contrast(faces: npt.NDArray[np.uint8]) -> float:
    """Of `(N, 112, 112, 3) uint8`: how much darker the mean face is at its eyes than beside and
    below them, in standard deviations of its grey levels."""
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


# Faces made worse on purpose: small, blurred, noisy, dark. INT8 falls off a cliff there first.

_SMALL = 24

_BLUR = 2.0

_NOISE = 25.0

_DARK = 0.25


def _small(face: U8, _: int) -> U8:
    image = Image.fromarray(face).resize((_SMALL, _SMALL), Image.Resampling.BOX)
    return np.asarray(image.resize((ALIGNED_SIZE, ALIGNED_SIZE), Image.Resampling.BILINEAR))


def _blurred(face: U8, _: int) -> U8:
    return np.asarray(Image.fromarray(face).filter(ImageFilter.GaussianBlur(_BLUR)))


def _noisy(face: U8, seed: int) -> U8:
    noise = np.random.default_rng(seed).normal(0, _NOISE, face.shape)
    return np.clip(np.rint(face + noise), 0, 255).astype(np.uint8)


def _dark(face: U8, seed: int) -> U8:
    """A quarter of the light, and the noise that a sensor adds to it."""
    noise = np.random.default_rng(seed).normal(0, 4, face.shape)
    return np.clip(np.rint(_DARK * face + noise), 0, 255).astype(np.uint8)


KINDS: Mapping[str, Callable[[U8, int], U8]] = {
    f"shrunk to {_SMALL} px": _small,
    f"blurred by {_BLUR:g} px": _blurred,
    f"noise of {_NOISE:g} levels": _noisy,
    "a quarter of the light": _dark,
}


def degraded(faces: Faces, picks: list[int], kind: str) -> Faces:
    """The faces `picks`, each made worse; the same faces give the same pixels."""
    worsen = KINDS[kind]
    return replace(
        faces.subset(picks),
        read=lambda index: worsen(faces.read(picks[index]), picks[index]),
        encoded=None,
    )
