"""A detector's engine on the doubles of TensorRT and CUDA: what is built, bound and called.

Numbers are onnxruntime's; speed and fusion of a GPU are not shown.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pretend import PretendBoard

sys.path[:0] = [str(Path(__file__).parents[1] / "cli")]
from bright_detector import write_conv_detector  # noqa: E402

from fr_edge.bundle.bundle import open_bundle  # noqa: E402
from fr_edge.calibration.detector_calibration import calibrate_detector  # noqa: E402
from fr_edge.errors import MachineError, UsageError  # noqa: E402
from fr_edge.export.detector_export import export_detector  # noqa: E402
from fr_edge.faces.photographs import open_photographs  # noqa: E402
from fr_edge.runtime.detector_engine import (  # noqa: E402
    build_detector_engine,
    open_bundle_detector,
)


def photograph(seed: int, size: tuple[int, int] = (160, 224)) -> np.ndarray:
    random = np.random.default_rng(seed)
    image = random.integers(0, 30, (*size, 3)).astype(np.uint8)
    row, column = random.integers(1, 4, 2) * 32
    image[row : row + 32, column : column + 32] = 245
    return image


@pytest.fixture(scope="module")
def with_detector(calibrated_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    shutil.copytree(calibrated_mini, folder / "mini.bundle")
    (folder / "photographs").mkdir()
    for number in range(8):
        Image.fromarray(photograph(number)).save(folder / "photographs" / f"{number}.png")
    export_detector(write_conv_detector(folder / "bright.onnx"), folder / "mini.bundle")
    calibrate_detector(folder / "mini.bundle", open_photographs(folder / "photographs"))
    return folder / "mini.bundle"


@pytest.mark.parametrize("board", ["jetpack6.0", "jetpack6.2", "datacenter11"])
def test_a_board_finds_what_the_graph_finds(
    board: str, with_detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "mini.bundle"
    shutil.copytree(with_detector, bundle)
    pretend = PretendBoard(board, monkeypatch)
    built = build_detector_engine(bundle, "int8", "tensorrt")
    assert built.engine.endswith("-int8-detector.plan")
    assert built.layers["int8"] == 3
    (profile,) = pretend.trt.called("IOptimizationProfile.set_shape")
    assert "[1, 3, 32, 32]" in profile or "(1, 3, 32, 32)" in profile
    assert "640, 640" in profile
    build_detector_engine(bundle, "fp16", "tensorrt")
    assert built.engine in open_bundle(bundle).files
    exact = open_bundle_detector(bundle, "int8", artifact="graph")
    with open_bundle_detector(bundle) as detector:
        assert (detector.backend, detector.precision) == ("tensorrt", "int8")
        for seed, size in ((0, (160, 224)), (1, (256, 192)), (0, (160, 224))):
            image = photograph(seed, size)
            (face,), (expected,) = detector(image), exact(image)
            np.testing.assert_allclose(face.points, expected.points, atol=0.2)
            assert face.score == pytest.approx(expected.score, abs=0.02)
    assert pretend.cuda.closed >= 1
    with pytest.raises(UsageError, match="closed"):
        detector(image)


def test_what_a_board_refuses(
    with_detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "mini.bundle"
    shutil.copytree(with_detector, bundle)
    pretend = PretendBoard("jetpack6.2", monkeypatch)
    build_detector_engine(bundle, "fp16", "tensorrt")
    pretend.trt.refuses.add("IExecutionContext.execute_async_v3")
    closed = pretend.cuda.closed
    with (
        open_bundle_detector(bundle) as detector,
        pytest.raises(MachineError, match="run the engine"),
    ):
        detector(photograph(0))
    pretend.trt.contexts = 0
    with pytest.raises(MachineError, match="too little memory"):
        open_bundle_detector(bundle)
    assert pretend.cuda.closed == closed + 2
    from dataclasses import replace

    other = replace(pretend.gpus.gpus[0], name="L4", compute="8.9", integrated=False)
    pretend.have(other)
    with pytest.raises(MachineError, match="was built for"):
        open_bundle_detector(bundle, "fp16", "tensorrt")
