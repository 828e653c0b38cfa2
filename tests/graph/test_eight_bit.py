"""FP8 is E4M3 as the paper and ONNX have it, and onnxruntime rounds to the same numbers."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fr_edge.errors import UsageError
from fr_edge.graph.eight_bit import FP8, INT8, eight_bit_format

# Sign aside, bits eeee mmm: 2 ** (e - 7) * (1 + m / 8), or m / 8 * 2 ** -6 where e is 0; e = 15 with
# m = 7 is NaN (arXiv 2209.05433, table 1).
E4M3 = np.array(
    [2.0**-6 * m / 8 for m in range(8)]
    + [2.0 ** (e - 7) * (1 + m / 8) for e in range(1, 16) for m in range(8)][:-1]
)


def by_search(values: np.ndarray) -> np.ndarray:
    """The nearest number of the list; of two that are as near, the one with an even mantissa."""
    distance = np.abs(np.abs(values)[:, None] - E4M3)
    nearest = distance.min(axis=1, keepdims=True)
    even = np.where(distance == nearest, np.arange(len(E4M3)) % 2, 2)
    return np.sign(values) * E4M3[even.argmin(axis=1)]


def samples() -> np.ndarray:
    rng = np.random.default_rng(0)
    ties = (E4M3[1:] + E4M3[:-1]) / 2
    edges = np.array([447.9, 448.0, 463.9, 464.0, 480.0, 1e6, 2.0**-10, 2.0**-11, 0.0])
    return np.concatenate([E4M3, ties, edges, rng.normal(0, 1, 500), -ties, rng.normal(0, 99, 500)])


def quantized_by(run: str, values: np.ndarray, scale: float, opset: int) -> np.ndarray:
    """DequantizeLinear(QuantizeLinear(values)) by onnxruntime, or by ONNX's own reference."""
    zero = helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], [0.0])
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ],
        "pair",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, values.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, values.shape)],
        [numpy_helper.from_array(np.float32(scale), "scale"), zero],
    )
    ids = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=ids, ir_version=FP8.ir_version)
    onnx.checker.check_model(model, full_check=True)
    feed = {"x": values.astype(np.float32)}
    if run == "onnx":
        return np.asarray(onnx.reference.ReferenceEvaluator(model).run(None, feed)[0])
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, feed)[0])


def test_fp8_rounds_to_the_nearest_number_of_e4m3() -> None:
    values = samples().astype(np.float32).astype(np.float64)
    np.testing.assert_array_equal(FP8.nearest(values), by_search(values))
    assert E4M3.max() == FP8.largest == 448.0
    assert E4M3[1] == FP8.spacing
    assert FP8.nearest(np.array([1e9, -1e9])).tolist() == [448.0, -448.0]


def test_int8_rounds_to_whole_numbers_up_to_127() -> None:
    values = np.array([-1e3, -127.6, -0.5, 0.5, 1.5, 126.4, 127.5])
    assert INT8.nearest(values).tolist() == [-127, -127, 0, 0, 2, 126, 127]


@pytest.mark.parametrize(("run", "opset"), [("onnxruntime", 19), ("onnxruntime", 23), ("onnx", 19)])
def test_onnx_quantizes_to_the_same_numbers(run: str, opset: int) -> None:
    scale = 0.25
    values = samples().astype(np.float32)
    expected = FP8.nearest(values.astype(np.float64) / scale) * scale
    np.testing.assert_array_equal(quantized_by(run, values, scale, opset), expected)


def test_the_expected_noise_is_that_of_rounding() -> None:
    rng = np.random.default_rng(1)
    spread = {INT8: rng.normal(0, 30, 100_000), FP8: 2.0 ** rng.uniform(-6, 8, 100_000)}
    for form, steps in spread.items():
        noise = np.square(form.nearest(steps) - steps).mean()
        expected = form.rounding_noise(1.0, np.square(steps).mean())
        assert noise == pytest.approx(expected, rel=0.02)
    tiny = rng.uniform(-1, 1, 100_000) * 2.0**-8
    expected = FP8.rounding_noise(1.0, np.zeros(1))
    assert np.square(FP8.nearest(tiny) - tiny).mean() == pytest.approx(expected, rel=0.02)


def test_formats_have_names() -> None:
    assert eight_bit_format("fp8") is FP8
    with pytest.raises(UsageError, match="no 8-bit format 'fp4'"):
        eight_bit_format("fp4")
