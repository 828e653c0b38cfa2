"""Painting tools of synthetic faces: a canvas in face coordinates, shapes, colours.

Only exactly rounded operations (+ - * / sqrt) touch the pixels, so the same numbers give the same
bytes on every machine and with every numpy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...arrays import F32
from ..contract import ALIGNED_SIZE, ARCFACE_TEMPLATE
from .parameters import Values

Distance = npt.NDArray[np.floating[Any]]  # (h, w): to a shape's edge, below 0 inside, in pixels

Colour = Sequence[float]  # red, green, blue, 0..255

_EYES_X = (ARCFACE_TEMPLATE[0][0] + ARCFACE_TEMPLATE[1][0]) / 2

_EYES_Y = (ARCFACE_TEMPLATE[0][1] + ARCFACE_TEMPLATE[1][1]) / 2

_Y, _X = (grid.astype(np.float32) for grid in np.mgrid[0:ALIGNED_SIZE, 0:ALIGNED_SIZE])


@dataclass(frozen=True)
class Canvas:
    """A picture, or a part of one, and where its pixels are on the face.

    Attributes:
        pixels: Red, green, blue, 0..255, `(3, h, w) float32`.
        u: To the right from between the eyes, in pixels of the aligned frame, `(h, w) float32`.
        v: Down from between the eyes, `(h, w) float32`.
    """

    pixels: F32
    u: F32
    v: F32


def blank_canvas(shot: Values) -> Canvas:
    """An unpainted picture, with the head's roll, shift and scale in its coordinates.

    Args:
        shot: Values of `SHOT`.
    """
    # Half-angle form of sine and cosine: no library function, the same bits everywhere.
    half = shot["roll"] / 2
    cos, sin = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    x = (_X - np.float32(_EYES_X + shot["shift_x"])) / np.float32(shot["scale"])
    y = (_Y - np.float32(_EYES_Y + shot["shift_y"])) / np.float32(shot["scale"])
    pixels = np.empty((3, ALIGNED_SIZE, ALIGNED_SIZE), np.float32)
    return Canvas(
        pixels, x * np.float32(cos) + y * np.float32(sin), y * np.float32(cos) - x * np.float32(sin)
    )


def region_around(face: Canvas, u: float, v: float, reach: float) -> Canvas:
    """The part of a canvas near a point: details are painted on few pixels.

    Args:
        face: The whole canvas; its pixels are shared.
        u: To the right from between the eyes, in pixels.
        v: Down from between the eyes, in pixels.
        reach: How far the detail extends, in pixels.
    """
    # Roll, shift and scale move a point by less than this.
    slack = 5 + 0.08 * (abs(u) + abs(v))
    x, y, r = u + _EYES_X, v + _EYES_Y, reach + slack
    rows = slice(max(0, int(y - r)), max(0, int(y + r) + 1))
    columns = slice(max(0, int(x - r)), max(0, int(x + r) + 1))
    return Canvas(face.pixels[:, rows, columns], face.u[rows, columns], face.v[rows, columns])


def paint(face: Canvas, distance: Distance, colour: Colour | F32, strength: float = 1) -> None:
    """Paint a shape, its edge smoothed over one pixel.

    Args:
        face: The canvas; its pixels change.
        distance: To the shape's edge, below 0 inside, in pixels, `(h, w)`.
        colour: Of the shape, or of each pixel `(3, h, w)`.
        strength: Opacity, 0 to 1.
    """
    cover = np.clip(0.5 - distance, 0, 1) * np.float32(strength)
    tint = np.asarray(colour, np.float32)
    tint = tint[:, None, None] if tint.ndim == 1 else tint
    face.pixels[:] += cover * (tint - face.pixels)


def oval(face: Canvas, u: float, v: float, half_width: float, half_height: float) -> Distance:
    """Distance to an ellipse; exact near its edge.

    Args:
        face: The canvas.
        u: Of the centre, to the right from between the eyes, in pixels.
        v: Of the centre, down, in pixels.
        half_width: Horizontal semi-axis, in pixels.
        half_height: Vertical semi-axis, in pixels.
    """
    x = (face.u - np.float32(u)) / np.float32(half_width)
    y = (face.v - np.float32(v)) / np.float32(half_height)
    distance: Distance = (np.sqrt(x * x + y * y) - 1) * np.float32(min(half_width, half_height))
    return distance


def mix(a: Colour, b: Colour, share: float) -> list[float]:
    """A colour between two.

    Args:
        a: The colour at share 0.
        b: The colour at share 1.
        share: Of `b`.
    """
    return [x + (y - x) * share for x, y in zip(a, b, strict=True)]
