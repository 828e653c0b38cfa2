"""Float model + ranges -> explicit Q/DQ model that TensorRT's parser takes.

Symmetric INT8, zero points 0, per-channel weights, FP32 scales, biases stay float: TensorRT
refuses an int32 bias behind DequantizeLinear and any other zero point. onnxruntime's quantizer
inserts the nodes; what is quantised, and with which range, comes from here.
"""

import logging

import numpy as np
import numpy.typing as npt
import onnx

from ..errors import BundleError
from .layers import Choice, choose
from .table import CalibrationTable

_OPTIONS = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,
    "AddQDQPairToWeight": True,
    # A convolution's output feeds PReLU or Add first: requantise after those, not before.
    "OpTypesToExcludeOutputQuantization": ["Conv", "Gemm", "MatMul"],
}


def quantize_onnx(
    model: onnx.ModelProto, table: CalibrationTable, choice: Choice | None = None
) -> onnx.ModelProto:
    """A Q/DQ copy of a float model whose nodes are named.

    Raises BundleError when the table lacks a tensor that the rule of `layers` wants quantised.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    choice = choice or choose(model)
    if missing := [name for name in choice.tensors if name not in table.ranges]:
        raise BundleError(f"the calibration table has no range for {missing[0]}", "calibrate again")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    ranges = TensorsData(
        CalibrationMethod.MinMax,
        {name: TensorData(lowest=_f32(-v), highest=_f32(v)) for name, v in table.ranges.items()},
    )
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # the quantizer talks through the root logger
    try:
        quantizer = QDQQuantizer(
            copy,
            True,
            False,
            QuantType.QInt8,
            QuantType.QInt8,
            ranges,
            list(choice.int8),
            [],
            ["Conv", "Gemm", "MatMul"],
            dict(_OPTIONS),
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    finally:
        logging.root.setLevel(level)
    result: onnx.ModelProto = quantizer.model.model
    result.producer_name = model.producer_name
    onnx.checker.check_model(result)
    return result


def _f32(value: float) -> npt.NDArray[np.float32]:
    return np.array(value, np.float32)
