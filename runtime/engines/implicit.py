"""Implicit quantisation, for those who want it: TensorRT 8 or 10 places INT8 itself, by ranges.

The ranges come from the bundle's `calibration.cache`, or TensorRT finds them on faces. What TensorRT
then computes in INT8 is its own choice, and explicit Q/DQ loses less (docs/results/int8.md).

Never run on a GPU by this project so far.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ...bundle import Bundle
from ...calibration.trt_cache import check_cache, read_cache
from ...errors import BundleError, UsageError

CACHE = "calibration.cache"

F32 = npt.NDArray[np.float32]


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
    return make_calibrator(base, cache=text.encode())


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


def make_calibrator(
    base: Any,
    batches: Iterator[F32] | None = None,
    upload: Callable[[F32], int] | None = None,
    cache: bytes = b"",
) -> Any:
    """An instance of a subclass of `base`, TensorRT's `IInt8EntropyCalibrator2`.

    With `cache` TensorRT takes the ranges from there. Without, it asks for `batches`
    `(N, 3, H, W) float32`, all of one N, each copied to the GPU by `upload`, which returns its
    address there; the ranges it finds are `cache` of the instance afterwards.
    """

    class Calibrator(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)  # pybind's own; super() would not reach it
            self.cache = cache
            self._next = next(batches, None) if batches else None

        def get_batch_size(self) -> int:
            return 1 if self._next is None else len(self._next)

        def get_batch(self, names: list[str]) -> list[int] | None:
            """The address of the one input's next batch; None after the last."""
            batch = self._next
            if batch is None or batches is None or upload is None:
                return None
            address = upload(batch)
            self._next = next(batches, None)
            return [address]

        def read_calibration_cache(self) -> bytes | None:
            return self.cache or None

        def write_calibration_cache(self, found: Any) -> None:
            self.cache = bytes(found)

    return Calibrator()
