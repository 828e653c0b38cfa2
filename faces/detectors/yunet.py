"""YuNet (W. Wu et al., Machine Intelligence Research 2023), as in OpenCV's zoo.

Per stride two scores, a box and points of every cell; input BGR 0..255.
"""

import numpy as np

from .cells import pyramid
from .layout import Candidates, Layout, Outputs, Size, around, five, joined, pixels


def decode(outputs: Outputs, size: Size, least: float) -> Candidates | None:
    levels = pyramid(outputs, size, (8, 16, 32), (1, 1, 4, 10))
    if levels is None:
        return None
    found = []
    for level in levels:
        face, place, boxes, points = level.parts
        scores = np.sqrt(np.clip(face[:, 0], 0, 1) * np.clip(place[:, 0], 0, 1))
        keep = scores >= least
        cell, box = level.grid[keep], boxes[keep]
        corners = around((cell + box[:, :2]) * level.stride, np.exp(box[:, 2:]) * level.stride)
        spots = (five(points[keep]) + cell[:, None]) * level.stride
        found.append(Candidates(scores[keep], corners, spots))
    return joined(found)


YUNET = Layout(
    "YuNet",
    "cls, obj, bbox and kps of strides 8, 16 and 32",
    pixels("BGR"),
    min_score=0.7,
    decode=decode,
)
