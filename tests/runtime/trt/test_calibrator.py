"""Implicit quantisation's own parts, on the double of TensorRT's bindings."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from tensorrt_double import TensorRTDouble

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.bundle.manifest import Bundle
from fr_edge.calibration.trt_cache import ALGORITHM, TrtCache, cache_text
from fr_edge.errors import BundleError, UsageError
from fr_edge.faces.sources import open_faces
from fr_edge.runtime import build
from fr_edge.runtime.build import build_engine
from fr_edge.runtime.trt.calibrator import cached_calibrator, calibrator_class, make_calibrator
from fr_edge.runtime.trt.config import EngineOptions


def tensorrt(version: str = "10.3.0") -> Any:
    return TensorRTDouble(version).module


def test_a_cache_is_handed_over_as_it_is() -> None:
    base = tensorrt().IInt8EntropyCalibrator2
    made = make_calibrator(base, b"TRT-100300-EntropyCalibration2\n")
    assert isinstance(made, base)
    assert made.read_calibration_cache() == b"TRT-100300-EntropyCalibration2\n"
    assert made.get_batch(["face"]) is None
    assert made.get_batch_size() == 1


def with_cache(bundle: Bundle, folder: Path, data: bytes) -> Bundle:
    shutil.copytree(bundle.root, folder / "c.bundle")
    with transaction(folder / "c.bundle", "calibrate", {}) as draft:
        draft.path("calibration.cache", "calibration cache").write_bytes(data)
    return open_bundle(folder / "c.bundle")


def test_a_cache_of_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    text = cache_text(TrtCache(100300, ALGORITHM, {"face": 1.0}))
    cached = with_cache(bundle, tmp_path, text.encode())
    trt = tensorrt()
    assert cached_calibrator(trt, cached, "int8").read_calibration_cache() == text.encode()
    with pytest.raises(BundleError, match="made for TensorRT 100300, this is 8601"):
        cached_calibrator(tensorrt("8.6.1"), cached, "int8")
    with pytest.raises(UsageError, match="not fp16"):
        cached_calibrator(trt, cached, "fp16")


def test_no_cache_or_none_that_can_be_read(bundle: Bundle, tmp_path: Path) -> None:
    trt = tensorrt()
    with pytest.raises(BundleError, match=r"has no calibration\.cache") as error:
        cached_calibrator(trt, bundle, "int8")
    assert "--trt-cache 10.3.0" in error.value.hint
    with pytest.raises(BundleError, match="is not"):
        cached_calibrator(trt, with_cache(bundle, tmp_path, b"\xff\xfe\x00"), "int8")


def test_a_tensorrt_without_calibrators_says_so() -> None:
    with pytest.raises(UsageError, match="tensorrt 11.4.1 does not quantise implicitly"):
        calibrator_class(tensorrt("11.4.1"))


def test_rtx_refuses_by_name(bundle: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(UsageError, match="tensorrt_rtx .* does not quantise implicitly"):
        build_engine(bundle, "fp32", "tensorrt-rtx", options=EngineOptions(implicit=True))


def test_faces_for_a_bundle_that_is_not_calibrated(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It calibrates with TensorRT's cache; a library without a calibrator is refused before."""
    pytest.importorskip("tensorrt_rtx")
    with transaction(bundle.root, "export", {}) as draft:
        draft.remove("model.int8.onnx")
    plain, faces = bundle.root, open_faces("synthetic:6x2")
    options = EngineOptions(implicit=True)
    with pytest.raises(UsageError, match="does not quantise implicitly"):
        build_engine(plain, "int8", "tensorrt-rtx", faces, options=options)
    assert "calibration.json" not in open_bundle(plain)
    monkeypatch.setattr(build, "cache_version", lambda backend: "10.3.0")
    with pytest.raises(UsageError, match="does not quantise implicitly"):
        build_engine(plain, "int8", "tensorrt-rtx", faces, options=options)
    cache = open_bundle(plain).file("calibration.cache").read_text()
    assert cache.startswith("TRT-100300-EntropyCalibration2\n")
