"""A frame's steps, by a clock that only they move."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bright_detector import draw_bright_cell
from PIL import Image

from fr_edge.faces.photographs import open_photographs
from fr_edge.runtime.benchmark import frame_benchmark
from fr_edge.runtime.build import build_engine
from fr_edge.runtime.detector_engine import BundleDetector, build_detector_engine
from fr_edge.runtime.onnxruntime_session import CpuSession
from fr_edge.runtime.recognition.face_gallery import Gallery


def test_a_steps_time_is_of_that_step(
    detecting_mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps are the real ones, and each takes as long as the test says."""
    bundle = tmp_path / "mini.bundle"
    shutil.copytree(detecting_mini, bundle)
    build_engine(bundle, "fp32", "onnxruntime")
    build_detector_engine(bundle, "fp32", "onnxruntime")
    (tmp_path / "album").mkdir()
    Image.fromarray(draw_bright_cell(11)).save(tmp_path / "album" / "face.png")
    now = 0

    def taking(ms: int, step: Callable[..., Any]) -> Callable[..., Any]:
        def taken(*args: Any) -> Any:
            nonlocal now
            now += ms * 1_000_000
            return step(*args)

        return taken

    monkeypatch.setattr(frame_benchmark, "time", SimpleNamespace(perf_counter_ns=lambda: now))
    for owner, name, ms in (
        (frame_benchmark, "decode_photograph", 2),
        (BundleDetector, "__call__", 20),
        (frame_benchmark, "align_faces", 4),
        (CpuSession, "embed", 40),
        (Gallery, "search", 6),
    ):
        monkeypatch.setattr(owner, name, taking(ms, getattr(owner, name)))
    result = frame_benchmark.benchmark_frames(
        bundle, open_photographs(tmp_path / "album"), "fp32", "onnxruntime", detector="fp32",
        faces=(1,), frame_size=(320, 640), gallery=100, duration_s=0.1, warmup_s=0.1,
    )  # fmt: skip
    (frame,) = result.frames
    assert frame.found  # else nothing is matched
    assert list(frame.steps_ms.items()) == [
        ("decode", 2), ("detect", 20), ("align", 4), ("embed", 40), ("match", 6),
    ]  # fmt: skip
