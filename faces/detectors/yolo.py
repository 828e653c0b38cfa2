"""YOLO-face with its boxes decoded inside: one output, a row or a column per cell and anchor.

20 or 15 values, v8 and later: box centre and size, score, five points with or without certainty;
16, v5 (D. Qi et al., 2021): box, certainty of a box, five points, of a face; 21, v7: box, certainty
of a box, of a face, five points with certainty.
"""

import numpy as np

from .base import (
    Candidates,
    Floats,
    Layout,
    Level,
    Outputs,
    Size,
    boxes_around,
    cells,
    five_points,
    join_candidates,
    pixel_spec,
    pyramid,
    rows,
    sigmoid,
    to_pixels,
)

_PYRAMIDS = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32))

_ANCHORS = {15: 1, 20: 1, 16: 3, 21: 3}
"""Values of a row -> anchors a cell."""


def decode_yolo(outputs: Outputs, size: Size, least: float) -> Candidates | None:
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
    boxes = boxes_around(table[keep, :2], table[keep, 2:4])
    return to_pixels(Candidates(scores[keep], boxes, five_points(points[keep])), size)


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
    pixel_spec("RGB", std=255.0),
    min_score=0.5,
    decode=decode_yolo,
)


# YOLO-face exported without its last step: one raw map per stride.
#
# v8: four sides as distributions over 16 distances, a score, five points with certainty. v5: three
# anchors a cell, which the file does not hold; they are those of the published yolov5-face networks.

_STRIDES = (8, 16, 32)

_V5_ANCHORS = {
    8: ((4, 5), (8, 10), (13, 16)),
    16: ((23, 29), (43, 55), (73, 105)),
    32: ((146, 217), (231, 300), (335, 433)),
}

_REACH = 16


def decode_yolo_maps(outputs: Outputs, size: Size, least: float) -> Candidates | None:
    if (levels := pyramid(outputs, size, _STRIDES, (80,))) is not None:
        return join_candidates([_v8(level, least) for level in levels])
    if (levels := pyramid(outputs, size, _STRIDES, (48,))) is not None:
        return join_candidates([_v5(level, least) for level in levels])
    return None


def _v8(level: Level, least: float) -> Candidates:
    (values,) = level.parts
    scores = sigmoid(values[:, 64])
    keep = scores >= least
    cell, kept = level.grid[keep], values[keep]
    sides = kept[:, :64].reshape(-1, 4, _REACH)
    shares = np.exp(sides - sides.max(axis=2, keepdims=True))
    reach = (shares / shares.sum(axis=2, keepdims=True)) @ np.arange(_REACH, dtype=np.float32)
    boxes = np.concatenate([cell + 0.5 - reach[:, :2], cell + 0.5 + reach[:, 2:]], axis=1)
    points = five_points(kept[:, 65:]) * 2 + cell[:, None]
    return Candidates(scores[keep], boxes * level.stride, points * level.stride)


def _v5(level: Level, least: float) -> Candidates:
    values = level.parts[0].reshape(-1, 16)
    scores = sigmoid(values[:, 4]) * sigmoid(values[:, 15])
    keep = scores >= least
    corner = level.grid.repeat(3, axis=0)[keep] * level.stride
    anchors = np.array(_V5_ANCHORS[level.stride], np.float32)
    anchor = np.tile(anchors, (len(level.grid), 1))[keep]
    box = sigmoid(values[keep, :4]) * 2
    boxes = boxes_around(corner + (box[:, :2] - 0.5) * level.stride, box[:, 2:] ** 2 * anchor)
    points = five_points(values[keep, 5:15]) * anchor[:, None] + corner[:, None]
    return Candidates(scores[keep], boxes, points)


YOLO_MAPS = Layout(
    "YOLO-face by strides",
    "one map each of strides 8, 16 and 32: 80 values a cell, or 3 times 16",
    pixel_spec("RGB", std=255.0),
    min_score=0.5,
    decode=decode_yolo_maps,
)
