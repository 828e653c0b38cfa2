"""What detector layouts share: outputs, candidates, and outputs that follow the cells of an image.

Exporters write the same network's outputs as maps `(1, C, h, w)`, `(1, h, w, C)`, `(1, A, h, w, C)`
or lists `(1, h*w*A, C)`; `pyramid` brings them into one form by their shapes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..contract import InputSpec

Floats = npt.NDArray[np.floating[Any]]

Outputs = dict[str, Floats]  # name -> array of the first image, its batch axis of 1 kept

Size = tuple[int, int]  # height and width in pixels

STRIDES = (4, 8, 16, 32, 64, 128)  # pixels between cells that detectors use

_MAX_ANCHORS = 2  # of lists: 48 rows could be 3 * 16 cells of one stride or 12 of another


@dataclass(frozen=True, eq=False)
class Candidates:
    """K faces that a network proposes, in pixels of the canvas.

    Attributes:
        scores: Confidences, `(K,)`.
        boxes: Left, top, right, bottom, `(K, 4)`.
        points: x, y of the eyes, nose tip and mouth corners, the image's left ones first,
            `(K, 5, 2)`.
    """

    scores: Floats
    boxes: Floats
    points: Floats


# Outputs, canvas size and lowest score -> candidates of that score or more; None when the outputs,
# by their shapes, are of another layout.
Decode = Callable[[Outputs, Size, float], Candidates | None]


@dataclass(frozen=True)
class Layout:
    """A family of detectors.

    Attributes:
        name: Of the family.
        outputs: What its networks give, for messages.
        spec: Channel order, mean and std that its networks were trained with; the size is not used.
        min_score: Confidence from which a candidate is a face.
        decode: Reads the outputs.
    """

    name: str
    outputs: str
    spec: InputSpec
    min_score: float
    decode: Decode


@dataclass(frozen=True, eq=False)
class Level:
    """The outputs of one stride.

    Attributes:
        stride: Pixels between cells.
        grid: Column and row of each cell, `(cells, 2)`.
        parts: The outputs `(cells, values)`, from the narrowest to the widest.
    """

    stride: int
    grid: Floats
    parts: list[Floats]


def pixel_spec(channels: str, mean: float = 0.0, std: float = 1.0) -> InputSpec:
    """A contract with one mean and std for all channels.

    Args:
        channels: `RGB` or `BGR`.
        mean: In grey levels.
        std: In grey levels.
    """
    return InputSpec(channels=channels, mean=(mean,) * 3, std=(std,) * 3)


def join_candidates(parts: list[Candidates]) -> Candidates:
    """Candidates of several strides as one.

    Args:
        parts: At least one.
    """
    return Candidates(
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.points for part in parts]),
    )


def boxes_around(centres: Floats, sizes: Floats) -> Floats:
    """Boxes as corners.

    Args:
        centres: x, y, `(K, 2)`.
        sizes: Width, height, `(K, 2)`.

    Returns:
        Left, top, right, bottom, `(K, 4)`.
    """
    return np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)


def five_points(points: Floats) -> Floats:
    """Landmarks as pairs.

    Args:
        points: `(K, 10)`, or with a confidence each, `(K, 15)`.

    Returns:
        `(K, 5, 2)`.
    """
    return points.reshape(len(points), 5, points.shape[1] // 5)[..., :2]


def to_pixels(candidates: Candidates, size: Size) -> Candidates:
    """Candidates in pixels, where the network gives fractions of its canvas.

    No face fits into two pixels, so points beyond 2 are in pixels already.

    Args:
        candidates: In pixels or in fractions.
        size: Of the canvas.
    """
    if np.abs(candidates.points).max(initial=0) > 2:
        return candidates
    scale = np.array(size[::-1], np.float32)
    boxes, points = candidates.boxes * np.tile(scale, 2), candidates.points * scale
    return Candidates(candidates.scores, boxes, points)


def probability(values: Floats) -> Floats:
    """Scores as probabilities: unchanged when all lie in 0..1, else through a sigmoid.

    Args:
        values: Scores of any shape; some exports leave the sigmoid out.
    """
    if values.min(initial=0) >= 0 and values.max(initial=1) <= 1:
        return values
    return sigmoid(values)


def sigmoid(values: Floats) -> Floats:
    """The logistic function.

    Args:
        values: Of any shape.
    """
    with np.errstate(over="ignore"):
        shares: Floats = 1 / (1 + np.exp(-values))
    return shares


def pyramid(
    outputs: Outputs, size: Size, strides: tuple[int, ...], values: tuple[int, ...]
) -> list[Level] | None:
    """Outputs by stride and cell.

    Args:
        outputs: Of the network.
        size: Of the canvas.
        strides: The strides that the layout has.
        values: Values per cell of each output of a stride, ascending.

    Returns:
        A level per stride; None when the outputs are not exactly these.
    """
    by_stride: dict[int, list[Floats]] = {}
    for array in outputs.values():
        placed = _by_cell(array, size)
        if placed is None:
            return None
        by_stride.setdefault(placed[0], []).append(placed[1])
    levels = [
        Level(stride, grid(size, stride), sorted(parts, key=lambda part: part.shape[1]))
        for stride, parts in sorted(by_stride.items())
    ]
    shapes = [(level.stride, *(part.shape[1] for part in level.parts)) for level in levels]
    return levels if shapes == [(stride, *values) for stride in strides] else None


def cells(size: Size, stride: int) -> Size:
    """Rows and columns of cells.

    Args:
        size: Of the canvas.
        stride: Pixels between cells.
    """
    return -(-size[0] // stride), -(-size[1] // stride)


@lru_cache(maxsize=64)  # photographs of one camera have one size
def grid(size: Size, stride: int) -> Floats:
    """Column and row of each cell.

    Args:
        size: Of the canvas.
        stride: Pixels between cells.

    Returns:
        `(cells, 2) float32`, row by row, read-only.
    """
    rows, columns = cells(size, stride)
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    places = np.stack([x.ravel(), y.ravel()], axis=1)
    places.flags.writeable = False
    return places


def as_table(array: Floats) -> Floats:
    """An output of one image as a table.

    Args:
        array: Any shape; leading axes of 1 are dropped, five landmarks become one row.

    Returns:
        `(N, values)`.
    """
    if array.shape[-2:] in ((5, 2), (5, 3)):
        array = array.reshape(*array.shape[:-2], math.prod(array.shape[-2:]))
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    return array.reshape(len(array), math.prod(array.shape[1:]))


def _by_cell(array: Floats, size: Size) -> tuple[int, Floats] | None:
    """The stride of an output and its values `(cells, values)`; None when its shape fits none."""
    table = as_table(array) if array.ndim in (2, 3) and array.size else None
    for stride in STRIDES:
        high, wide = cells(size, stride)
        if array.ndim == 5 and array.shape[2:4] == (high, wide):
            return stride, array[0].transpose(1, 2, 0, 3).reshape(high * wide, -1)
        if array.ndim == 4 and array.shape[2:] == (high, wide):
            return stride, array[0].transpose(1, 2, 0).reshape(high * wide, -1)
        if array.ndim == 4 and array.shape[1:3] == (high, wide):
            return stride, array[0].reshape(high * wide, -1)
        if table is not None and len(table) in (
            high * wide * n for n in range(1, _MAX_ANCHORS + 1)
        ):
            return stride, table.reshape(high * wide, -1)
    return None
