"""Implicit quantisation: TensorRT 8 or 10 places INT8 itself, by the ranges of a calibration cache.

The ranges come from the bundle's `calibration.cache`, computed from the statistics that explicit
INT8 uses; TensorRT's calibrator asks for no face. TensorRT then chooses what computes in INT8, and
explicit Q/DQ loses less (docs/results/int8.md). This project has not run it on a GPU yet.
"""

from typing import Any

from ...bundle.manifest import Bundle
from ...calibration.trt_cache import check_cache, read_cache
from ...errors import BundleError, UsageError
from ...reading import read_file
from .builder import load_library

CACHE = "calibration.cache"


def cache_version(backend: str) -> str:
    """The version that a calibration cache for this machine's TensorRT carries.

    Args:
        backend: "tensorrt" or "tensorrt-rtx".

    Raises:
        UsageError: This TensorRT has no calibrator.
        MachineError: TensorRT cannot be loaded.
    """
    trt = load_library(backend)
    calibrator_class(trt)
    return str(trt.__version__)


def cached_calibrator(trt: Any, bundle: Bundle, precision: str) -> Any:
    """A calibrator of this TensorRT with the bundle's ranges.

    Args:
        trt: The module `tensorrt`.
        bundle: An open bundle.
        precision: "int8".

    Raises:
        UsageError: This TensorRT has no calibrator, or another precision.
        BundleError: The bundle has no cache, or one that this TensorRT would ignore.
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
        text = read_file(path, "CACHE_MB", BundleError).decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} is not text: {error}", "calibrate again") from error
    check_cache(read_cache(text, str(path)), str(trt.__version__), str(path))
    return make_calibrator(base, text.encode())


def calibrator_class(trt: Any) -> type:
    """TensorRT's `IInt8EntropyCalibrator2`.

    Args:
        trt: The module `tensorrt` or `tensorrt_rtx`.

    Raises:
        UsageError: This TensorRT has none.
    """
    base: type | None = getattr(trt, "IInt8EntropyCalibrator2", None)
    if base is None:
        raise UsageError(
            f"{trt.__name__} {trt.__version__} does not quantise implicitly: TensorRT 11 and"
            " TensorRT-RTX take Q/DQ networks only",
            "leave --implicit out: model.int8.onnx defines where INT8 is",
        )
    return base


def make_calibrator(base: Any, cache: bytes) -> Any:
    """A calibrator that holds the text of a calibration cache, and no faces.

    Args:
        base: TensorRT's `IInt8EntropyCalibrator2`.
        cache: The text.
    """

    class Calibrator(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)  # pybind's own; super() would not reach it

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: list[str]) -> None:
            return None

        def read_calibration_cache(self) -> bytes:
            return cache

        def write_calibration_cache(self, text: Any) -> None:
            pass  # it is the text that was read

    return Calibrator()
