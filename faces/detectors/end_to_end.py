"""Detectors that suppress overlaps in the network and give a short list of faces.

Their formats differ, so the numbers decide: points in 0..1 are fractions of the canvas, and of the
three ways to write a box the one that is centred on its points is taken.
"""

import re

import numpy as np

from .base import (
    Candidates,
    Floats,
    Layout,
    Outputs,
    Size,
    as_table,
    boxes_around,
    five_points,
    pixel_spec,
    to_pixels,
)

_MAX_FACES = 1000  # in such a list; a longer one was not suppressed


def _decode_lists(outputs: Outputs, size: Size, min_score: float) -> Candidates | None:
    """Boxes `(K, 4)`, or `(K, 5)` with the score, scores `(K,)`, points `(K, 10)`, `(K, 5, 2)` or
    `(K, 5, 3)`; counts and labels beside them are left alone."""
    tables = {name: as_table(array) for name, array in outputs.items() if array.ndim}
    several = [a for a in tables.values() if a.shape[1] in (4, 5)]
    marks = [a for a in tables.values() if a.shape[1] in (10, 15)]
    if len(several) != 1 or len(marks) != 1:
        return None
    boxes, points = several[0], marks[0]
    if len(boxes) != len(points) or len(boxes) > _MAX_FACES:
        return None
    if boxes.shape[1] == 5:
        scores = boxes[:, 4]
    else:
        named = {name: a for name, a in tables.items() if a.size == len(boxes)}
        chosen = [a for name, a in named.items() if re.search("score|conf|prob", name.lower())]
        if not named:
            return None
        scores = (chosen or list(named.values()))[0].ravel()
    return candidates_from_lists(scores, boxes[:, :4], points, size, min_score)


def _decode_rows(outputs: Outputs, size: Size, min_score: float) -> Candidates | None:
    """A row per face: box, score, perhaps a class, five points with or without confidence."""
    table = as_table(next(iter(outputs.values())))
    count, values = table.shape
    if len(outputs) != 1 or values not in (15, 16, 21) or count > _MAX_FACES:
        return None
    # Sixteen values may carry the class behind the score or at the end.
    labelled = values == 21 or (values == 16 and bool(np.isin(table[:, 5], (0, 1)).all()))
    points = table[:, 6:] if labelled else table[:, 5:15]
    return candidates_from_lists(table[:, 4], table[:, :4], points, size, min_score)


def candidates_from_lists(
    scores: Floats, boxes: Floats, points: Floats, size: Size, min_score: float
) -> Candidates:
    """Candidates from lists in one of the formats.

    Args:
        scores: Confidences, `(K,)`.
        boxes: As corners, corner and size, or centre and size, `(K, 4)`.
        points: `(K, 10)`, or with a confidence each, `(K, 15)`.
        size: Of the canvas.
        min_score: Lowest confidence.
    """
    keep = scores >= min_score
    spots = five_points(points[keep])
    start, end = boxes[keep, :2], boxes[keep, 2:]
    ways = (
        boxes[keep],
        np.concatenate([start, start + end], axis=1),
        boxes_around(start, end),
    )
    middle = spots.mean(axis=1)
    off = [np.abs((way[:, :2] + way[:, 2:]) / 2 - middle).sum() for way in ways]
    return to_pixels(Candidates(scores[keep], ways[int(np.argmin(off))], spots), size)


LISTS = Layout(
    "suppressed lists",
    "boxes, scores and landmarks of the faces",
    pixel_spec("RGB", 127.5, 128.0),
    min_score=0.5,
    decode=_decode_lists,
)

ROWS = Layout(
    "suppressed rows",
    "a row of 15, 16 or 21 values per face",
    pixel_spec("RGB", std=255.0),
    min_score=0.5,
    decode=_decode_rows,
)
