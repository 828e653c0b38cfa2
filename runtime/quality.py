"""What is plain to see in an aligned face: how bright it is and how sharp. Knows no network."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

_LUMA = np.array((0.299, 0.587, 0.114), np.float32)  # ITU-R BT.601

STRATA: Mapping[str, tuple[str, str]] = {
    "brightness": ("dark", "bright"),
    "contrast": ("flat", "contrasty"),
    "sharpness": ("blurred", "sharp"),
}
"""The measures, and what their lowest and highest quarter are called."""


def measure_quality(faces: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """`(N, 112, 112, 3) uint8` RGB -> `(N, 3) float32`: mean luma 0..255, its standard deviation,
    and the standard deviation of its Laplacian (4 neighbours) over its own: detail per contrast."""
    luma = faces.astype(np.float32) @ _LUMA
    inner = luma[:, 1:-1, 1:-1]
    edges = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    contrast = luma.std(axis=(1, 2))
    detail = (edges - 4 * inner).std(axis=(1, 2)) / np.maximum(contrast, 1.0)
    out: npt.NDArray[np.float32] = np.stack([luma.mean(axis=(1, 2)), contrast, detail], axis=1)
    return out
