"""A real network with its own quirks goes through NVIDIA's compiler in every flavour."""

import pytest

from fr_edge.calibration.calibrate import calibrate
from fr_edge.export.export import export_onnx
from fr_edge.faces.contract import PRESETS
from fr_edge.faces.sources import open_faces
from fr_edge.runtime.build import build_engine

pytestmark = pytest.mark.real


def test_mobilefacenet_compiles_as_it_was_calibrated(real_data, tmp_path, caplog):
    caplog.set_level("INFO")
    pytest.importorskip("tensorrt_rtx", reason="the compile check needs tensorrt-rtx")
    source = real_data / "mobilefacenet_y1.onnx"
    bundle = export_onnx(source, tmp_path / "y1.bundle", spec=PRESETS["raw"]).bundle
    report = calibrate(bundle, open_faces(real_data / "faces_dev.tar"), limit=8).report
    for precision in ("fp32", "fp16", "int8"):
        built = build_engine(bundle.root, precision, "tensorrt-rtx")
        assert sum(built.layers.values()) == 50
        if precision != "int8":
            assert built.layers[precision] == 50
            continue
        assert built.layers["int8"] == report.int8_layers
        assert built.layers["fp16"] == 50 - report.int8_layers
        assert "0 reformats" in caplog.text
