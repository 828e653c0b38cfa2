"""What a layout of detector outputs is, and what comes out of decoding one."""

import math
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


def pixel_spec(channels: str, mean: float = 0.0, std: float = 1.0) -> InputSpec:
    return InputSpec(channels=channels, mean=(mean,) * 3, std=(std,) * 3)


def join_candidates(parts: list[Candidates]) -> Candidates:
    return Candidates(
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.points for part in parts]),
    )


def boxes_around(centres: Floats, sizes: Floats) -> Floats:
    """Boxes `(K, 4)` as corners from centres and sizes `(K, 2)`."""
    return np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)


def five_points(points: Floats) -> Floats:
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


# Outputs that follow the cells of an image: which stride an array has, and its rows cell by cell.
#
# Maps `(1, C, h, w)`, `(1, h, w, C)`, `(1, A, h, w, C)` and lists `(1, h*w*A, C)` of the same network
# differ by the exporter; here they become one form.

STRIDES = (4, 8, 16, 32, 64, 128)

_MOST_ANCHORS = 2
"""Of lists. Three would be 48 = 3 * 16 cells of one stride or 12 of another; maps have no limit."""


@dataclass(frozen=True, eq=False)
class Level:
    """One stride: `grid (cells, 2)` is x, y of the cells, `parts` its outputs `(cells, values)` from
    the narrowest to the widest."""

    stride: int
    grid: Floats
    parts: list[Floats]


def pyramid(
    outputs: Outputs, size: Size, strides: tuple[int, ...], values: tuple[int, ...]
) -> list[Level] | None:
    """The levels, when the outputs are exactly these strides with this many values per cell each."""
    found: dict[int, list[Floats]] = {}
    for array in outputs.values():
        placed = _placed(array, size)
        if placed is None:
            return None
        found.setdefault(placed[0], []).append(placed[1])
    levels = [
        Level(stride, grid(size, stride), sorted(parts, key=lambda part: part.shape[1]))
        for stride, parts in sorted(found.items())
    ]
    shapes = [(level.stride, *(part.shape[1] for part in level.parts)) for level in levels]
    return levels if shapes == [(stride, *values) for stride in strides] else None


def cells(size: Size, stride: int) -> Size:
    """Rows and columns of cells."""
    return -(-size[0] // stride), -(-size[1] // stride)


def grid(size: Size, stride: int) -> Floats:
    rows, columns = cells(size, stride)
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    return np.stack([x.ravel(), y.ravel()], axis=1)


def rows(array: Floats) -> Floats:
    """`(N, values)` of one image: leading axes of 1 dropped, five points laid flat."""
    if array.shape[-2:] in ((5, 2), (5, 3)):
        array = array.reshape(*array.shape[:-2], math.prod(array.shape[-2:]))
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    return array.reshape(len(array), math.prod(array.shape[1:]))


def _placed(array: Floats, size: Size) -> tuple[int, Floats] | None:
    for stride in STRIDES:
        high, wide = cells(size, stride)
        if array.ndim == 5 and array.shape[2:4] == (high, wide):
            return stride, array[0].transpose(1, 2, 0, 3).reshape(high * wide, -1)
        if array.ndim == 4 and array.shape[2:] == (high, wide):
            return stride, array[0].transpose(1, 2, 0).reshape(high * wide, -1)
        if array.ndim == 4 and array.shape[1:3] == (high, wide):
            return stride, array[0].reshape(high * wide, -1)
        if array.ndim in (2, 3) and array.size:
            flat = rows(array)
            if len(flat) in (high * wide * n for n in range(1, _MOST_ANCHORS + 1)):
                return stride, flat.reshape(high * wide, -1)
    return None
