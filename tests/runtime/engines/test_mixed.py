"""INT8 with FP16 around it keeps the INT8 model's numbers and its names."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, checker, numpy_helper

from fr_edge.runtime.made import layer_precisions
from fr_edge.runtime.mixed import mixed_flavour


def run(model: ModelProto, faces: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    # its optimiser breaks models with FP16 scales (WeightBiasQuantization)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"face": faces})[0]


@pytest.mark.parametrize("count", [1, 3])
def test_the_numbers_stay(tiny, faces, count):
    model = tiny(int8=True)
    mixed = mixed_flavour(model)
    checker.check_model(mixed, full_check=True)
    found, expected = run(mixed, faces(count)), run(model, faces(count))
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 0.03 * np.abs(expected).max()


def test_what_is_not_int8_is_fp16_and_names_stay(tiny):
    model = tiny(int8=True)
    mixed = mixed_flavour(model)
    assert layer_precisions(model) == {"int8": 4, "fp16": 0, "fp32": 3}
    assert layer_precisions(mixed) == {"int8": 4, "fp16": 3, "fp32": 0}
    assert not [t.name for t in mixed.graph.initializer if t.data_type == TensorProto.FLOAT]
    assert [n.name for n in mixed.graph.node if n.name] == [n.name for n in model.graph.node]


def test_scales_too_small_for_fp16_do_not_become_zero(tiny, faces):
    model = tiny(int8=True)
    weight, scale = (
        next(t for t in model.graph.initializer if t.name == name)
        for name in ("c2_w", "c2_w_scale")
    )
    values = numpy_helper.to_array(weight).copy()
    values[0] *= 1e-9
    weight.CopyFrom(numpy_helper.from_array(values, "c2_w"))
    scales = numpy_helper.to_array(scale).copy()
    scales[0] *= 1e-9
    scale.CopyFrom(numpy_helper.from_array(scales, "c2_w_scale"))
    found, expected = run(mixed_flavour(model), faces(2)), run(model, faces(2))
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= 0.03 * np.abs(expected).max()
