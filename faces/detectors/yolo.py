"""YOLO-face, with its boxes decoded in the network or exported without that step.

Decoded, there is one output, a row or a column per cell and anchor. 20 or 15 values, v8 and later:
box centre and size, score, five points with or without confidence; 16, v5 (D. Qi et al., 2021):
box, objectness, five points, class score; 21, v7: box, objectness, class score, five points with
confidence.

Without the last step there is a map per stride. v8: four sides as distributions over 16 distances,
a score, five points with confidence. v5: three anchors per cell, which the file does not hold;
those of the published yolov5-face networks are assumed.
"""

import numpy as np

from .base import (
    Candidates,
    Floats,
    Layout,
    Level,
    Outputs,
    Size,
    as_table,
    boxes_around,
    cells,
    five_points,
    join_candidates,
    pixel_spec,
    pyramid,
    sigmoid,
    to_pixels,
)

_PYRAMIDS = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32))  # strides of decoded outputs

_ANCHORS = {15: 1, 20: 1, 16: 3, 21: 3}  # values of a row -> anchors per cell

_MAP_STRIDES = (8, 16, 32)

_V5_ANCHORS = {  # stride -> widths and heights in pixels
    8: ((4, 5), (8, 10), (13, 16)),
    16: ((23, 29), (43, 55), (73, 105)),
    32: ((146, 217), (231, 300), (335, 433)),
}

_DISTANCES = 16  # bins of v8's distributions, in strides


def _decode(outputs: Outputs, size: Size, min_score: float) -> Candidates | None:
    tables = (_table(array, size) for array in outputs.values())
    table = next((table for table in tables if table is not None), None)
    if table is None:
        return None
    values = table.shape[1]
    scores: Floats = table[:, 4]
    points = table[:, 5:]
    if values == 16:
        scores, points = scores * table[:, 15], table[:, 5:15]
    elif values == 21:
        scores, points = scores * table[:, 5], table[:, 6:]
    keep = scores >= min_score
    boxes = boxes_around(table[keep, :2], table[keep, 2:4])
    return to_pixels(Candidates(scores[keep], boxes, five_points(points[keep])), size)


def _table(array: Floats, size: Size) -> Floats | None:
    rows = as_table(array)
    for table in (rows, rows.T):
        count, values = table.shape
        anchors = _ANCHORS.get(values)
        for strides in _PYRAMIDS:
            if anchors and count == anchors * sum(np.prod(cells(size, s)) for s in strides):
                return table
    return None


def _decode_maps(outputs: Outputs, size: Size, min_score: float) -> Candidates | None:
    if (levels := pyramid(outputs, size, _MAP_STRIDES, (80,))) is not None:
        return join_candidates([_v8(level, min_score) for level in levels])
    if (levels := pyramid(outputs, size, _MAP_STRIDES, (48,))) is not None:
        return join_candidates([_v5(level, min_score) for level in levels])
    return None


def _v8(level: Level, min_score: float) -> Candidates:
    (values,) = level.parts
    scores = sigmoid(values[:, 64])
    keep = scores >= min_score
    cell, values = level.grid[keep], values[keep]
    sides = values[:, :64].reshape(-1, 4, _DISTANCES)
    shares = np.exp(sides - sides.max(axis=2, keepdims=True))
    shares /= shares.sum(axis=2, keepdims=True)
    reach = shares @ np.arange(_DISTANCES, dtype=np.float32)
    boxes = np.concatenate([cell + 0.5 - reach[:, :2], cell + 0.5 + reach[:, 2:]], axis=1)
    points = five_points(values[:, 65:]) * 2 + cell[:, None]
    return Candidates(scores[keep], boxes * level.stride, points * level.stride)


def _v5(level: Level, min_score: float) -> Candidates:
    values = level.parts[0].reshape(-1, 16)
    scores = sigmoid(values[:, 4]) * sigmoid(values[:, 15])
    keep = scores >= min_score
    corner = level.grid.repeat(3, axis=0)[keep] * level.stride
    anchors = np.array(_V5_ANCHORS[level.stride], np.float32)
    anchor = np.tile(anchors, (len(level.grid), 1))[keep]
    box = sigmoid(values[keep, :4]) * 2
    boxes = boxes_around(corner + (box[:, :2] - 0.5) * level.stride, box[:, 2:] ** 2 * anchor)
    points = five_points(values[keep, 5:15]) * anchor[:, None] + corner[:, None]
    return Candidates(scores[keep], boxes, points)


YOLO = Layout(
    "YOLO-face",
    "one list of boxes, scores and five points: 15, 16, 20 or 21 values each",
    pixel_spec("RGB", std=255.0),
    min_score=0.5,
    decode=_decode,
)

YOLO_MAPS = Layout(
    "YOLO-face by strides",
    "one map for each of strides 8, 16 and 32: 80 values per cell, or 3 times 16",
    pixel_spec("RGB", std=255.0),
    min_score=0.5,
    decode=_decode_maps,
)
