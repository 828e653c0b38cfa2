"""TensorRT's calibration cache: ranges as text, for implicit quantisation by TensorRT 8 and 10.

One header that names the version and the algorithm, then `tensor: scale`, the scale (amax / 127) as
the eight hex digits of a float32, the highest first:

    TRT-100300-EntropyCalibration2
    face: 3c010a14

(TensorRT's sample sampleINT8 describes it.) TensorRT skips a cache of another version without a
word; here it is refused. What explicit Q/DQ does is in the other files, and loses less.
"""

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from ..errors import BundleError, UsageError
from ..graph.shapes import tensor_types
from .clipping import METHODS, abs_histogram, pool_channels
from .histogram import Histogram

ALGORITHM = "EntropyCalibration2"
"""The algorithm of the calibrator that reads it, `IInt8EntropyCalibrator2`; TensorRT compares it."""

LAST_MAJOR = 10
"""The last TensorRT that quantises implicitly."""

_HEADER = re.compile(r"TRT-(\d{4,6})-(\w+)")

_LINE = re.compile(r"(.+): ([0-9a-fA-F]{1,8})")


@dataclass(frozen=True)
class TrtCache:
    """`version` as TensorRT numbers itself (10.3.0 is 100300); `ranges` tensor -> amax >= 0."""

    version: int
    algorithm: str
    ranges: Mapping[str, float]


def version_number(version: str) -> int:
    """`8.6.1` -> 8601, `10.3` -> 100300: NV_TENSORRT_VERSION, which took more digits in 10.

    Raises UsageError for text that is no version, and for a TensorRT that has no calibrator.
    """
    match = re.fullmatch(r"(\d{1,2})\.(\d{1,2})(?:\.(\d{1,2}))?(?:\.\d+)*", version, re.ASCII)
    if not match:
        raise UsageError(
            f"{version!r} is not a TensorRT version", "as `import tensorrt` says it, 10.3.0"
        )
    major, minor, patch = int(match[1]), int(match[2]), int(match[3] or 0)
    if not 7 <= major <= LAST_MAJOR:
        raise UsageError(
            f"TensorRT {version} takes no calibration cache: found in 7 to {LAST_MAJOR} only",
            "model.int8.onnx, which `fr-edge calibrate` writes anyway, is for every TensorRT",
        )
    return (
        major * 10000 + minor * 100 + patch if major >= 10 else major * 1000 + minor * 100 + patch
    )


def activation_tensors(model: onnx.ModelProto) -> tuple[str, ...]:
    """The float tensors of a model that faces change: its input and what its nodes make."""
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


def plain_ranges(seen: Mapping[str, Histogram], method: str = "entropy") -> dict[str, float]:
    """Tensor -> amax of the network as it is, neither equalised nor centred."""
    found = {}
    for name, histogram in seen.items():
        sizes = abs_histogram(histogram, 0.0 * histogram.low)
        silent = not sizes.peak.any()
        found[name] = (
            0.0 if silent else METHODS[method](*pool_channels(sizes, 1.0 + 0.0 * sizes.peak))
        )
    return found


def cache_text(cache: TrtCache) -> str:
    lines = [f"TRT-{cache.version}-{cache.algorithm}"]
    lines += [f"{name}: {_hex(amax / 127.0)}" for name, amax in cache.ranges.items()]
    return "\n".join(lines) + "\n"


def read_cache(text: str, where: str) -> TrtCache:
    """Raises BundleError, which names `where`, for text that is no cache."""
    header, *lines = text.splitlines() or [""]
    if not (match := _HEADER.fullmatch(header.strip())):
        raise BundleError(
            f"{where} is not a TensorRT calibration cache: it begins with {header[:40]!r},"
            f" expected TRT-100300-{ALGORITHM}",
            _AGAIN,
        )
    ranges: dict[str, float] = {}
    for number, line in enumerate(lines, 2):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line.strip())
        scale = struct.unpack(">f", bytes.fromhex(found[2].zfill(8)))[0] if found else math.nan
        if not found or not math.isfinite(scale) or scale < 0.0:
            raise BundleError(
                f"line {number} of {where} is {line[:60]!r}, expected `tensor: scale` in hex",
                _AGAIN,
            )
        ranges[found[1]] = 127.0 * scale
    return TrtCache(int(match[1]), match[2], ranges)


def check_cache(cache: TrtCache, version: str, where: str) -> None:
    """Raises BundleError where TensorRT `version` would pass over the cache in silence."""
    if cache.version != version_number(version):
        raise BundleError(
            f"{where} was made for TensorRT {cache.version}, this is {version_number(version)}"
            f" ({version}), which would pass over it without a word",
            f"fr-edge calibrate BUNDLE --faces SRC --trt-cache {version}",
        )
    if cache.algorithm != ALGORITHM:
        raise BundleError(
            f"{where} is of {cache.algorithm}, the calibrator here is {ALGORITHM}", _AGAIN
        )


_AGAIN = "make it again with `fr-edge calibrate BUNDLE --faces SRC --trt-cache VERSION`"


def _hex(scale: float) -> str:
    return struct.pack(">f", scale).hex().lstrip("0") or "0"
