"""YOLO-face with its boxes decoded inside: one output, a row or a column per cell and anchor.

20 or 15 values, v8 and later: box centre and size, score, five points with or without certainty;
16, v5 (D. Qi et al., 2021): box, certainty of a box, five points, of a face; 21, v7: box, certainty
of a box, of a face, five points with certainty.
"""

import numpy as np

from .cells import cells, rows
from .layout import Candidates, Floats, Layout, Outputs, Size, around, five, pixels, to_pixels

_PYRAMIDS = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32))
_ANCHORS = {15: 1, 20: 1, 16: 3, 21: 3}
"""Values of a row -> anchors a cell."""


def decode(outputs: Outputs, size: Size, least: float) -> Candidates | None:
    table = next((t for array in outputs.values() if (t := _table(array, size)) is not None), None)
    if table is None:
        return None
    values = table.shape[1]
    scores: Floats = table[:, 4]
    points = table[:, 5:]
    if values == 16:
        scores, points = scores * table[:, 15], table[:, 5:15]
    elif values == 21:
        scores, points = scores * table[:, 5], table[:, 6:]
    keep = scores >= least
    boxes = around(table[keep, :2], table[keep, 2:4])
    return to_pixels(Candidates(scores[keep], boxes, five(points[keep])), size)


def _table(array: Floats, size: Size) -> Floats | None:
    flat = rows(array)
    for table in (flat, flat.T):
        count, values = table.shape
        anchors = _ANCHORS.get(values)
        for strides in _PYRAMIDS:
            if anchors and count == anchors * sum(np.prod(cells(size, s)) for s in strides):
                return table
    return None


YOLO = Layout(
    "YOLO-face",
    "one list of boxes, scores and five points: 15, 16, 20 or 21 values each",
    pixels("RGB", std=255.0),
    min_score=0.5,
    decode=decode,
)
