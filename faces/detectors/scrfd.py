"""SCRFD (J. Guo et al., ICLR 2022), as insightface ships it: det_10g, det_500m, scrfd_*_bnkps.

Each stride has a score, the distances to a box's four sides and to five points, in strides from the
cell's corner; two anchors per cell, or one and two strides more.
"""

import numpy as np

from .base import (
    Candidates,
    Layout,
    Level,
    Outputs,
    Size,
    five_points,
    join_candidates,
    pixel_spec,
    probability,
    pyramid,
)


def _decode(outputs: Outputs, size: Size, min_score: float) -> Candidates | None:
    levels = pyramid(outputs, size, (8, 16, 32), (2, 8, 20)) or pyramid(
        outputs, size, (8, 16, 32, 64, 128), (1, 4, 10)
    )
    if levels is None:
        return None
    return join_candidates([_level(level, min_score) for level in levels])


def _level(level: Level, min_score: float) -> Candidates:
    anchors = level.parts[0].shape[1]
    scores = probability(level.parts[0]).ravel()
    keep = scores >= min_score
    corner = level.grid.repeat(anchors, axis=0)[keep] * level.stride
    reach = level.parts[1].reshape(-1, 4)[keep] * level.stride
    points = five_points(level.parts[2].reshape(-1, 10)[keep]) * level.stride
    boxes = np.concatenate([corner - reach[:, :2], corner + reach[:, 2:]], axis=1)
    return Candidates(scores[keep], boxes, corner[:, None] + points)


SCRFD = Layout(
    "SCRFD",
    "score, bbox and kps of strides 8, 16 and 32, two anchors per cell",
    pixel_spec("RGB", 127.5, 128.0),
    min_score=0.5,
    decode=_decode,
)
