"""The CPU form computes what the model computes, with other operators."""

from collections import Counter

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto, helper, numpy_helper

from fr_edge.graph.cpu_int8 import cpu_model, integer_layers


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
    result = run(cpu_model(model), faces(count))
    assert np.abs(result - expected).max() <= tolerance * np.abs(expected).max()


def test_no_prelu_is_left_and_the_model_is_not_touched(tiny):
    model = tiny()
    before = model.SerializeToString()
    assert operators(cpu_model(model))["PRelu"] == 0
    assert model.SerializeToString() == before


def test_pointwise_int8_convolutions_become_integer_products(tiny):
    model = cpu_model(tiny(int8=True))
    result = operators(model)
    # c2, c4, c5 are 1x1; c1 is 3x3, c3 and c6 are depthwise
    assert result["MatMulIntegerToFloat"] == 3
    layers = [n for n in model.graph.node if n.op_type == "Conv" and n.name]
    assert [n.name for n in layers] == ["c1", "c3", "c6"]


def test_weights_are_not_dequantized_in_every_run(tiny):
    model = cpu_model(tiny(int8=True))
    weights = {tensor.name for tensor in model.graph.initializer}
    assert not [
        n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in weights
    ]


def test_activations_behind_a_nonzero_zero_point_stay_as_they_are(tiny, faces):
    model = tiny(int8=True)
    shifted = next(t for t in model.graph.initializer if t.name == "c1_act_zero")
    shifted.CopyFrom(numpy_helper.from_array(np.array(3, np.int8), "c1_act_zero"))
    rewritten = cpu_model(model)
    assert operators(rewritten)["MatMulIntegerToFloat"] == 2
    expected = run(model, faces(2), optimise=False)
    assert np.abs(run(rewritten, faces(2)) - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("integer", [None, ()])
def test_another_scale_behind_a_rounding_is_computed(tiny, faces, integer):
    """A DQ with twice the scale of its Q multiplies by two: nothing that may be left out."""
    model = tiny(int8=True)
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    made = {n.output[0]: n for n in model.graph.node}
    behind = [
        n
        for n in model.graph.node
        if n.op_type == "DequantizeLinear" and made[n.input[0]].input[0] not in weights
    ]
    for node in behind:
        doubled = numpy_helper.from_array(2 * weights[node.input[1]], f"{node.output[0]}_doubled")
        model.graph.initializer.append(doubled)
        node.input[1] = doubled.name
    expected = run(model, faces(2), optimise=False)
    honest = run(tiny(int8=True), faces(2), optimise=False)
    assert np.abs(honest - expected).max() > 0.5 * np.abs(expected).max()
    result = run(cpu_model(model, integer), faces(2))
    assert np.abs(result - expected).max() <= 0.02 * np.abs(expected).max()


def test_integer_weights_are_taken_as_they_are(tiny, faces):
    """Some quantisers write int8 weights with DQ alone, where ours writes float weights, Q and DQ."""
    model = tiny(int8=True)
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    quantized = [
        n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] in weights
    ]
    for node in quantized:
        scale = weights[node.input[1]].reshape(-1, 1, 1, 1)
        steps = np.clip(np.rint(weights[node.input[0]] / scale), -128, 127).astype(np.int8)
        model.graph.initializer.append(numpy_helper.from_array(steps, node.output[0]))
        model.graph.node.remove(node)
    rewritten = cpu_model(model)
    assert operators(rewritten)["MatMulIntegerToFloat"] == 3
    expected = run(model, faces(2), optimise=False)
    assert np.abs(run(rewritten, faces(2)) - expected).max() <= 1e-4 * np.abs(expected).max()


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
        rewritten = cpu_model(model)
        assert operators(rewritten)["MatMulIntegerToFloat"] == 2
        expected = run(model, faces(2), optimise=False)
        assert np.abs(run(rewritten, faces(2)) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_skip_branch_shares_the_activation(tiny, faces):
    """Quantised residual adds: Q is computed once, for the convolution and for the sum."""
    model = tiny(int8=True)
    next(n for n in model.graph.node if n.op_type == "Add").input[0] = "c1_act_dq"
    rewritten = cpu_model(model)
    assert operators(rewritten)["MatMulIntegerToFloat"] == 3
    quantized = [n.input[0] for n in rewritten.graph.node if n.op_type == "QuantizeLinear"]
    assert quantized.count("c1_act") == 1
    expected = run(model, faces(2), optimise=False)
    assert np.abs(run(rewritten, faces(2)) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_an_activation_that_is_wanted_as_int8_stays_so(tiny, faces):
    model = tiny(int8=True)
    model.graph.output.append(helper.make_tensor_value_info("c1_act_q", 3, None))
    rewritten = cpu_model(model)
    assert operators(rewritten)["MatMulIntegerToFloat"] == 2
    expected = run(model, faces(2), optimise=False)
    assert np.abs(run(rewritten, faces(2)) - expected).max() <= 1e-4 * np.abs(expected).max()


def float_reference(model: ModelProto, faces: np.ndarray, rounded: set[str]) -> np.ndarray:
    """The Q/DQ model without optimisations, of its activations only those named `rounded`."""
    model = ModelProto.FromString(model.SerializeToString())
    weights = {t.name for t in model.graph.initializer}
    makers = {n.output[0]: n for n in model.graph.node}
    before = {}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            source = makers[node.input[0]].input[0]
            if source not in weights and source not in rounded:
                before[node.output[0]] = source
    for node in model.graph.node:
        node.input[:] = [before.get(name, name) for name in node.input]
    return run(model, faces, optimise=False)


@pytest.mark.parametrize(
    ("integer", "rounded"),
    [((), set()), (("c2",), {"c1_act"}), (("c5", "c4"), {"sum", "c3_act"}), (("nothing",), set())],
)
def test_layers_in_float_keep_their_int8_weights_and_round_nothing(tiny, faces, integer, rounded):
    model = tiny(int8=True)
    rewritten = cpu_model(model, integer)
    assert operators(rewritten)["MatMulIntegerToFloat"] == len(rounded)
    assert operators(rewritten)["QuantizeLinear"] == len(rounded)
    expected = float_reference(model, faces(3), rounded)
    assert np.abs(run(rewritten, faces(3)) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_tensor_that_an_integer_layer_reads_is_rounded_for_all(tiny, faces):
    model = tiny(int8=True)
    next(n for n in model.graph.node if n.op_type == "Add").input[0] = "c1_act_dq"
    result = run(cpu_model(model, ("c2",)), faces(2))
    expected = float_reference(model, faces(2), {"c1_act"})
    assert np.abs(result - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("bias", [True, False])
def test_centres_go_back_into_the_bias(tiny, faces, bias):
    """Nothing is left of a Sub whose readers compute in float; padding would forbid it."""
    model = tiny(int8=True)
    centre = np.linspace(-1, 1, 8, dtype=np.float32).reshape(8, 1, 1)
    model.graph.initializer.append(numpy_helper.from_array(centre, "centre"))
    at = [n.output[0] for n in model.graph.node].index("c1_act") + 1
    model.graph.node.insert(at, helper.make_node("Sub", ["c1_act", "centre"], ["centred"]))
    next(n for n in model.graph.node if n.output[0] == "c1_act_q").input[0] = "centred"
    if not bias:
        del next(n for n in model.graph.node if n.output[0] == "c2").input[2]
    rewritten = cpu_model(model, ())
    assert operators(rewritten)["Sub"] == 0
    expected = float_reference(model, faces(2), set())
    assert np.abs(run(rewritten, faces(2)) - expected).max() <= 1e-4 * np.abs(expected).max()
    assert operators(cpu_model(model, ("c2",)))["Sub"] == 1


@pytest.mark.parametrize(("op", "transposed"), [("Gemm", True), ("Gemm", False), ("MatMul", False)])
def test_the_last_layer_becomes_an_integer_product_too(tiny, faces, op, transposed):
    """1.2 ms of dequantising 6 million weights in every run, where it did not (SFace)."""
    model = tiny(int8=True)
    values = next(t for t in model.graph.initializer if t.name == "gemm_w")
    steps = np.round(numpy_helper.to_array(values) * 50).astype(np.int8)
    steps = steps if transposed else steps.T
    extra = {
        "gemm_q": np.ascontiguousarray(steps),
        "gemm_scale": np.linspace(0.01, 0.03, 5, dtype=np.float32),
        "gemm_zero": np.zeros(5, np.int8),
        "flat_scale": np.array(0.05, np.float32),
        "flat_zero": np.array(0, np.int8),
        "gemm_b": np.arange(5, dtype=np.float32),
    }
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in extra.items())
    del model.graph.node[-1]
    step, axis = ["flat_scale", "flat_zero"], {"axis": 0 if transposed else 1}
    bias = ["gemm_b"] if op == "Gemm" else []
    last = {"transB": int(transposed)} if op == "Gemm" else {}
    model.graph.node.extend(
        [
            helper.make_node("QuantizeLinear", ["flat", *step], ["flat_q"]),
            helper.make_node("DequantizeLinear", ["flat_q", *step], ["flat_dq"]),
            helper.make_node(
                "DequantizeLinear", ["gemm_q", "gemm_scale", "gemm_zero"], ["gemm_dq"], **axis
            ),
            helper.make_node(op, ["flat_dq", "gemm_dq", *bias], ["embedding"], **last),
        ]
    )
    rewritten = cpu_model(model)
    assert operators(rewritten)["MatMulIntegerToFloat"] == 4
    assert integer_layers(model)["embedding"] == pytest.approx(12 * 5 / 17)
    expected = run(model, faces(3), optimise=False)
    assert np.abs(run(rewritten, faces(3)) - expected).max() <= 1e-4 * np.abs(expected).max()
    model.graph.node[-2].attribute[0].i = 1 - axis["axis"]  # along the other axis: 12, not 5
    assert "embedding" not in integer_layers(model)
