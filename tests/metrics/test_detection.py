"""Missed faces and moved landmarks, against cases counted by hand."""

import numpy as np
import pytest

from fr_edge.faces.contract import ARCFACE_TEMPLATE
from fr_edge.metrics.detection import PhotographDetections, compare_detections, match_boxes

TEMPLATE = np.array(ARCFACE_TEMPLATE)


def faces(*places: tuple[float, float, float]) -> PhotographDetections:
    """Faces of a scale at x, y: the template there."""
    boxes = [[x, y, 112 * scale, 112 * scale] for x, y, scale in places]
    points = [TEMPLATE * scale + [x, y] for x, y, scale in places]
    return PhotographDetections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(points, np.float32).reshape(-1, 5, 2)
    )


def test_missed_added_and_moved() -> None:
    reference = [faces((0, 0, 1), (300, 0, 2)), faces((10, 10, 1)), faces(), faces((5, 5, 0.5))]
    other = [faces((306, 8, 2)), faces((10, 10, 1), (400, 400, 1)), faces((0, 0, 1)), faces()]
    drift = compare_detections(reference, other, TEMPLATE)
    assert (drift.photographs, drift.faces, drift.missed, drift.added) == (4, 4, 2, 2)
    assert drift.missed_share == 0.5
    # Wilson's interval of 2 of 3 photographs' worth of faces: centre and half width by hand.
    z2, n, p = 1.959964**2, 3, 0.5
    middle, half = (p + z2 / 2 / n) / (1 + z2 / n), 0.0
    half = np.sqrt(z2) / (1 + z2 / n) * np.sqrt(p * (1 - p) / n + z2 / 4 / n**2)
    assert drift.missed_interval_95 == pytest.approx((middle - half, middle + half), abs=1e-4)
    assert drift.shift_in_photograph is not None
    assert drift.shift is not None
    assert drift.shift_in_photograph.max == pytest.approx(10, rel=1e-4)  # 6 and 8 pixels
    assert drift.shift.max == pytest.approx(5, rel=1e-4)  # of a face that is twice the template
    assert drift.shift.median == pytest.approx(2.5, rel=1e-4)


def test_each_box_is_matched_once_and_the_best_first() -> None:
    first = np.float32([[0, 0, 10, 10], [4, 0, 10, 10]])
    second = np.float32([[3, 0, 10, 10]])
    assert match_boxes(first, second) == [(1, 0)]
    assert match_boxes(first, np.float32([[100, 0, 10, 10]])) == []
    assert match_boxes(first[:0], second) == []
    half = np.float32([[0, 0, 10, 5]])  # exactly half of the first
    assert match_boxes(first[:1], half) == [(0, 0)]


def test_without_faces_nothing_is_known() -> None:
    drift = compare_detections([faces()], [faces((0, 0, 1))], TEMPLATE)
    assert (drift.faces, drift.added) == (0, 1)
    assert drift.missed_share is drift.missed_interval_95 is drift.shift is None
