"""The CPU flavour computes what the model computes, with other operators."""

from collections import Counter

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto, helper, numpy_helper

from fr_edge.runtime.engines.cpu_graph import cpu_flavour


def run(model: ModelProto, faces: np.ndarray, *, optimise: bool = True) -> np.ndarray:
    options = ort.SessionOptions()
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"face": faces})[0]


def operators(model: ModelProto) -> Counter:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize(
    ("kind", "tolerance"), [({}, 1e-5), ({"int8": True}, 1e-4), ({"dtype": np.float16}, 0.02)]
)
@pytest.mark.parametrize("count", [1, 3])
def test_it_computes_the_same(tiny, faces, kind, tolerance, count):
    model = tiny(**kind)
    expected = run(model, faces(count), optimise=False)
    found = run(cpu_flavour(model), faces(count))
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def test_no_prelu_is_left_and_the_model_is_not_touched(tiny):
    model = tiny()
    before = model.SerializeToString()
    assert operators(cpu_flavour(model))["PRelu"] == 0
    assert model.SerializeToString() == before


def test_pointwise_int8_convolutions_become_integer_products(tiny):
    found = operators(cpu_flavour(tiny(int8=True)))
    # c2, c4, c5 are 1x1; c1 is 3x3, c3 and c6 are depthwise
    assert found["MatMulIntegerToFloat"] == 3
    assert found["Conv"] == 3


def test_weights_are_not_dequantised_in_every_run(tiny):
    model = cpu_flavour(tiny(int8=True))
    weights = {tensor.name for tensor in model.graph.initializer}
    assert not [
        n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in weights
    ]


def test_activations_behind_a_nonzero_zero_point_stay_as_they_are(tiny, faces):
    model = tiny(int8=True)
    shifted = next(t for t in model.graph.initializer if t.name == "c1_act_zero")
    shifted.CopyFrom(numpy_helper.from_array(np.array(3, np.int8), "c1_act_zero"))
    flavour = cpu_flavour(model)
    assert operators(flavour)["MatMulIntegerToFloat"] == 2
    expected = run(model, faces(2), optimise=False)
    assert np.abs(run(flavour, faces(2)) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_integer_weights_are_taken_as_they_are(tiny, faces):
    """Some quantisers write int8 weights with DQ alone, where ours writes float weights, Q and DQ."""
    model = tiny(int8=True)
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    quantised = [
        n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] in weights
    ]
    for node in quantised:
        scale = weights[node.input[1]].reshape(-1, 1, 1, 1)
        steps = np.clip(np.rint(weights[node.input[0]] / scale), -128, 127).astype(np.int8)
        model.graph.initializer.append(numpy_helper.from_array(steps, node.output[0]))
        model.graph.node.remove(node)
    flavour = cpu_flavour(model)
    assert operators(flavour)["MatMulIntegerToFloat"] == 3
    expected = run(model, faces(2), optimise=False)
    assert np.abs(run(flavour, faces(2)) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_strided_and_padded_1x1_convolutions_stay(tiny, faces):
    for attribute in (
        helper.make_attribute("strides", [2, 2]),
        helper.make_attribute("pads", [1] * 4),
    ):
        model = tiny(int8=True)
        node = next(n for n in model.graph.node if n.output[0] == "c5")
        node.attribute.append(attribute)
        last = next(n for n in model.graph.node if n.output[0] == "c6")
        del last.attribute[:]
        last.attribute.extend([helper.make_attribute("group", 12)])
        flat = next(n for n in model.graph.node if n.op_type == "Flatten")
        flat.op_type = "GlobalAveragePool"
        del flat.attribute[:]
        size = 4 if attribute.name == "strides" else 8
        weight = next(t for t in model.graph.initializer if t.name == "c6_w")
        weight.CopyFrom(numpy_helper.from_array(np.ones((12, 1, size, size), np.float32), "c6_w"))
        model.graph.node.insert(
            [n.output[0] for n in model.graph.node].index("flat") + 1,
            helper.make_node("Flatten", ["flat"], ["flatter"]),
        )
        next(n for n in model.graph.node if n.op_type == "Gemm").input[0] = "flatter"
        flavour = cpu_flavour(model)
        assert operators(flavour)["MatMulIntegerToFloat"] == 2
        expected = run(model, faces(2), optimise=False)
        assert np.abs(run(flavour, faces(2)) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_skip_branch_shares_the_activation(tiny, faces):
    """Quantised residual adds: Q is computed once, for the convolution and for the sum."""
    model = tiny(int8=True)
    next(n for n in model.graph.node if n.op_type == "Add").input[0] = "c1_act_dq"
    flavour = cpu_flavour(model)
    assert operators(flavour)["MatMulIntegerToFloat"] == 3
    quantised = [n.input[0] for n in flavour.graph.node if n.op_type == "QuantizeLinear"]
    assert quantised.count("c1_act") == 1
    expected = run(model, faces(2), optimise=False)
    assert np.abs(run(flavour, faces(2)) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_an_activation_that_is_wanted_as_int8_stays_so(tiny, faces):
    model = tiny(int8=True)
    model.graph.output.append(helper.make_tensor_value_info("c1_act_q", 3, None))
    flavour = cpu_flavour(model)
    assert operators(flavour)["MatMulIntegerToFloat"] == 2
    expected = run(model, faces(2), optimise=False)
    assert np.abs(run(flavour, faces(2)) - expected).max() <= 1e-4 * np.abs(expected).max()
