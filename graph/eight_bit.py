"""The two 8-bit formats that layers multiply in: INT8 and FP8.

A value is stored as one of the format's numbers times a scale. INT8's numbers are evenly spaced, so
rounding costs the same everywhere. FP8 is E4M3 without infinities (P. Micikevicius et al., FP8 formats
for deep learning, 2022, arXiv 2209.05433; ONNX's FLOAT8E4M3FN): 4 bits of exponent and 3 of mantissa, so
rounding costs up to a sixteenth of the value, whatever its size. Both saturate, and zero is zero.
"""

from dataclasses import dataclass
from math import log

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ..arrays import F64
from ..errors import UsageError


@dataclass(frozen=True)
class EightBit:
    """A format of 8 bits.

    Attributes:
        name: "int8" or "fp8", the name of the precision.
        largest: The largest number that is used; INT8's is symmetric.
        opset: The first ONNX opset whose QuantizeLinear takes the format.
        ir_version: The version of the file format that goes with it.
        dtype: The type of the stored numbers.
        spacing: Distance between numbers near zero.
        relative_noise: Mean square of the rounding error over the mean square of the values; 0
            where it does not grow with them.
    """

    name: str
    largest: float
    opset: int
    ir_version: int
    dtype: npt.DTypeLike
    spacing: float
    relative_noise: float

    def nearest(self, steps: F64) -> F64:
        """Round to the nearest numbers of the format; those beyond the largest become it.

        Args:
            steps: Values divided by their scale, `float64` of any shape.

        Returns:
            `float64` of the same shape.
        """
        inside = np.clip(steps, -self.largest, self.largest)
        if self.name == "int8":
            return np.rint(inside)
        # ONNX divides in float32 and rounds from there.
        return inside.astype(np.float32).astype(self.dtype).astype(np.float64)

    def rounding_noise(self, scale: float, mean_square: F64) -> F64:
        """The mean squared error of rounding, without that of clipping.

        Args:
            scale: By which values are divided.
            mean_square: `float64`, the mean of the values' squares.

        Returns:
            `float64` of the same shape.
        """
        return (self.spacing * scale) ** 2 / 12.0 + self.relative_noise * mean_square


INT8 = EightBit("int8", 127.0, 10, 4, np.int8, 1.0, 0.0)

# Between 2**e and 2**(e + 1) the spacing is 2**(e - 3); of values that are spread evenly over the
# logarithm the mean square is 4**e * 1.5 / ln 2, and that of the error is 4**(e - 3) / 12.
FP8 = EightBit("fp8", 448.0, 19, 9, ml_dtypes.float8_e4m3fn, 2.0**-9, log(2.0) / 1152.0)

EIGHT_BIT = {form.name: form for form in (INT8, FP8)}


def eight_bit_format(precision: str) -> EightBit:
    """The format of a precision.

    Args:
        precision: "int8" or "fp8".

    Raises:
        UsageError: Another precision.
    """
    if precision not in EIGHT_BIT:
        raise UsageError(
            f"no 8-bit format {precision!r}", f"expected one of {', '.join(EIGHT_BIT)}"
        )
    return EIGHT_BIT[precision]
