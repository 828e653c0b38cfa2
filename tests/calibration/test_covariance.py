"""Patches are the inputs that a layer multiplies, and their moments equal numpy's."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from fr_edge.calibration.constants import MAX_INPUTS
from fr_edge.calibration.covariance import (
    CovarianceCollector,
    InputCovariance,
    input_patches,
)


def one_conv(shape: tuple[int, ...], size: int = 9, **attributes: object) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), "w")
    channels = shape[1] * int(attributes.get("group", 1))  # type: ignore[call-overload]
    face = helper.make_tensor_value_info("face", TensorProto.FLOAT, (None, channels, size, size))
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node("Conv", ["face", "w"], ["y"], "c", **attributes)
    graph = helper.make_graph([node], "g", [face], [out], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("shape", "attributes"),
    [
        ((4, 3, 1, 1), {}),
        ((4, 3, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ((5, 2, 3, 2), {"pads": [0, 1, 1, 0], "strides": [1, 2]}),
    ],
)
def test_weights_times_patches_are_the_layers_output(
    shape: tuple[int, ...], attributes: dict[str, list[int]]
) -> None:
    model = one_conv(shape, **attributes)
    x = np.random.default_rng(1).standard_normal((1, shape[1], 9, 9)).astype(np.float32)
    output = ort.InferenceSession(model.SerializeToString()).run(None, {"face": x})[0]
    weight = numpy_helper.to_array(model.graph.initializer[0])
    product = input_patches(model.graph.node[0], shape, x) @ weight.reshape(shape[0], -1).T
    everywhere = np.moveaxis(output, 1, -1).reshape(-1, shape[0])
    np.testing.assert_allclose(product, everywhere[:: len(everywhere) // len(product)], atol=1e-5)


def test_layers_that_cannot_be_read_are_left_out() -> None:
    for model in (
        one_conv((4, 1, 3, 3), group=4),
        one_conv((4, 3, 3, 3), dilations=[2, 2]),
        one_conv((2, MAX_INPUTS + 1, 1, 1)),
        one_conv((4, 3, 3, 3), auto_pad="SAME_UPPER"),
    ):
        assert CovarianceCollector(model, ["c"]).moments == {}


def test_covariance_is_numpys_shrunk_by_how_few_there_are() -> None:
    x = np.random.default_rng(2).standard_normal((50, 6)) @ np.triu(np.ones((6, 6))) + 3
    moments = InputCovariance((x.T @ x).astype(np.float32), x.sum(axis=0), len(x))
    exact = np.cov(x.T, bias=True)
    expected = exact * 50 / 56
    np.fill_diagonal(expected, np.diag(exact))
    np.testing.assert_allclose(moments.covariance(), expected, atol=2e-3)
    raw = moments.covariance(centered=False)
    np.testing.assert_allclose(np.diag(raw), (x**2).mean(axis=0), rtol=1e-4)


def test_images_are_thinned_out_and_batches_add_up() -> None:
    model = one_conv((4, 3, 1, 1), size=56)
    collector = CovarianceCollector(model, ["c"])
    x = np.random.default_rng(3).standard_normal((4, 3, 56, 56)).astype(np.float32)
    collector({"face": x[:2]})
    once = collector.moments["c"].count
    assert 64 <= once <= 256
    collector({"face": x[2:]})
    assert collector.moments["c"].count == 2 * once
