"""What a layout of detector outputs is, and what comes out of decoding one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..contract import InputSpec

Floats = npt.NDArray[np.floating[Any]]
Outputs = dict[str, Floats]
"""Output name -> array of the first image, in the network's order, its batch axis of 1 kept."""
Size = tuple[int, int]
"""Height and width of the canvas in pixels."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """Faces in pixels of the canvas: `scores (K,)`, `boxes (K, 4)` as left, top, right, bottom, and
    `points (K, 5, 2)`, the x, y of the eyes, nose tip and mouth corners, the image's left first."""

    scores: Floats
    boxes: Floats
    points: Floats


Decode = Callable[[Outputs, Size, float], Candidates | None]
"""Outputs, canvas, least score -> faces at least that certain; None when the outputs are of another
layout, which their shapes alone decide."""


@dataclass(frozen=True)
class Layout:
    """A family of detectors. `spec` holds the pixels its networks were trained on (its size means
    nothing here), `min_score` from where on a face is one."""

    name: str
    outputs: str
    spec: InputSpec
    min_score: float
    decode: Decode


def pixels(channels: str, mean: float = 0.0, std: float = 1.0) -> InputSpec:
    return InputSpec(channels=channels, mean=(mean,) * 3, std=(std,) * 3)


def joined(parts: list[Candidates]) -> Candidates:
    return Candidates(
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.points for part in parts]),
    )


def around(centres: Floats, sizes: Floats) -> Floats:
    """Boxes `(K, 4)` as corners from centres and sizes `(K, 2)`."""
    return np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)


def five(points: Floats) -> Floats:
    """`(K, 10)` or, with a certainty each, `(K, 15)` as `(K, 5, 2)`."""
    return points.reshape(len(points), 5, points.shape[1] // 5)[..., :2]


def to_pixels(found: Candidates, size: Size) -> Candidates:
    """The same faces in pixels, should the network count in parts of its canvas.

    No face fits into two pixels, so larger numbers are pixels.
    """
    if np.abs(found.points).max(initial=0) > 2:
        return found
    scale = np.array(size[::-1], np.float32)
    return Candidates(found.scores, found.boxes * np.tile(scale, 2), found.points * scale)


def probability(values: Floats) -> Floats:
    """Scores as they are when all lie in 0..1, else the sigmoid that an export left out."""
    if values.min(initial=0) >= 0 and values.max(initial=1) <= 1:
        return values
    return sigmoid(values)


def sigmoid(values: Floats) -> Floats:
    with np.errstate(over="ignore"):
        shares: Floats = 1 / (1 + np.exp(-values))
    return shares
