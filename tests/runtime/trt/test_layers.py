"""The layer table is read from both of TensorRT's texts."""

import json

import pytest
from onnx import ModelProto, TensorProto, helper

from fr_edge.runtime.trt.layers import (
    EngineLayer,
    count_precisions,
    count_untyped,
    layers_in_json,
    layers_in_log,
    node_precisions,
    prove_layers,
    reformats,
)

LOG = """Layers:
Name: shape_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata:
Name: requantise [a], LayerType: kgen, Inputs: [ { Name: x, Dimensions: [-1,3,8,8], Strides: [1,2,3,4], Datatype: Float, Format: (Linear) Row major }], Constants: [ { Name: k, Dimensions: [1], Datatype: Float, Format: (Linear) }], Outputs: [ { Name: xq, Dimensions: [-1,4,8,8], Datatype: Int8, Format: (NHWC) }], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: x_Q][ONNX Layer: Conv_1]
Name: Conv_1, LayerType: correlation, Inputs: [ { Name: xq, Dimensions: [-1,4,8,8], Datatype: Int8, Format: (NHWC) }], Constants: [ { Name: w, Dimensions: [8,4,3,3], Datatype: Int8, Format: (NHWC) }, { Name: b, Dimensions: [1,8,1,1], Datatype: Float, Format: (NHWC) }], Outputs: [ { Name: y, Dimensions: [-1,8,4,4], Datatype: Float, Format: (NHWC) }], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: Conv_1]
Name: Conv_2, LayerType: correlation, Inputs: [ { Name: y, Dimensions: [-1,8,4,4], Datatype: Half, Format: (NHWC) }], Constants: [ { Name: w2, Dimensions: [8,1,3,3], Datatype: Half, Format: (NHWC) }], Outputs: [ { Name: z, Dimensions: [-1,8,4,4], Datatype: Half, Format: (NHWC) }], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: Conv_2]
"""

INSPECTOR = {
    "Layers": [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0",
            "LayerType": "Reformat",
            "Inputs": [{"Name": "face", "Format/Datatype": "Row major linear FP32"}],
            "Outputs": [{"Name": "q", "Format/Datatype": "Four wide channel vectorized row major Int8 format"}],
        },
        {
            "Name": "Conv_1 + PRelu_2",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "q", "Format/Datatype": "Four wide channel vectorized row major Int8 format"}],
            "Outputs": [{"Name": "y", "Format/Datatype": "Channel major FP16 format"}],
            "Weights": {"Type": "Int8", "Count": 864},
        },
        {
            "Name": "[layer 7]",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "y", "Format/Datatype": "Channel major FP16 format"}],
            "Outputs": [{"Name": "z", "Format/Datatype": "Channel major FP16 format"}],
            "Weights": {"Type": "Half", "Count": 72},
            "Metadata": "[ONNX Layer: Conv_2]",
        },
    ]
}  # fmt: skip


def model():
    nodes = [helper.make_node("Conv", ["x", "w"], [f"y{i}"], f"Conv_{i}") for i in (1, 2, 3)]
    nodes.append(helper.make_node("Relu", ["x"], ["z"], "Relu_9"))
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1, 1, 1, 1], [1.0])
    return helper.make_model(helper.make_graph(nodes, "g", [], [], [weight]))


@pytest.mark.parametrize("layers", [layers_in_log(LOG), layers_in_json(json.dumps(INSPECTOR))])
def test_each_node_has_the_precision_it_was_built_in(layers):
    assert node_precisions(model(), layers) == {"Conv_1": "int8", "Conv_2": "fp16"}


def test_the_log_is_read_field_by_field():
    layers = layers_in_log(LOG)
    assert layers[1] == EngineLayer(
        "requantise [a]", "kgen", ("fp32",), ("fp32",), ("int8",), ("x_Q", "Conv_1"), "t"
    )
    assert layers[2].weights == ("int8", "fp32")
    assert layers[0].inputs == layers[0].outputs == ()
    assert reformats(layers) == 0


