"""A real network on real people keeps what INT8 is allowed to cost.

The true accept rates of the same networks need thousands of faces: benchmarks/int8_loss.py.
"""

from pathlib import Path

import pytest

from fr_edge.calibration.calibrate import calibrate
from fr_edge.export.export import export_onnx
from fr_edge.faces.contract import PRESETS
from fr_edge.faces.sources import open_faces

pytestmark = pytest.mark.real


def test_int8_stays_close_on_people_held_apart(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "mobilefacenet_y1.onnx"
    bundle = export_onnx(source, tmp_path / "y1.bundle", spec=PRESETS["raw"]).bundle
    faces = open_faces(real_data / "faces_dev.tar")
    report = calibrate(bundle, faces, limit=128).report
    full = report.trials[0]  # every dense layer in INT8, before layers are left in float
    assert not full.float_layers
    assert full.int8_mac_share >= 0.95
    assert full.loss.cosine.mean >= 0.993
    assert full.loss.cosine.min >= 0.975
    assert report.int8_mac_share >= 0.8
    assert report.judged is not None
    assert report.judged.people >= 8
    assert report.judged.cosine.mean >= max(0.999, full.loss.cosine.mean)
    assert report.judged.cosine.min >= 0.975
