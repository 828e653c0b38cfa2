"""A detector's engine on the doubles of TensorRT and CUDA: what is built, bound and called.

Numbers are onnxruntime's; speed and fusion of a GPU are not shown.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from pretend import PretendBoard

sys.path[:0] = [str(Path(__file__).parents[1] / "cli")]
from bright_detector import draw_bright_cell  # noqa: E402

from fr_edge.bundle.bundle import open_bundle  # noqa: E402
from fr_edge.errors import MachineError, UsageError  # noqa: E402
from fr_edge.runtime.detector_engine import (  # noqa: E402
    build_detector_engine,
    open_bundle_detector,
)


@pytest.mark.parametrize("board", ["jetpack6.0", "datacenter11"])
def test_a_board_finds_what_the_graph_finds(
    board: str, detecting_mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "mini.bundle"
    shutil.copytree(detecting_mini, bundle)
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
        assert pretend.trt.called("IExecutionContext.nvtx_verbosity = NONE")
        assert (detector.backend, detector.precision) == ("tensorrt", "int8")
        for place, size in ((9, (160, 224)), (14, (256, 192)), (10, (160, 224))):
            image = draw_bright_cell(place, 0, size)
            (face,), (expected,) = detector(image), exact(image)
            np.testing.assert_allclose(face.points, expected.points, atol=0.2)
            assert face.score == pytest.approx(expected.score, abs=0.02)
    assert pretend.cuda.closed >= 1
    with pytest.raises(UsageError, match="closed"):
        detector(image)


def test_what_a_board_refuses(
    detecting_mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "mini.bundle"
    shutil.copytree(detecting_mini, bundle)
    pretend = PretendBoard("jetpack6.2", monkeypatch)
    build_detector_engine(bundle, "fp16", "tensorrt")
    pretend.trt.refuses.add("IExecutionContext.execute_async_v3")
    closed = pretend.cuda.closed
    with (
        open_bundle_detector(bundle) as detector,
        pytest.raises(MachineError, match="run the engine"),
    ):
        detector(draw_bright_cell(9))
    pretend.trt.types = {"kps32": "INT64"}
    with pytest.raises(MachineError, match="has the type INT64, expected FLOAT"):
        open_bundle_detector(bundle)
    pretend.trt.types, pretend.trt.contexts = {}, 0
    alive: list[dict[str, int]] = []
    pretend.cuda.before_close = lambda: alive.append(pretend.trt.alive())
    with pytest.raises(MachineError, match="too little memory"):
        open_bundle_detector(bundle)
    assert pretend.cuda.closed == closed + 3
    assert alive == [{}]
    from dataclasses import replace

    other = replace(pretend.gpus.gpus[0], name="L4", compute="8.9", integrated=False)
    pretend.have(other)
    with pytest.raises(MachineError, match="was built for"):
        open_bundle_detector(bundle, "fp16", "tensorrt")
