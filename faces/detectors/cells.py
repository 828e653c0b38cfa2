"""Outputs that follow the cells of an image: which stride an array has, and its rows cell by cell.

Maps `(1, C, h, w)`, `(1, h, w, C)`, `(1, A, h, w, C)` and lists `(1, h*w*A, C)` of the same network
differ by the exporter; here they become one form.
"""

import math
from dataclasses import dataclass

import numpy as np

from .layout import Floats, Outputs, Size

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
