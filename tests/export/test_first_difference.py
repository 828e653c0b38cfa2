"""The first node that differs is named, and no later one."""

from types import SimpleNamespace

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from fr_edge.export.parity import first_difference


def damaged(model: ModelProto, weight: str, factor: float) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    tensor = next(t for t in copy.graph.initializer if t.name == weight)
    array = numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(numpy_helper.from_array(array, weight))
    return copy


@pytest.mark.parametrize(
    ("weight", "node"),
    [("a_w", "n_a_conv (Conv)"), ("c_slope", "n_c (PRelu)"), ("d_w", "n_d (Conv)")],
)
def test_the_damaged_node_is_named(weight: str, node: str, tools: SimpleNamespace) -> None:
    model = tools.build()
    faces = tools.noise(1, 3, 112, 112)
    assert first_difference(model, damaged(model, weight, 1.1), faces) == node
    assert first_difference(model, damaged(model, weight, 1.00001), faces) == ""
    assert first_difference(model, damaged(model, weight, np.nan), faces) == node


def test_a_model_that_does_not_run_names_nothing(tools: SimpleNamespace) -> None:
    model = tools.build(batch=4)
    assert first_difference(model, model, tools.noise(1, 3, 112, 112)) == ""
