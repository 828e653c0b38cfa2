"""Time is counted as documented: multiply-adds, and tensors that are written twice."""

from math import prod

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fr_edge.calibration.search.latency_model import _CONVERSION, counted_latency
from fr_edge.graph.layers import choose_int8_layers, weighted_layers


def two_readers() -> onnx.ModelProto:
    """Two layers read the same tensor; 16 places, 4 and 8 outputs of 2 channels."""
    weights = [
        numpy_helper.from_array(np.ones(shape, np.float32), name)
        for name, shape in (("w0", (2, 3, 1, 1)), ("w1", (4, 2, 1, 1)), ("w2", (8, 2, 1, 1)))
    ]
    nodes = [
        helper.make_node("Conv", ["face", "w0"], ["x"], "first"),
        helper.make_node("Conv", ["x", "w1"], ["y"], "narrow"),
        helper.make_node("Conv", ["x", "w2"], ["z"], "wide"),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, channels, 4, 4))
        for name, channels in (("face", 3), ("y", 4), ("z", 8))
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_int8_takes_half_and_a_tensor_written_twice_is_paid_for() -> None:
    model = two_readers()
    cost = counted_latency(model).cost
    macs = {"first": 96, "narrow": 128, "wide": 256}
    total = sum(macs.values())
    assert cost(choose_int8_layers(model)) == pytest.approx(0.5)
    assert cost(choose_int8_layers(model, dict.fromkeys(macs, ""))) == pytest.approx(1.0)
    assert cost(choose_int8_layers(model, {"first": ""})) == pytest.approx(0.5 + 48 / total)
    twice = cost(choose_int8_layers(model, {"narrow": ""}))
    assert twice == pytest.approx(0.5 + (64 + _CONVERSION * 2 * 16) / total)
    both = cost(choose_int8_layers(model, {"narrow": "", "wide": ""}))
    assert both == pytest.approx(0.5 + 192 / total)


def test_a_real_network_is_faster_the_more_of_it_is_int8(model: onnx.ModelProto) -> None:
    cost, int8 = counted_latency(model).cost, choose_int8_layers(model).int8
    assert (
        cost(choose_int8_layers(model))
        < cost(choose_int8_layers(model, dict.fromkeys(int8, "")))
        == 1.0
    )
    assert all(
        cost(choose_int8_layers(model, {layer: ""})) > cost(choose_int8_layers(model))
        for layer in int8
    )


def test_depthwise_in_int8_saves_no_arithmetic_and_writes_twice_as_much(
    model: onnx.ModelProto,
) -> None:
    """By the bytes that TensorRT-RTX's tables show (docs/results/engines.md)."""
    cost, table = counted_latency(model).cost, weighted_layers(model)
    total = sum(layer.macs for layer in table)
    layer = next(layer for layer in table if layer.groups > 1)
    both = choose_int8_layers(model, grouped=True)
    others = choose_int8_layers(model, {layer.name: ""}, grouped=True)
    shapes = {t.name: t.shape for t in table}
    makers = {node.output[0]: node for node in model.graph.node}
    before = makers[layer.data]
    while before.name not in shapes:  # PReLU keeps the shape
        before = makers[before.input[0]]
    read, written = prod(shapes[before.name]), prod(layer.shape)
    extra = (4 * written - 2 * read) * _CONVERSION / 3
    conversion = _CONVERSION * read * (layer.data in others.tensors)
    assert cost(both) - cost(others) == pytest.approx((extra - conversion) / total, abs=1e-9)
