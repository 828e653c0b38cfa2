"""Implicit quantisation's own parts. No TensorRT that has a calibrator can be installed here: a
plain class with the same methods stands in for its base, and nothing shows what TensorRT does."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fr_edge.bundle import Bundle, change, open_bundle
from fr_edge.calibration.trt_cache import ALGORITHM, TrtCache, cache_text
from fr_edge.errors import BundleError, UsageError
from fr_edge.runtime.engines.build import build_engine
from fr_edge.runtime.engines.engine_config import EngineOptions
from fr_edge.runtime.engines.implicit import cached_calibrator, calibrator_class, make_calibrator


class Base:
    """As pybind's: its __init__ must have been called by name."""

    def __init__(self) -> None:
        self.begun = True


def tensorrt(version: str = "10.3.0", **attributes: object) -> SimpleNamespace:
    return SimpleNamespace(__name__="tensorrt", __version__=version, **attributes)


def test_faces_go_in_one_batch_at_a_time() -> None:
    sent: list[np.ndarray] = []
    batches = (np.full((4, 3, 2, 2), i, np.float32) for i in range(3))
    made = make_calibrator(Base, batches, lambda batch: sent.append(batch) or 1000 + len(sent))
    assert made.begun
    assert made.read_calibration_cache() is None
    found = []
    while (address := made.get_batch(["face"])) is not None:
        assert made.get_batch_size() in (4, 1)
        found += address
    assert found == [1001, 1002, 1003]
    assert [batch[0, 0, 0, 0] for batch in sent] == [0, 1, 2]
    made.write_calibration_cache(memoryview(b"TRT-..."))
    assert made.cache == b"TRT-..."


def test_a_cache_is_handed_over_as_it_is() -> None:
    made = make_calibrator(Base, cache=b"TRT-100300-EntropyCalibration2\n")
    assert made.read_calibration_cache() == b"TRT-100300-EntropyCalibration2\n"
    assert made.get_batch(["face"]) is None
    assert made.get_batch_size() == 1


def with_cache(bundle: Bundle, folder: Path, data: bytes) -> Bundle:
    shutil.copytree(bundle.root, folder / "c.bundle")
    with change(folder / "c.bundle", "calibrate", {}) as draft:
        draft.path("calibration.cache", "calibration cache").write_bytes(data)
    return open_bundle(folder / "c.bundle")


def test_a_cache_of_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    text = cache_text(TrtCache(100300, ALGORITHM, {"face": 1.0}))
    held = with_cache(bundle, tmp_path, text.encode())
    trt = tensorrt(IInt8EntropyCalibrator2=Base)
    assert cached_calibrator(trt, held, "int8").read_calibration_cache() == text.encode()
    with pytest.raises(BundleError, match="made for TensorRT 100300, this is 8601"):
        cached_calibrator(tensorrt("8.6.1", IInt8EntropyCalibrator2=Base), held, "int8")
    with pytest.raises(UsageError, match="not fp16"):
        cached_calibrator(trt, held, "fp16")


def test_no_cache_or_none_that_can_be_read(bundle: Bundle, tmp_path: Path) -> None:
    trt = tensorrt(IInt8EntropyCalibrator2=Base)
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
