"""What an aligned face looks like: measures of it, degraded copies, and whether it is aligned.

Size and pose are estimates from the crop alone: a face that was small in the photograph has no fine
detail, and a frontal one is much like its mirror image (side light makes it less so).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter

from ..arrays import F32, U8
from ..errors import FacesError
from .contract import ALIGNED_SIZE, ARCFACE_TEMPLATE, InputSpec, aligned_template, resize_face
from .images import stored_size
from .sources import Faces, spread_picks

logger = logging.getLogger(__name__)

STRATA: Mapping[str, tuple[str, str]] = {  # measure: names of its lowest and highest quarter
    "brightness": ("dark", "bright"),
    "contrast": ("flat", "contrasty"),
    "sharpness": ("blurred", "sharp"),
    "size": ("small", "large"),
    "pose": ("turned or lit from the side", "frontal"),
}

MIN_FACES = 16  # with fewer, alignment is not judged

_MAX_FACES = 64  # looked at to judge alignment

_SAMPLE = 32  # faces whose stored size is looked at

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
        faces: RGB `(N, S, S, 3) uint8`.

    Returns:
        `(N, 5) float32`, in the order of `STRATA`: the mean luma 0..255; its standard deviation;
        that of its Laplacian (4 neighbours) over its own; the share of its deviation that a face of
        28 pixels could not hold; its correlation with its mirror image.
    """
    luma = _in_template_frame(faces).astype(np.float32) @ _LUMA
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
        faces: RGB `(N, S, S, 3) uint8`.

    Returns:
        A difference in standard deviations of a face's grey levels.
    """
    grey = _in_template_frame(faces).astype(np.float32).mean(axis=3)
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


def size_warning(faces: Faces) -> str:
    """A warning when images are stored at another size than the network takes.

    Args:
        faces: A source of faces at the network's size; 32 of them are looked at.

    Returns:
        A sentence; empty when all of them are of that size.
    """
    if faces.encoded is None:
        return ""
    picks, side = spread_picks(faces, _SAMPLE), faces.side
    odd, smallest = [], side
    for index in picks:
        try:
            width, height = stored_size(faces.encoded(index), faces.keys[index])
        except FacesError:
            continue  # reading the face raises it
        if (width, height) != (side, side):
            odd.append(f"{faces.keys[index]} is {width}x{height}")
            smallest = min(smallest, width, height)
    if not odd:
        return ""
    count = f"{len(odd)} of {len(picks)} faces looked at"
    if side > ALIGNED_SIZE and smallest < side:
        return (
            f"{count} are enlarged to the {side}x{side} pixels of this network ({odd[0]}), which gives"
            f" it no more detail: `fr-edge align --size {side}` cuts them out of the photographs"
        )
    return f"{count} are not {side}x{side} and are scaled ({odd[0]}): are they aligned?"


def faces_for(faces: Faces, spec: InputSpec) -> Faces:
    """Faces at the size that a network takes; a warning is logged where they are stored at another.

    Args:
        faces: A source of faces.
        spec: The network's contract.
    """
    sized = faces.sized(spec.crop_side)
    if warning := size_warning(sized):
        logger.warning("%s", warning)
    return sized


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
        read_at=None,
    )


def _in_template_frame(faces: U8) -> U8:
    """Faces of any size `(N, S, S, 3)` as `(N, 112, 112, 3)`, with their landmarks on the template."""
    side = faces.shape[1]
    if side == ALIGNED_SIZE:
        return faces
    corner = aligned_template(side)[0] - np.array(ARCFACE_TEMPLATE[0]) * (scale := _scale(side))
    left, edge = round(float(corner[0])), round(ALIGNED_SIZE * scale)
    return np.stack([resize_face(f[:edge, left : left + edge], ALIGNED_SIZE) for f in faces])


def _scale(side: int) -> float:
    """Pixels of an aligned face of this size for one of the template's frame."""
    template, sized = np.array(ARCFACE_TEMPLATE), aligned_template(side)
    return float((sized[1, 0] - sized[0, 0]) / (template[1, 0] - template[0, 0]))


def _small(face: U8, _: int) -> U8:
    image = Image.fromarray(face).resize((_SMALL, _SMALL), Image.Resampling.BOX)
    return np.asarray(image.resize(face.shape[1::-1], Image.Resampling.BILINEAR))


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
