"""A detector in a bundle: exported, calibrated on photographs, built and opened."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

sys.path[:0] = [str(Path(__file__).parents[1] / "cli")]
from bright_detector import draw_bright_cell, write_conv_detector  # noqa: E402

from fr_edge.bundle.bundle import open_bundle  # noqa: E402
from fr_edge.calibration.detector_calibration import calibrate_detector  # noqa: E402
from fr_edge.errors import BundleError, FacesError, ModelError, UsageError  # noqa: E402
from fr_edge.export.detector_export import export_detector  # noqa: E402
from fr_edge.faces.detect import open_detector  # noqa: E402
from fr_edge.faces.photographs import open_photographs  # noqa: E402
from fr_edge.runtime.detector_engine import (  # noqa: E402
    build_detector_engine,
    open_bundle_detector,
)


@pytest.fixture(scope="module")
def with_detector(detecting_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a detector in FP32, FP16 and INT8, and an INT8 engine of it."""
    bundle = tmp_path_factory.mktemp("detector") / "mini.bundle"
    shutil.copytree(detecting_mini, bundle)
    build_detector_engine(bundle, "int8", "onnxruntime")
    return bundle


@pytest.fixture
def bundle(with_detector: Path, tmp_path: Path) -> Path:
    shutil.copytree(with_detector, tmp_path / "own.bundle")
    return tmp_path / "own.bundle"


@pytest.mark.parametrize("bytes_in", [False, True])
def test_an_exported_detector_finds_what_the_file_finds(
    bytes_in: bool, calibrated_mini: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "mini.bundle"
    shutil.copytree(calibrated_mini, bundle)
    file = write_conv_detector(tmp_path / "bright.onnx", bytes_in=bytes_in)
    result = export_detector(file, bundle, min_score=0.4)
    assert result.max_difference < 1e-5
    model = onnx.load(str(bundle / "detector.onnx"))
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value or d.dim_param for d in shape] == [1, 3, "height", "width"]
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    stored = json.loads((bundle / "detector.json").read_text())
    assert (stored["family"], stored["min_score"]) == ("SCRFD", 0.4)
    assert open_bundle(bundle).history[-1]["summary"]["detector"] == stored
    original, detector = open_detector(file), open_bundle_detector(bundle)
    for number in (0, 11, 40):
        image = draw_bright_cell(number)
        (expected,), (face,) = original(image), detector(image)
        np.testing.assert_allclose(face.points, expected.points, atol=1e-3)
        assert face.score == pytest.approx(expected.score, abs=1e-4)


def test_int8_is_calibrated_judged_and_built(with_detector: Path) -> None:
    report = json.loads((with_detector / "reports/calibration-detector.json").read_text())
    assert (report["photographs"], report["held_out"]) == (9, 3)
    assert report["int8_layers"] == 3
    assert report["judged"]["faces"] == 3
    assert report["judged"]["missed"] == 0
    assert 0 < report["judged"]["shift"]["median"] < 0.5
    with open_bundle_detector(with_detector) as detector:
        assert (detector.precision, detector.artifact) == ("int8", "engine")
        (face,) = detector(draw_bright_cell(20))
        (exact,) = open_bundle_detector(with_detector, "fp32", artifact="graph")(
            draw_bright_cell(20)
        )
        assert np.abs(face.points - exact.points).max() < 0.5
    with pytest.raises(UsageError, match="closed"):
        detector(draw_bright_cell(20))
    with pytest.raises(BundleError, match="no fp32 engine of its detector"):
        open_bundle_detector(with_detector, "fp32")
    half = open_bundle_detector(with_detector, "fp16", artifact="graph")(draw_bright_cell(20))
    assert np.abs(half[0].points - exact.points).max() < 0.2


def test_another_detector_removes_what_was_made_of_the_first(bundle: Path, tmp_path: Path) -> None:
    assert "engines/onnxruntime-int8-detector.onnx" in open_bundle(bundle).files
    file = write_conv_detector(tmp_path / "other.onnx", bytes_in=True)
    export_detector(file, bundle)
    files = open_bundle(bundle).files
    assert {"detector.onnx", "detector.json", "detector.fp16.onnx", "model.int8.onnx"} <= set(files)
    gone = {"detector.int8.onnx", "calibration.detector.json"}
    assert not gone & set(files)
    assert not [name for name in files if name.endswith("-detector.onnx")]


def test_what_a_stranger_wrote_is_refused(bundle: Path) -> None:
    from fr_edge.bundle.bundle import transaction

    stored = json.loads((bundle / "detector.json").read_text())
    for change, message in (
        ({"family": "Haar"}, "family 'Haar'"),
        ({"std": [0.0, 1.0, 1.0]}, "no detector has"),
        ({"height": 10**6}, "no detector has"),
        ({"min_score": 2.0}, "no detector has"),
        ({"outputs": ["other"]}, "not the network"),
        ({"width": "640"}, "cannot be read"),
    ):
        with transaction(bundle, "export", {}) as staged:
            staged.path("detector.json", "test").write_text(json.dumps({**stored, **change}))
        with pytest.raises((BundleError, ModelError), match=message):
            open_bundle_detector(bundle)
    (bundle / "detector.json").write_text(json.dumps(stored) + " ")
    with pytest.raises(BundleError, match="changed"):
        open_bundle_detector(bundle)


def test_what_cannot_be_exported_or_calibrated(bundle: Path, mini: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no known layout"):
        export_detector(bundle / "model.onnx", bundle)
    file = write_conv_detector(tmp_path / "bright.onnx")
    with pytest.raises(BundleError, match="face network"):
        export_detector(file, tmp_path / "none.bundle")
    with pytest.raises(BundleError, match=r"no detector\.json"):
        calibrate_detector(mini, open_photographs(_few(tmp_path / "few", 2)))
    with pytest.raises(FacesError, match="2 photographs"):
        calibrate_detector(bundle, open_photographs(tmp_path / "few"))
    with pytest.raises(FacesError, match="no folder"):
        open_photographs(tmp_path / "nothing")
    with pytest.raises(UsageError, match="no fp8 engine"):
        build_detector_engine(bundle, "fp8")


def _few(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        Image.fromarray(draw_bright_cell(number)).save(folder / f"{number}.png")
    return folder
