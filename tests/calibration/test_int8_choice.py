"""One rule chooses what becomes INT8."""

from math import prod

import onnx
import pytest

from fr_edge.graph.layers import GROUPED, choose_int8_layers, layers, total_macs, weighted_layers


def test_dense_layers_are_chosen_and_depthwise_ones_not(model: onnx.ModelProto) -> None:
    choice = choose_int8_layers(model)
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    layers = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm")]
    depthwise = [n.name for n in layers if n.op_type == "Conv" and shapes[n.input[1]][1] == 1]
    assert set(choice.float_layers) == set(depthwise)
    assert set(choice.float_layers.values()) == {GROUPED}
    assert list(choice.int8) == [n.name for n in layers if n.name not in depthwise]
    assert choice.dense_share == 1.0
    assert 0.5 < choice.mac_share < 1.0


def test_multiply_adds_are_exports(model: onnx.ModelProto) -> None:
    assert total_macs(weighted_layers(model)) == total_macs(layers(model)) > 0
    gemm = weighted_layers(model)[-1]
    weights = {t.name: prod(t.dims) for t in model.graph.initializer}
    node = next(n for n in model.graph.node if n.name == gemm.name)
    assert gemm.macs == weights[node.input[1]]


def test_further_layers_stay_float_with_their_reason(model: onnx.ModelProto) -> None:
    first = choose_int8_layers(model).int8[0]
    choice = choose_int8_layers(model, {first: "because"})
    assert first not in choice.int8
    assert choice.float_layers[first] == "because"
    assert choice.dense_share < 1.0
    assert choice.mac_share == pytest.approx(
        sum(x.macs for x in weighted_layers(model) if x.name in choice.int8)
        / total_macs(layers(model))
    )


def test_depthwise_layers_become_int8_where_they_are_asked_for(model: onnx.ModelProto) -> None:
    """The shares stay those of what is in INT8: all multiply-adds, and no more than all dense ones."""
    rule, choice = choose_int8_layers(model), choose_int8_layers(model, grouped=True)
    assert set(choice.int8) == {layer.name for layer in weighted_layers(model)}
    assert set(choice.int8) - set(rule.int8) == set(rule.float_layers)
    assert choice.float_layers == {}
    assert (choice.mac_share, choice.dense_share) == (1.0, 1.0)
    dense = rule.int8[0]
    kept = choose_int8_layers(model, {dense: "because"}, grouped=True)
    assert kept.dense_share == choose_int8_layers(model, {dense: "because"}).dense_share < 1.0
