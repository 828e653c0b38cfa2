"""Parameters and multiply-accumulates against counts made by hand, and the paper's."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from fr_edge.calibration.qdq import quantize_onnx
from fr_edge.calibration.table import CalibrationTable
from fr_edge.distill.networks import build_network
from fr_edge.documents import to_builtins
from fr_edge.errors import ModelError
from fr_edge.export.fp16 import make_fp16_model
from fr_edge.export.parity import probe_inputs
from fr_edge.export.torch_network import network_to_onnx
from fr_edge.faces.contract import PRESETS
from fr_edge.graph.layers import choose_int8_layers, layers, summarize_model, total_macs

SPEC = PRESETS["insightface"]
CONVS = {"a": (8, 3, 3, 28, 28), "b": (8, 1, 3, 7, 7), "c": (8, 8, 3, 7, 7), "d": (16, 8, 1, 7, 7)}
"""Output channels, input channels per group, kernel, height, width of `build`'s convolutions."""


class Graph:
    """A patch embedding, window attention and a mean, with an open batch, as exporters write it."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(op, list(inputs), [name], name, **attributes))
        return name

    def constant(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(onnx.numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape: int) -> str:
        return self.constant(np.full(shape, 0.01, np.float32))

    def shaped(self, x: str, *shape: int) -> str:
        return self.add("Reshape", x, self.constant(np.array(shape, np.int64)))

    def windows(self, x: str, dim: int) -> str:
        x = self.add("Conv", x, self.weight(dim, 3, 4, 4), strides=[4, 4])
        x = self.add("Transpose", x, perm=[0, 2, 3, 1])
        x = self.add("Transpose", self.shaped(x, -1, 4, 7, 4, 7, dim), perm=[0, 1, 3, 2, 4, 5])
        x = self.add("MatMul", self.shaped(x, -1, 49, dim), self.weight(dim, 3 * dim))
        parts = self.add("Transpose", self.shaped(x, -1, 49, 3, 4, dim // 4), perm=[2, 0, 3, 1, 4])
        q, k, v = (
            self.add("Gather", parts, self.constant(np.array(i, np.int64)), axis=0)
            for i in range(3)
        )
        scores = self.add("MatMul", q, self.add("Transpose", k, perm=[0, 1, 3, 2]))
        x = self.add("MatMul", self.add("Softmax", scores, axis=-1), v)
        x = self.shaped(self.add("Transpose", x, perm=[0, 2, 1, 3]), -1, 784, dim)
        x = self.add("ReduceMean", x, axes=[1], keepdims=0)
        return self.add("MatMul", x, self.weight(dim, 16))

    def model(self, output: str) -> onnx.ModelProto:
        value = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            self.nodes,
            "windows",
            [value("face", 1, ["batch", 3, 112, 112])],
            [value(output, 1, ["batch", 16])],
            self.weights,
        )
        imports = [onnx.helper.make_opsetid("", 17)]
        return onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)


def by_hand() -> tuple[int, int]:
    weights = sum(o * i * k * k + o for o, i, k, _, _ in CONVS.values())
    work = sum(o * i * k * k * h * w for o, i, k, h, w in CONVS.values())
    head = 16 * 16 * 7 * 7
    return weights + 3 * 8 + head + 16, work + head  # three PReLU of 8 slopes


def cost(model: onnx.ModelProto) -> tuple[int, int]:
    """Parameters and multiply-adds."""
    table = layers(model)
    return sum(layer.parameters for layer in table), total_macs(table)


def test_against_counts_by_hand(tools: SimpleNamespace) -> None:
    model = tools.standard(tools.build())
    assert cost(model) == by_hand()


def test_the_papers_mobilefacenet(tools: SimpleNamespace) -> None:
    torch.manual_seed(0)
    model = tools.standard(network_to_onnx(build_network("mobilefacenet", 512).eval(), "", SPEC))
    assert round(cost(model)[1] / 1e6, 1) == 221.2


def test_tokens_windows_and_attention_count(tools: SimpleNamespace) -> None:
    """784 tokens of 40 in 16 windows of 49, 4 heads: every row of a MatMul counts, and products of
    two activations."""
    graph = Graph()
    dim, tokens, heads = 40, 784, 4
    x = graph.windows("face", dim)
    model = graph.model(x)
    conv = 28 * 28 * dim * 3 * 16
    qkv, attention = tokens * dim * 3 * dim, 2 * 16 * heads * 49 * 49 * (dim // heads)
    head = dim * 16
    assert cost(model)[1] == conv + qkv + attention + head
    choice = choose_int8_layers(model)
    assert choice.mac_share == pytest.approx(1 - attention / cost(model)[1])
    assert choice.dense_share == 1.0


def test_the_layer_table(tools: SimpleNamespace) -> None:
    table = layers(tools.standard(tools.build()))
    first = table[0]
    assert (first.op, first.shape, first.precision) == ("Conv", (8, 28, 28), "fp32")
    assert (first.parameters, first.macs) == (8 * 27 + 8, 8 * 27 * 28 * 28)
    assert table[-1].op == "Gemm"
    assert table[-1].shape == (16,)


def test_fp16_and_int8_cost_the_same(tools: SimpleNamespace) -> None:
    model = tools.standard(tools.build())
    inputs = probe_inputs(SPEC)
    half = make_fp16_model(model, inputs, tools.run(model, inputs))
    assert half is not None
    choice = choose_int8_layers(model)
    ranges = {name: 1.0 for name in choice.tensors}
    quantised = quantize_onnx(model, CalibrationTable("minmax", 1, 1, "", ranges), choice)
    for other, name in ((half.model, "fp16"), (quantised, "int8")):
        assert cost(other) == by_hand()
        assert name in {layer.precision for layer in layers(other)}
        assert not {"Cast", "QuantizeLinear"} & {layer.op for layer in layers(other)}


def test_facts_of_a_file(tmp_path: Path, tools: SimpleNamespace) -> None:
    model = tools.standard(tools.build())
    onnx.save(model, str(tmp_path / "ours.onnx"))
    facts = summarize_model(tmp_path / "ours.onnx")
    assert (facts.opset, facts.ir_version, facts.input) == (17, 8, SPEC)
    assert facts.producer.startswith("fr-edge")
    assert facts.size == (tmp_path / "ours.onnx").stat().st_size
    document = to_builtins(facts)
    assert document["macs"] == by_hand()[1] == document["macs_by_precision"]["fp32"]
    assert document["operators"]["PRelu"] == 3
    onnx.save(tools.build(opset=11), str(tmp_path / "theirs.onnx"))
    facts = summarize_model(tmp_path / "theirs.onnx")
    assert (facts.opset, facts.input) == (11, None)
    (tmp_path / "none.onnx").write_bytes(b"none")
    with pytest.raises(ModelError):
        summarize_model(tmp_path / "none.onnx")


def test_free_sizes_count_nothing(tools: SimpleNamespace) -> None:
    model = tools.build()
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.Clear()
    assert {layer.op for layer in layers(model) if layer.macs} == {"Gemm"}


def test_products_that_stay_float_count_too() -> None:
    """By hand: 3x8x8 -> 5x16x16 by 2x2; 6 steps of 10 into both directions of 4 hidden units; attention."""
    random = np.random.default_rng(0)
    weights = {
        "up": random.normal(size=(3, 5, 2, 2)),
        "w": random.normal(size=(2, 16, 10)),
        "r": random.normal(size=(2, 16, 4)),
    }
    nodes = [
        helper.make_node("ConvTranspose", ["image", "up"], ["large"], strides=[2, 2]),
        helper.make_node("Transpose", ["rows"], ["steps"], perm=[1, 0, 2]),
        helper.make_node(
            "LSTM", ["steps", "w", "r"], ["states"], hidden_size=4, direction="bidirectional"
        ),
        helper.make_node("Einsum", ["q", "k"], ["scores"], equation="bhid, bhjd -> bhij"),
        helper.make_node("MatMul", ["scores", "k"], ["mixed"]),
        helper.make_node("Einsum", ["rows"], ["turned"], equation="bij->bji"),  # no product
    ]
    inputs = {
        "image": ("batch", 3, 8, 8),
        "rows": ("batch", 6, 10),
        "q": ("batch", 2, 7, 16),
        "k": ("batch", 2, 7, 16),
    }
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info("mixed", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()],
    )
    table = layers(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert {layer.op: layer.macs for layer in table if layer.macs} == {
        "ConvTranspose": 3 * 8 * 8 * 5 * 2 * 2,
        "LSTM": 6 * 2 * 4 * 4 * (10 + 4),
        "Einsum": 2 * 7 * 7 * 16,
        "MatMul": 2 * 7 * 7 * 16,
    }
    assert {layer.precision for layer in table if layer.macs} == {"fp32"}
    assert not any(layer.weight for layer in table)