def test_reformats_are_counted():
    assert reformats(layers_in_json(json.dumps(INSPECTOR))) == 1


def test_convolutions_that_one_kernel_computes_have_its_precision():
    """TensorRT 8 joins those of one input by "||" and names no nodes in metadata."""
    name = "Conv_1.weight + Conv_1_q + Conv_1 || Conv_3 + PWN(PRelu_4)"
    row = {**INSPECTOR["Layers"][1], "Name": name}
    expected = {"Conv_1": "int8", "Conv_3": "int8"}
    assert node_precisions(model(), layers_in_json(json.dumps({"Layers": [row]}))) == expected
    line = f"Name: {name}, LayerType: CaskConvolution, Inputs: [], Outputs: [], Weights: {{Type: Int8}}"
    assert node_precisions(model(), layers_in_log(line)) == expected


@pytest.mark.parametrize("name", ["Conv_1\u001econv/1", "Conv_1\ttab"])
def test_names_with_control_characters_are_read(name):
    """As a file's names stand in TensorRT's text."""
    text = json.dumps({"Layers": [{**INSPECTOR["Layers"][2], "Name": "@"}]}).replace("@", name)
    assert [layer.name for layer in layers_in_json(text)] == [name]


def test_a_table_that_is_not_json_tells_nothing(caplog):
    assert layers_in_json('{"Layers": [{"Name": "a "quoted" name"}]}') == []
    assert "cannot be read" in caplog.text


def test_an_inspector_without_details_tells_nothing():
    assert layers_in_json('{"Layers": ["Conv_1 + PRelu_2", "Conv_2"]}') == []
    assert layers_in_json('{"Bindings": []}') == []


LOG_10 = """Layers:
Name: Conv_1, LayerType: CaskConvolution, Inputs: [ { Name: q, Location: Device, Dimensions: [-1,3,8,8], Format/Datatype: %s }], Outputs: [ { Name: y, Location: Device, Dimensions: [-1,8,4,4], Format/Datatype: %s }], ParameterType: Convolution, Kernel: [3,3], Weights: %s, Bias: {"Type": "Float", "Count": 8}, Activation: NONE, TacticName: %s, TacticValue: 0x1, StreamId: 0, Metadata: [ONNX Layer: Conv_1]
"""
NOT_TOLD = "N/A due to dynamic shapes"
INT8_FORM = "Thirty-two wide channel vectorized row major Int8 format"


@pytest.mark.parametrize(
    ("form", "weights", "tactic", "precision"),
    [
        (INT8_FORM, '{"Type": "Int8", "Count": 864}', "t", "int8"),
        (INT8_FORM, "{Type: Int8, Count: 864}", "t", "int8"),
        (NOT_TOLD, '{"Type": "Int8", "Count": 864}', "t", "int8"),
        (NOT_TOLD, '{"Count": 864, "Type": "Half"}', "t", "fp16"),
        (NOT_TOLD, "{}", "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32", "int8"),
        (NOT_TOLD, "{}", "ampere_first_layer_filter3x3_imma_fwd", "int8"),
        (NOT_TOLD, "{}", "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16", "fp16"),
        (NOT_TOLD, "{}", "", "unknown"),
        ("Row major linear FP32", '{"Type": "Float", "Count": 864}', "t", "fp32"),
    ],
)
def test_what_is_not_reported_is_unknown_not_float(form, weights, tactic, precision):
    logged = layers_in_log(LOG_10 % (form, form, weights, tactic))
    pairs = (part.split(": ") for part in weights.strip("{}").replace('"', "").split(", ") if part)
    row = {
        "Name": "Conv_1",
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "q", "Format/Datatype": form}],
        "Outputs": [{"Name": "y", "Format/Datatype": form}],
        "Weights": dict(pairs),
        "TacticName": tactic,
    }
    inspected = layers_in_json(json.dumps({"Layers": [row]}))
    for layers in (logged, inspected):
        assert [layer.precision for layer in layers] == [precision]
        assert count_untyped(layers) == (form == NOT_TOLD)
        assert node_precisions(model(), layers) == {"Conv_1": precision}


