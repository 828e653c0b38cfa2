"""However many faces go at a time, and however long small tensors wait, the counts are the same."""

import numpy as np
import onnx
import pytest

from fr_edge.calibration import collect as module
from fr_edge.calibration.collect import collect_histograms
from fr_edge.calibration.histogram import Histogram
from fr_edge.errors import FacesError
from fr_edge.faces.contract import PRESETS
from fr_edge.faces.sources import Faces
from fr_edge.graph.layers import choose_int8_layers

SPEC = PRESETS["insightface"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("_MAX_BATCH_VALUES", 1),
        ("_MIN_CHANNEL_VALUES", 1),
        ("_MIN_CHANNEL_VALUES", 1 << 30),
        ("_MAX_WAITING_VALUES", 1),
    ],
)
def test_the_same_counts(
    name: str,
    value: int,
    model: onnx.ModelProto,
    faces: Faces,
    histograms: dict[str, Histogram],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, name, value)
    images = map(faces.read, range(len(faces)))
    counted = collect_histograms(model, choose_int8_layers(model).tensors, SPEC, images)
    assert counted.keys() == histograms.keys()
    for tensor, expected in histograms.items():
        # onnxruntime may add in another order for another batch: a value on an edge may move.
        moved = np.abs(counted[tensor].counts.astype(np.int64) - expected.counts).sum()
        assert moved <= 1e-3 * expected.counts.sum()
        assert (counted[tensor].counts.sum(axis=1) == expected.counts.sum(axis=1)).all()
        np.testing.assert_allclose(counted[tensor].high, expected.high, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(counted[tensor].mean, expected.mean, rtol=1e-4, atol=1e-4)


def test_no_faces(model: onnx.ModelProto) -> None:
    with pytest.raises(FacesError, match="found none"):
        collect_histograms(model, choose_int8_layers(model).tensors, SPEC, [])
