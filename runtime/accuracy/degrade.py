"""Faces made worse on purpose: small, blurred, noisy, dark. INT8 falls off a cliff there first."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from ...faces.contract import FRAME
from ...faces.sources import Faces

U8 = npt.NDArray[np.uint8]

_SMALL = 24
_BLUR = 2.0
_NOISE = 25.0
_DARK = 0.25


def _small(face: U8, _: int) -> U8:
    image = Image.fromarray(face).resize((_SMALL, _SMALL), Image.Resampling.BOX)
    return np.asarray(image.resize((FRAME, FRAME), Image.Resampling.BILINEAR))


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
        faces,
        keys=tuple(faces.keys[i] for i in picks),
        labels=np.asarray(faces.labels)[picks],
        read=lambda index: worsen(faces.read(picks[index]), picks[index]),
        encoded=None,
    )
