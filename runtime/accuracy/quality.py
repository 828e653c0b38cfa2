"""What is plain to see in an aligned face: its light, detail, size and turn. Knows no network.

Size and turn are guesses from the crop alone: a face that was small in the photograph has no fine
detail, and one that looks ahead is much like its mirror image (so is side light unlike it).
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

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