def quantised(*, groups: int = 1, outputs: int = 8, operator: str = "Conv") -> ModelProto:
    """Two layers between Q and DQ; the second has the given shape."""
    nodes, tensors = [], []

    def rounded(name: str) -> str:
        step = f"{name}_step"
        tensors.append(helper.make_tensor(step, TensorProto.FLOAT, [], [1.0]))
        for op, source, target in (("Quantize", name, "_q"), ("Dequantize", f"{name}_q", "_dq")):
            nodes.append(helper.make_node(f"{op}Linear", [source, step], [f"{name}{target}"]))
        return f"{name}_dq"

    def layer(x: str, name: str, op: str, shape: list[int], **attributes: int) -> None:
        size = shape[0] * shape[1]
        tensors.append(helper.make_tensor(f"{name}_w", TensorProto.FLOAT, shape, [1.0] * size))
        inputs = [rounded(x), rounded(f"{name}_w")]
        nodes.append(helper.make_node(op, inputs, [name], name, **attributes))

    layer("face", "first", "Conv", [8, 3, 1, 1])
    if operator == "Conv":
        layer("first", "second", "Conv", [outputs, 8 // groups, 1, 1], group=groups)
    else:
        nodes.append(helper.make_node("Flatten", ["first"], ["flat"], "flat"))
        layer("flat", "second", "Gemm", [8, 8])
    face = helper.make_tensor_value_info("face", TensorProto.FLOAT, [1, 3, 1, 1])
    out = helper.make_tensor_value_info("second", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [face], [out], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def engine_layer(name: str, data: str, weights: str) -> EngineLayer:
    return EngineLayer(name, "CaskConvolution", (data,), (weights,), ("fp16",), (name,), "")


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"groups": 8}, "grouped convolutions"),
        ({"outputs": 6}, "it writes 6 channels"),
        ({"operator": "Gemm"}, "small matrix products"),
        ({}, "measured another one as faster"),
    ],
)
def test_the_likely_reason_of_a_layer_that_is_not_int8(shape, reason):
    layers = [engine_layer("first", "fp16", "fp16"), engine_layer("second", "fp16", "fp16")]
    first, second = prove_layers(quantised(**shape), layers)
    assert (first.asked, first.built, second.asked, second.built) == ("int8", "fp16") * 2
    assert "the image's 3 channels" in first.reason
    assert reason in second.reason


def test_a_proof_names_its_evidence_and_what_is_missing():
    layers = [engine_layer("first", "unknown", "int8"), engine_layer("second", "fp16", "int8")]
    first, second = prove_layers(quantised(), layers)
    assert (first.built, first.evidence, first.reason) == ("int8", "weights", "")
    assert (second.built, second.evidence) == ("mixed", "tensors and weights")
    assert "do not reach it" in second.reason
    kernel = EngineLayer("first", "", ("unknown",), (), (), ("first",), "x_i8i8_i8i32_f32_y")
    silent = EngineLayer("second", "", ("unknown",), (), (), ("second",), "")
    first, second = prove_layers(quantised(), [kernel, silent])
    assert (first.built, first.evidence) == ("int8", "kernel")
    assert (second.built, second.evidence, second.reason) == ("unknown", "", "")
    assert prove_layers(quantised(), [kernel])[1].built == "merged"


def test_counts_always_name_the_three():
    assert count_precisions(["int8", "int8", "bf16"]) == {
        "int8": 2,
        "fp16": 0,
        "fp32": 0,
        "bf16": 1,
    }


def test_int8_weights_under_float_data_are_float_arithmetic():
    def precision(*types: str) -> str:
        return EngineLayer("c", "CaskConvolution", types[:1], types[1:], (), ("c",)).precision

    assert precision("fp32", "int8") == precision("int8", "fp32") == "fp32"
    assert precision("fp16", "int8") == "mixed"
    assert precision("int8", "int8") == "int8"
