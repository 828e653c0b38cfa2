"""Detectors that suppress overlaps inside and give a short list of faces.

Their authors agree on little, so the list itself is asked: points in 0..1 count in parts of the
canvas, and of the three ways to write a box that one is meant which is centred on its points.
"""

import re

import numpy as np

from .base import (
    Candidates,
    Floats,
    Layout,
    Outputs,
    Size,
    boxes_around,
    five_points,
    pixel_spec,
    rows,
    to_pixels,
)

_MOST = 1000
"""Faces in such a list; a longer one was not suppressed."""


def decode_lists(outputs: Outputs, size: Size, least: float) -> Candidates | None:
    """Boxes `(K, 4)`, or `(K, 5)` with the score, scores `(K,)`, points `(K, 10)`, `(K, 5, 2)` or
    `(K, 5, 3)`; counts and labels beside them are left alone."""
    flat = {name: rows(array) for name, array in outputs.items() if array.ndim}
    several = [a for a in flat.values() if a.shape[1] in (4, 5)]
    marks = [a for a in flat.values() if a.shape[1] in (10, 15)]
    if len(several) != 1 or len(marks) != 1:
        return None
    boxes, points = several[0], marks[0]
    if len(boxes) != len(points) or len(boxes) > _MOST:
        return None
    if boxes.shape[1] == 5:
        scores = boxes[:, 4]
    else:
        named = {name: a for name, a in flat.items() if a.size == len(boxes)}
        chosen = [a for name, a in named.items() if re.search("score|conf|prob", name.lower())]
        if not named:
            return None
        scores = (chosen or list(named.values()))[0].ravel()
    return candidates_from_lists(scores, boxes[:, :4], points, size, least)


def decode_rows(outputs: Outputs, size: Size, least: float) -> Candidates | None:
    """One row a face: box, score, perhaps a class, five points with or without certainty."""
    table = rows(next(iter(outputs.values())))
    count, values = table.shape
    if len(outputs) != 1 or values not in (15, 16, 21) or count > _MOST:
        return None
    # Sixteen values may carry the class behind the score or at the end.
    labelled = values == 21 or (values == 16 and bool(np.isin(table[:, 5], (0, 1)).all()))
    points = table[:, 6:] if labelled else table[:, 5:15]
    return candidates_from_lists(table[:, 4], table[:, :4], points, size, least)


def candidates_from_lists(
    scores: Floats, boxes: Floats, points: Floats, size: Size, least: float
) -> Candidates:
    """From boxes `(K, 4)` and points `(K, 10 or 15)` written in one of those ways."""
    keep = scores >= least
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
    decode=decode_lists,
)

ROWS = Layout(
    "suppressed rows",
    "one row of 15, 16 or 21 values a face",
    pixel_spec("RGB", std=255.0),
    min_score=0.5,
    decode=decode_rows,
)
