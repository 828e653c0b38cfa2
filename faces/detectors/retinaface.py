"""RetinaFace (J. Deng et al., CVPR 2020): the PyTorch exports, and insightface's first one.

PyTorch: three lists loc, conf and landms over all anchors ("priors"), also of the family's small
networks; offsets in tenths and fifths of the anchor, input BGR minus 104, 117, 123. insightface's:
three maps per stride, offsets in anchors, input RGB 0..255.
"""

import numpy as np

from ..contract import InputSpec
from .base import (
    Candidates,
    Floats,
    Layout,
    Outputs,
    Size,
    as_table,
    boxes_around,
    five_points,
    grid,
    join_candidates,
    pixel_spec,
    pyramid,
    sigmoid,
)
from .end_to_end import candidates_from_lists

_PRIORS: tuple[dict[int, tuple[int, ...]], ...] = (  # stride -> sides of the anchors in pixels
    {8: (16, 32), 16: (64, 128), 32: (256, 512)},  # mobilenet0.25 and resnet50
    {8: (10, 16, 24), 16: (32, 48), 32: (64, 96), 64: (128, 192, 256)},  # slim and RFB
)


def _decode(outputs: Outputs, size: Size, min_score: float) -> Candidates | None:
    parts = {table.shape[1]: table for table in (as_table(array) for array in outputs.values())}
    if len(outputs) != 3 or set(parts) != {2, 4, 10}:
        return None
    for sides in _PRIORS:
        centres, widths = _anchors(sides, size)
        if {len(table) for table in parts.values()} == {len(centres)}:
            break
    else:
        return None
    scores = _softmax(parts[2])
    if _decoded(parts[4], centres):
        return candidates_from_lists(scores, parts[4], parts[10], size, min_score)
    keep = scores >= min_score
    centre, width = centres[keep], widths[keep, None]
    loc, landms = parts[4][keep], five_points(parts[10][keep])
    boxes = boxes_around(centre + 0.1 * loc[:, :2] * width, np.exp(0.2 * loc[:, 2:]) * width)
    return Candidates(scores[keep], boxes, centre[:, None] + 0.1 * landms * width[..., None])


def _decode_maps(outputs: Outputs, size: Size, min_score: float) -> Candidates | None:
    levels = pyramid(outputs, size, (8, 16, 32), (4, 8, 20))
    if levels is None:
        return None
    candidates = []
    for level in levels:
        # Two anchors per cell, the larger first, around the middle of a 16 pixel square.
        scores = level.parts[0][:, 2:].ravel()
        keep = scores >= min_score
        centre = level.grid.repeat(2, axis=0)[keep] * level.stride + 7.5
        sides = np.array([4, 2], np.float32) * level.stride**2 / 8
        width = np.tile(sides, len(level.grid))[keep, None]
        box = level.parts[1].reshape(-1, 4)[keep]
        points = five_points(level.parts[2].reshape(-1, 10)[keep])
        boxes = boxes_around(centre + box[:, :2] * width, np.exp(box[:, 2:]) * width)
        candidates.append(
            Candidates(scores[keep], boxes, centre[:, None] + points * width[..., None])
        )
    return join_candidates(candidates)


def _anchors(sides: dict[int, tuple[int, ...]], size: Size) -> tuple[Floats, Floats]:
    """Centres `(N, 2)` and widths `(N,)` in pixels: stride by stride, cell by cell, small first."""
    centres, widths = [], []
    for stride, many in sides.items():
        middles = (grid(size, stride) + np.float32(0.5)) * stride
        centres.append(middles.repeat(len(many), axis=0))
        widths.append(np.tile(np.array(many, np.float32), len(middles)))
    return np.concatenate(centres), np.concatenate(widths)


def _decoded(boxes: Floats, centres: Floats) -> bool:
    """Whether boxes follow their anchors across the image, as offsets from them cannot."""
    with np.errstate(invalid="ignore", divide="ignore"):
        alike = np.corrcoef(boxes[:, 0] + boxes[:, 2], centres[:, 0])[0, 1]
    return bool(alike > 0.9)


def _softmax(values: Floats) -> Floats:
    """The face's probability `(N,)`; exports of the training network leave the softmax out."""
    if np.allclose(values.sum(axis=1), 1, atol=1e-3):
        return values[:, 1]
    return sigmoid(values[:, 1] - values[:, 0])


RETINAFACE = Layout(
    "RetinaFace",
    "loc, conf and landms over all anchors",
    InputSpec(channels="BGR", mean=(104.0, 117.0, 123.0), std=(1.0, 1.0, 1.0)),
    min_score=0.6,
    decode=_decode,
)

RETINAFACE_MAPS = Layout(
    "RetinaFace by strides",
    "cls_prob, bbox_pred and landmark_pred of strides 8, 16 and 32",
    pixel_spec("RGB"),
    min_score=0.6,
    decode=_decode_maps,
)
