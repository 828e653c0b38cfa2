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
    done = calibrate(bundle, open_faces(real_data / "faces_dev.tar"), limit=128)
    report = done.report
    assert report.int8_dense_share >= 0.95
    assert report.judged is not None
    assert report.judged.people >= 8
    assert report.judged.cosine.mean >= 0.993
    assert report.judged.cosine.min >= 0.975
