"""Implicit quantisation, for those who want it: TensorRT 8 or 10 places INT8 itself, by ranges.

The ranges come from the bundle's `calibration.cache`, found by the statistics that explicit INT8
uses: TensorRT's own calibrator asks for no face. What TensorRT then computes in INT8 is its own
choice, and explicit Q/DQ loses less (docs/results/int8.md).

Never run on a GPU by this project so far.
"""

from typing import Any

from ...bundle.manifest import Bundle
from ...calibration.trt_cache import check_cache, read_cache
from ...errors import BundleError, UsageError
from .builder import load_library

CACHE = "calibration.cache"


def cache_version(backend: str) -> str:
    """The version that a cache for the TensorRT of this machine carries; raises UsageError where
    it has no calibrator, MachineError when it cannot be loaded."""
    trt = load_library(backend)
    calibrator_class(trt)
    return str(trt.__version__)


def cached_calibrator(trt: Any, bundle: Bundle, precision: str) -> Any:
    """A calibrator of this TensorRT that knows the ranges of the bundle.

    Raises UsageError where this TensorRT has no calibrator, BundleError without a cache and for one
    that this TensorRT would pass over.
    """
    base = calibrator_class(trt)
    if precision != "int8":
        raise UsageError(f"implicit quantisation is INT8, not {precision}", "use --int8 --implicit")
    if CACHE not in bundle:
        raise BundleError(
            f"{bundle.root} has no {CACHE}",
            f"fr-edge calibrate BUNDLE --faces SRC --trt-cache {trt.__version__}",
        )
    path = bundle.file(CACHE)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} is not text: {error}", "calibrate again") from error
    check_cache(read_cache(text, str(path)), str(trt.__version__), str(path))
    return make_calibrator(base, text.encode())


def calibrator_class(trt: Any) -> type:
    """`IInt8EntropyCalibrator2`; raises UsageError, by name, for a TensorRT that has none."""
    found: type | None = getattr(trt, "IInt8EntropyCalibrator2", None)
    if found is None:
        raise UsageError(
            f"{trt.__name__} {trt.__version__} does not quantise implicitly: TensorRT 11 and"
            " TensorRT-RTX take Q/DQ networks only",
            "leave --implicit out: model.int8.onnx says where INT8 is",
        )
    return found


def make_calibrator(base: Any, cache: bytes) -> Any:
    """An instance of a subclass of `base`, TensorRT's `IInt8EntropyCalibrator2`, that holds the
    text of a calibration cache and no faces."""

    class Calibrator(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)  # pybind's own; super() would not reach it

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: list[str]) -> None:
            return None

        def read_calibration_cache(self) -> bytes:
            return cache

        def write_calibration_cache(self, found: Any) -> None:
            pass  # nothing was found that the bundle does not hold

    return Calibrator()
