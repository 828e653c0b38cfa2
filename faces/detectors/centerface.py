"""CenterFace (Y. Xu et al., 2019): a heat map at stride 4, sizes, offsets and points beside it.

Height and y come first in every map; points count in sizes of the box from its corner.
"""

import numpy as np

from .base import Candidates, Layout, Outputs, Size, boxes_around, five_points, pixel_spec, pyramid


def _decode(outputs: Outputs, size: Size, min_score: float) -> Candidates | None:
    levels = pyramid(outputs, size, (4,), (1, 2, 2, 10))
    if levels is None:
        return None
    heat, scales, offsets, points = levels[0].parts
    keep = heat[:, 0] >= min_score
    sizes = np.exp(scales[keep, ::-1]) * 4
    boxes = boxes_around((levels[0].grid[keep] + offsets[keep, ::-1] + 0.5) * 4, sizes)
    spots = five_points(points[keep])[..., ::-1] * sizes[:, None] + boxes[:, None, :2]
    return Candidates(heat[keep, 0], boxes, spots)


CENTERFACE = Layout(
    "CenterFace",
    "heat map, scale, offset and landmarks at stride 4",
    pixel_spec("RGB"),
    min_score=0.5,
    decode=_decode,
)
