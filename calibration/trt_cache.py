"""TensorRT's calibration cache: ranges as text, for implicit INT8 in TensorRT 8 and 10.

A header names the version and the algorithm; each line `tensor: scale` has the scale (amax / 127)
as the hex digits of a big-endian float32:

    TRT-100300-EntropyCalibration2
    face: 3c010a14

(Described by TensorRT's sample sampleINT8.) TensorRT silently ignores a cache of another version;
`check_cache` refuses it. Explicit Q/DQ (the other files) loses less accuracy.
"""

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from ..errors import BundleError, UsageError
from ..graph.shapes import tensor_types
from .clipping import METHODS, abs_histogram, pool_channels
from .histogram import Histogram

ALGORITHM = "EntropyCalibration2"  # of IInt8EntropyCalibrator2, which compares it with its own

_HINT = "make it again with `fr-edge calibrate BUNDLE --faces SRC --trt-cache VERSION`"
_LAST_MAJOR = 10  # the last TensorRT with implicit INT8
_HEADER = re.compile(r"TRT-(\d{4,6})-(\w+)")
_LINE = re.compile(r"(.+): ([0-9a-fA-F]{1,8})")


@dataclass(frozen=True)
class TrtCache:
    """The content of a calibration cache.

    Attributes:
        version: As TensorRT numbers itself; 10.3.0 is 100300.
        algorithm: The calibrator's name.
        ranges: Tensor -> amax >= 0.
    """

    version: int
    algorithm: str
    ranges: Mapping[str, float]


def version_number(version: str) -> int:
    """NV_TENSORRT_VERSION of a version: 8601 for 8.6.1, 100300 for 10.3, with more digits since 10.

    Args:
        version: As `tensorrt.__version__` writes it.

    Raises:
        UsageError: The text is not a version, or that TensorRT has no calibrator.
    """
    match = re.fullmatch(r"(\d{1,2})\.(\d{1,2})(?:\.(\d{1,2}))?(?:\.\d+)*", version, re.ASCII)
    if not match:
        raise UsageError(
            f"{version!r} is not a TensorRT version",
            "write it as `tensorrt.__version__` does, for example 10.3.0",
        )
    major, minor, patch = int(match[1]), int(match[2]), int(match[3] or 0)
    if not 7 <= major <= _LAST_MAJOR:
        raise UsageError(
            f"TensorRT {version} takes no calibration cache; TensorRT 7 to {_LAST_MAJOR} do",
            "leave it out: model.int8.onnx, which `fr-edge calibrate` writes too, needs no cache",
        )
    return (
        major * 10000 + minor * 100 + patch if major >= 10 else major * 1000 + minor * 100 + patch
    )


def activation_tensors(model: onnx.ModelProto) -> tuple[str, ...]:
    """The float tensors that depend on the face: the input and the outputs of nodes.

    Args:
        model: A float model whose shapes can be inferred.
    """
    types = tensor_types(model)
    names = [value.name for value in model.graph.input]
    names += [name for node in model.graph.node for name in node.output]
    return tuple(
        name
        for name in dict.fromkeys(names)
        if name in types
        and types[name].elem_type == onnx.TensorProto.FLOAT
        and len(types[name].shape.dim) >= 2
    )


def plain_ranges(histograms: Mapping[str, Histogram], method: str) -> dict[str, float]:
    """Ranges of the network as it is, without equalization and activation shift.

    Args:
        histograms: Tensor -> its values.
        method: A name of `clipping.METHODS`.

    Returns:
        Tensor -> amax; 0 for a tensor that is always zero.
    """
    ranges = {}
    for name, histogram in histograms.items():
        magnitudes = abs_histogram(histogram, np.zeros(len(histogram.low)))
        pooled = pool_channels(magnitudes, np.ones(len(magnitudes.peak)))
        ranges[name] = METHODS[method](*pooled) if magnitudes.peak.any() else 0.0
    return ranges


def cache_text(cache: TrtCache) -> str:
    """A cache as the text of `calibration.cache`.

    Args:
        cache: Its content.
    """
    lines = [f"TRT-{cache.version}-{cache.algorithm}"]
    lines += [f"{name}: {_hex(amax / 127.0)}" for name, amax in cache.ranges.items()]
    return "\n".join(lines) + "\n"


def read_cache(text: str, where: str) -> TrtCache:
    """Read the text of a calibration cache.

    Args:
        text: The content of `calibration.cache`.
        where: The file it comes from, for the error.

    Raises:
        BundleError: The text is not a calibration cache.
    """
    header, *lines = text.splitlines() or [""]
    if not (match := _HEADER.fullmatch(header.strip())):
        raise BundleError(
            f"{where} is not a TensorRT calibration cache: it begins with {header[:40]!r},"
            f" expected TRT-100300-{ALGORITHM}",
            _HINT,
        )
    ranges: dict[str, float] = {}
    for number, line in enumerate(lines, 2):
        if not line.strip():
            continue
        entry = _LINE.fullmatch(line.strip())
        scale = struct.unpack(">f", bytes.fromhex(entry[2].zfill(8)))[0] if entry else math.nan
        if not entry or not math.isfinite(scale) or scale < 0.0:
            raise BundleError(
                f"line {number} of {where} is {line[:60]!r}, expected `tensor: scale` in hex",
                _HINT,
            )
        ranges[entry[1]] = 127.0 * scale
    return TrtCache(int(match[1]), match[2], ranges)


def check_cache(cache: TrtCache, version: str, where: str) -> None:
    """Refuse a cache that TensorRT would silently ignore.

    Args:
        cache: Its content.
        version: The TensorRT that will read it, as `tensorrt.__version__`.
        where: The file it comes from, for the error.

    Raises:
        BundleError: The cache is of another version or algorithm.
    """
    if cache.version != version_number(version):
        raise BundleError(
            f"{where} was made for TensorRT {cache.version}, this is {version_number(version)}"
            f" ({version}), which would silently ignore it",
            f"fr-edge calibrate BUNDLE --faces SRC --trt-cache {version}",
        )
    if cache.algorithm != ALGORITHM:
        raise BundleError(f"{where} was made by {cache.algorithm}, expected {ALGORITHM}", _HINT)


def _hex(scale: float) -> str:
    return struct.pack(">f", scale).hex().lstrip("0") or "0"
