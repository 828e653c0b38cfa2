"""What a faster detector loses against its reference: faces that it misses, and how far landmarks move."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..arrays import F32, F64
from .score_intervals import score_interval

MIN_OVERLAP = 0.5  # intersection over union from which two boxes are one face, as WIDER FACE counts


@dataclass(frozen=True, eq=False)
class PhotographDetections:
    """The K faces of one photograph, in its pixels.

    Attributes:
        boxes: x, y, width, height, `(K, 4) float32`.
        points: Five landmarks, `(K, 5, 2) float32`.
    """

    boxes: F32
    points: F32


@dataclass(frozen=True)
class LandmarkShift:
    """Mean distance of a face's five landmarks from the reference's, over faces, in pixels."""

    median: float
    p95: float
    max: float


@dataclass(frozen=True)
class DetectionDrift:
    """A detector against its reference on the same photographs.

    Attributes:
        photographs: How many were looked at.
        faces: Faces that the reference finds.
        missed: Of these, faces that the other does not find.
        added: Faces that only the other finds.
        missed_share: `missed` over `faces`; None without a face.
        missed_interval_95: 95 % interval of that share; the faces of one photograph count as one.
        shift: Of the landmarks in pixels of the 112x112 aligned face; None where no face is found by
            both.
        shift_in_photograph: The same in pixels of the photographs.
    """

    photographs: int
    faces: int
    missed: int
    added: int
    missed_share: float | None
    missed_interval_95: tuple[float, float] | None
    shift: LandmarkShift | None
    shift_in_photograph: LandmarkShift | None


def compare_detections(
    reference: Sequence[PhotographDetections],
    other: Sequence[PhotographDetections],
    template: F64,
) -> DetectionDrift:
    """Match the faces of two detectors photograph by photograph.

    Boxes are matched greedily, those that overlap most first.

    Args:
        reference: What the reference finds in each photograph.
        other: What the other detector finds, photograph by photograph.
        template: Landmarks of an aligned face in its pixels, `(5, 2)`: the scale of a face.
    """
    faces, added, holding = 0, 0, 0
    distances: list[float] = []
    scales: list[float] = []
    for before, after in zip(reference, other, strict=True):
        pairs = match_boxes(before.boxes, after.boxes)
        faces += len(before.boxes)
        holding += bool(len(before.boxes))
        added += len(after.boxes) - len(pairs)
        for i, j in pairs:
            points = before.points[i].astype(np.float64)
            distances.append(float(np.linalg.norm(points - after.points[j], axis=1).mean()))
            scales.append(_spread(template) / max(_spread(points), 1e-9))
    missed = faces - len(distances)
    share = missed / faces if faces else None
    return DetectionDrift(
        len(reference),
        faces,
        missed,
        added,
        share,
        None if share is None else score_interval(share, 1 / holding),
        _shift(np.array(distances) * scales),
        _shift(np.array(distances)),
    )


def match_boxes(first: F32, second: F32) -> list[tuple[int, int]]:
    """Pair the boxes that show one face.

    Args:
        first: x, y, width, height, `(K, 4)`.
        second: The same of another detector, `(L, 4)`.

    Returns:
        Indices into both, those that overlap most first; each box is in one pair at most.
    """
    overlaps = _overlaps(first.astype(np.float64), second.astype(np.float64))
    pairs = []
    while overlaps.size and overlaps.max() >= MIN_OVERLAP:
        i, j = (int(place) for place in np.unravel_index(int(overlaps.argmax()), overlaps.shape))
        pairs.append((i, j))
        overlaps[i], overlaps[:, j] = -1, -1
    return pairs


def _overlaps(first: F64, second: F64) -> F64:
    """Intersection over union, `(K, L)`."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(
        first[:, None, :2] + first[:, None, 2:], (second[:, :2] + second[:, 2:])[None]
    )
    common = np.maximum(high - low, 0).prod(axis=2)
    areas = first[:, None, 2:].prod(axis=2) + second[None, :, 2:].prod(axis=2)
    shares: F64 = common / np.maximum(areas - common, 1e-9)
    return shares


def _spread(points: F64) -> float:
    """Root of the summed squares of the landmarks about their mean: the size of a face."""
    return float(np.linalg.norm(points - points.mean(axis=0)))


def _shift(distances: F64) -> LandmarkShift | None:
    if not len(distances):
        return None
    median, p95, top = np.percentile(distances, (50, 95, 100))
    return LandmarkShift(float(median), float(p95), float(top))
