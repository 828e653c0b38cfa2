"""TensorRT's cache: its text both ways, what is refused, and that the ranges are the network's."""

import shutil
import struct
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from fr_edge.bundle.bundle import open_bundle
from fr_edge.bundle.manifest import Bundle
from fr_edge.calibration.calibrate import calibrate
from fr_edge.calibration.trt_cache import (
    ALGORITHM,
    TrtCache,
    activation_tensors,
    cache_text,
    check_cache,
    read_cache,
    version_number,
)
from fr_edge.errors import BundleError, UsageError
from fr_edge.faces.contract import preprocess
from fr_edge.faces.sources import Faces

PUBLISHED = """TRT-7103-EntropyCalibration2
data: 3c008912
conv: 1: 3ddc858b
(Unnamed Layer* 64) [Shuffle]_output: 0
"""
"""In the form of NVIDIA's sample, whose `data` are pixels from 0 to 1."""


def test_a_cache_as_tensorrt_writes_it() -> None:
    cache = read_cache(PUBLISHED, "x")
    assert (cache.version, cache.algorithm) == (7103, ALGORITHM)
    assert cache.ranges["data"] == pytest.approx(1.0, abs=0.005)
    assert cache.ranges["conv: 1"] == pytest.approx(
        127 * struct.unpack(">f", b"\x3d\xdc\x85\x8b")[0]
    )
    assert cache.ranges["(Unnamed Layer* 64) [Shuffle]_output"] == 0.0
    assert cache_text(cache) == PUBLISHED


@pytest.mark.parametrize("amax", [0.0, 1e-30, 0.3, 127.0, 1e9])
def test_there_and_back(amax: float) -> None:
    text = cache_text(TrtCache(100300, ALGORITHM, {"face": amax}))
    assert text.startswith("TRT-100300-EntropyCalibration2\nface: ")
    assert read_cache(text, "x").ranges["face"] == pytest.approx(amax, rel=1e-6)


@pytest.mark.parametrize(
    ("version", "number"),
    [("8.6.1", 8601), ("8.6.1.6", 8601), ("8.5", 8500), ("10.3", 100300), ("10.13.3.9", 101303)],
)
def test_versions_as_tensorrt_numbers_them(version: str, number: int) -> None:
    assert version_number(version) == number


@pytest.mark.parametrize("version", ["11.4.1", "1.7", "ten", "", "10", "10.x", "٨.٦"])
def test_versions_without_a_calibrator(version: str) -> None:
    with pytest.raises(UsageError):
        version_number(version)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello\n",
        "TRT-x-EntropyCalibration2\n",
        "TRT-8601-EntropyCalibration2\nface 3c0\n",
        "TRT-8601-EntropyCalibration2\nface: zz\n",
        "TRT-8601-EntropyCalibration2\nface: 7fc00000\n",
        "TRT-8601-EntropyCalibration2\nface: bc010a14\n",
        "TRT-8601-EntropyCalibration2\nface: 3c010a1400\n",
    ],
)
def test_text_that_is_no_cache(text: str) -> None:
    with pytest.raises(BundleError, match="calibration.cache"):
        read_cache(text, "calibration.cache")


def test_another_versions_cache_is_refused() -> None:
    cache = TrtCache(100300, ALGORITHM, {"face": 1.0})
    check_cache(cache, "10.3.0", "x")
    with pytest.raises(BundleError, match=r"made for TensorRT 100300, this is 100301 \(10.3.1\)"):
        check_cache(cache, "10.3.1", "x")
    with pytest.raises(BundleError, match="MinMaxCalibration"):
        check_cache(TrtCache(100300, "MinMaxCalibration", {}), "10.3.0", "x")


def test_the_cache_holds_the_plain_networks_ranges(
    exported: Bundle, faces: Faces, tmp_path: Path
) -> None:
    bundle = shutil.copytree(exported.root, tmp_path / "n.bundle")
    done = calibrate(bundle, faces, "minmax", trt_cache="8.6.1").bundle
    cache = read_cache(done.file("calibration.cache").read_text(), "x")
    assert cache.version == 8601

    model = onnx.load(done.file("model.onnx"))
    names = activation_tensors(model)
    assert names[0] == "face"
    assert {model.graph.output[0].name, *(n.output[0] for n in model.graph.node)} <= set(names)
    assert list(cache.ranges) == list(names)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names[1:])
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    calibrated = [i for i in range(len(faces)) if faces.labels[i] % 5 != 4]
    x = preprocess(next(faces.batches(len(calibrated), calibrated)), done.spec)
    for name, values in zip(names, [x, *session.run(None, {"face": x})], strict=True):
        assert cache.ranges[name] == pytest.approx(float(np.abs(values).max()), rel=1e-4), name

    # A calibration without one leaves none of an earlier run.
    calibrate(bundle, faces)
    assert "calibration.cache" not in open_bundle(bundle)
