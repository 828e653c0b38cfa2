"""YuNet (W. Wu et al., Machine Intelligence Research 2023), as in OpenCV's zoo.

Each stride has two scores, a box and points per cell; the input is BGR 0..255.
"""

import numpy as np

from .base import (
    Candidates,
    Layout,
    Outputs,
    Size,
    boxes_around,
    five_points,
    join_candidates,
    pixel_spec,
    pyramid,
)


def _decode(outputs: Outputs, size: Size, min_score: float) -> Candidates | None:
    levels = pyramid(outputs, size, (8, 16, 32), (1, 1, 4, 10))
    if levels is None:
        return None
    parts = []
    for level in levels:
        face, place, boxes, points = level.parts
        scores = np.sqrt(np.clip(face[:, 0], 0, 1) * np.clip(place[:, 0], 0, 1))
        keep = scores >= min_score
        cell, box = level.grid[keep], boxes[keep]
        corners = boxes_around(
            (cell + box[:, :2]) * level.stride, np.exp(box[:, 2:]) * level.stride
        )
        spots = (five_points(points[keep]) + cell[:, None]) * level.stride
        parts.append(Candidates(scores[keep], corners, spots))
    return join_candidates(parts)


YUNET = Layout(
    "YuNet",
    "cls, obj, bbox and kps of strides 8, 16 and 32",
    pixel_spec("BGR"),
    min_score=0.7,
    decode=_decode,
)
