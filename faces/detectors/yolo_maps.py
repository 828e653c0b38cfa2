"""YOLO-face exported without its last step: one raw map per stride.

v8: four sides as distributions over 16 distances, a score, five points with certainty. v5: three
anchors a cell, which the file does not hold; they are those of the published yolov5-face networks.
"""

import numpy as np

from .cells import Level, pyramid
from .layout import Candidates, Layout, Outputs, Size, around, five, joined, pixels, sigmoid

_STRIDES = (8, 16, 32)
_V5_ANCHORS = {
    8: ((4, 5), (8, 10), (13, 16)),
    16: ((23, 29), (43, 55), (73, 105)),
    32: ((146, 217), (231, 300), (335, 433)),
}
_REACH = 16


def decode(outputs: Outputs, size: Size, least: float) -> Candidates | None:
    if (levels := pyramid(outputs, size, _STRIDES, (80,))) is not None:
        return joined([_v8(level, least) for level in levels])
    if (levels := pyramid(outputs, size, _STRIDES, (48,))) is not None:
        return joined([_v5(level, least) for level in levels])
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
    points = five(kept[:, 65:]) * 2 + cell[:, None]
    return Candidates(scores[keep], boxes * level.stride, points * level.stride)


def _v5(level: Level, least: float) -> Candidates:
    values = level.parts[0].reshape(-1, 16)
    scores = sigmoid(values[:, 4]) * sigmoid(values[:, 15])
    keep = scores >= least
    corner = level.grid.repeat(3, axis=0)[keep] * level.stride
    anchors = np.array(_V5_ANCHORS[level.stride], np.float32)
    anchor = np.tile(anchors, (len(level.grid), 1))[keep]
    box = sigmoid(values[keep, :4]) * 2
    boxes = around(corner + (box[:, :2] - 0.5) * level.stride, box[:, 2:] ** 2 * anchor)
    points = five(values[keep, 5:15]) * anchor[:, None] + corner[:, None]
    return Candidates(scores[keep], boxes, points)


YOLO_MAPS = Layout(
    "YOLO-face by strides",
    "one map each of strides 8, 16 and 32: 80 values a cell, or 3 times 16",
    pixels("RGB", std=255.0),
    min_score=0.5,
    decode=decode,
)
