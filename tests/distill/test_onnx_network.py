"""ONNX networks in torch: every operator as onnxruntime computes it, others refused."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from fr_edge.distill.foreign.onnx_network import OnnxNetwork
from fr_edge.distill.teacher import open_teacher, torch_of_onnx
from fr_edge.errors import ModelError
from fr_edge.faces.contract import make_spec
from fr_edge.inference import make_session


def network(**changed: Any) -> ModelProto:
    """All operators, each of which the output depends on."""
    draw = np.random.default_rng(0)
    weights: list[Any] = []

    def weight(name: str, *shape: int) -> str:
        values = np.asarray(draw.normal(size=shape) / max(1, np.prod(shape[1:])) ** 0.5, np.float32)
        weights.append(numpy_helper.from_array(np.abs(values) if name == "var" else values, name))
        return name

    def whole(name: str, *values: int) -> str:
        weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    nodes = []

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(
            helper.make_node(kind, inputs, [output], **{**attributes, **changed.get(kind, {})})
        )
        return output

    x = add("Sub", ["face", weight("mean", 1, 3, 1, 1)], "a")
    x = add("Mul", [x, weight("scale", 1)], "b")
    x = add(
        "Conv",
        [x, weight("w1", 8, 3, 3, 3), weight("b1", 8)],
        "c",
        strides=[2, 2],
        pads=[0, 1, 1, 0],
    )
    x = add(
        "BatchNormalization",
        [x, weight("g", 8), weight("h", 8), weight("m", 8), weight("var", 8)],
        "d",
    )
    x = add("PRelu", [x, weight("slope", 8, 1, 1)], "e")
    x = add("MaxPool", [x], "f", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    y = add(
        "Conv", [x, weight("w2", 8, 1, 3, 3)], "g1", group=8, pads=[2, 2, 2, 2], dilations=[2, 2]
    )
    y = add("Relu", [y], "g2")
    x = add("Add", [x, y], "h1")
    x = add("AveragePool", [x], "h2", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    y = add("GlobalAveragePool", [x], "i1")
    y = add("Sigmoid", [y], "i2")
    y = add("Clip", [y, weight("low"), ""], "i3")
    x = add("Mul", [x, y], "j")
    x = add("LeakyRelu", [x], "k1", alpha=0.2)
    x = add("Dropout", [add("Identity", [x], "k2")], "k3")
    x = add("Transpose", [x], "l", perm=[0, 2, 3, 1])
    size = add("Gather", [add("Shape", [x], "m1"), whole("first")], "m2")
    nodes[-1].input[1] = "zero"
    weights.append(numpy_helper.from_array(np.array(0, np.int64), "zero"))
    shape = add(
        "Concat",
        [add("Unsqueeze", [size, whole("axis", 0)], "m3"), whole("rest", -1)],
        "m4",
        axis=0,
    )
    flat = add("Flatten", [add("Reshape", [x, shape], "n")], "o")
    x = add(
        "Gemm", [flat, weight("w3", 12, 14 * 14 * 8), weight("b3", 12)], "p", transB=1, alpha=0.5
    )
    x = add("MatMul", [x, weight("w4", 12, 6)], "q")
    x = add("Div", [x, weight("by", 1)], "r")
    x = add("Squeeze", [add("Unsqueeze", [x, whole("two", 2)], "s"), "two"], "t")
    graph = helper.make_graph(
        nodes,
        "all",
        [helper.make_tensor_value_info("face", TensorProto.FLOAT, ["N", 3, 112, 112])],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, ["N", 6])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def runtime(model: ModelProto) -> onnxruntime.InferenceSession:
    return make_session(model.SerializeToString(), name="test", threads=1)


def test_every_operator_is_onnxruntimes() -> None:
    model = network()
    onnx.checker.check_model(model)
    images = np.random.default_rng(1).normal(size=(3, 3, 112, 112)).astype(np.float32)
    wanted = runtime(model).run(None, {"face": images})[0]
    with torch.no_grad():
        own = OnnxNetwork(model)(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(own, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"MaxPool": {"ceil_mode": 1}}, "MaxPool with ceil_mode"),
        ({"Conv": {"auto_pad": "SAME_UPPER", "pads": None}}, "Conv with auto_pad"),
    ],
)
def test_other_forms_are_refused(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        OnnxNetwork(network(**changed))
    model = network()
    model.graph.node[3].op_type = "InstanceNormalization"
    with pytest.raises(ModelError, match="operator InstanceNormalization"):
        OnnxNetwork(model)


def test_what_torch_computes_otherwise_stays_in_onnxruntime(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, spec = network(), make_spec("raw")
    session = runtime(model)

    def run(images: Any) -> Any:
        return session.run(None, {"face": images})[0]

    assert torch_of_onnx(model, run, spec, "cpu") is not None
    with caplog.at_level(logging.WARNING):
        assert torch_of_onnx(model, lambda images: -run(images), spec, "cpu") is None
        assert "a cosine is -" in caplog.text
        model.graph.node[3].op_type = "InstanceNormalization"
        assert torch_of_onnx(model, run, spec, "cpu") is None
        assert "InstanceNormalization" in caplog.text
    path = tmp_path / "teacher.onnx"
    path.write_bytes(network().SerializeToString())
    assert open_teacher(path, preset="raw").device == "cpu"
