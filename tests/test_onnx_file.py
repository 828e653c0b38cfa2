"""Strangers' ONNX files: what is damaged, hostile or random is refused by name, in bounded time."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnx.numpy_helper import from_array

from fr_edge.errors import ModelError
from fr_edge.faces.contract import InputSpec
from fr_edge.onnx_file import other_file, parse_onnx, read_onnx
from fr_edge.runtime.cpu_kernel_selection import build_cpu_engine
from fr_edge.trial_run import _shapes, _unknown_cost, ensure_runnable

from .networks import write_network

BIG = 1 << 31


def network(nodes: Sequence[NodeProto], *weights: TensorProto, **settings: Any) -> ModelProto:
    """A model of an image `face` and an output `out`, opset 17."""
    face = helper.make_tensor_value_info("face", TensorProto.FLOAT, ("batch", 3, 112, 112))
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [face], [out], list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], **settings)


def numbers(name: str, *values: int) -> TensorProto:
    return from_array(np.array(values, np.int64), name)


def endless_loop() -> ModelProto:
    """A loop of 2^62 turns; the first turn ends it in name only."""
    kinds = [("turn", TensorProto.INT64), ("go", TensorProto.BOOL)]
    inputs = [helper.make_tensor_value_info(n, k, ()) for n, k in kinds]
    inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, None))
    outputs = [helper.make_tensor_value_info("go_on", TensorProto.BOOL, ())]
    outputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    nodes = [
        helper.make_node("Identity", ["go"], ["go_on"]),
        helper.make_node("Neg", ["x"], ["y"]),
    ]
    body = helper.make_graph(nodes, "body", inputs, outputs)
    loop = helper.make_node("Loop", ["turns", "", "face"], ["out"], body=body)
    return network([loop], from_array(np.array(1 << 62, np.int64), "turns"))


def terabytes() -> ModelProto:
    fill = helper.make_node("ConstantOfShape", ["size"], ["zeros"])
    return network(
        [fill, helper.make_node("Add", ["face", "zeros"], ["out"])],
        numbers("size", BIG, 1, 1, 1, 1),
    )


def computed_terabytes() -> ModelProto:
    """A size that is computed from the image's own shape, out of reach for shape inference."""
    nodes = [
        helper.make_node("ReduceMax", ["face"], ["top"], keepdims=0),
        helper.make_node("Cast", ["top"], ["one"], to=TensorProto.INT64),
        helper.make_node("Mul", ["one", "size"], ["sizes"]),
        helper.make_node("ConstantOfShape", ["sizes"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
        helper.make_node("Add", ["face", "sum"], ["out"]),
    ]
    return network(nodes, numbers("size", BIG, 64))


def doubling() -> ModelProto:
    """Each node makes twice as many numbers as the one before."""
    names = ["face", *(f"t{i}" for i in range(40)), "out"]
    pairs = zip(names, names[1:], strict=False)
    return network([helper.make_node("Concat", [a, a], [b], axis=3) for a, b in pairs])


def long_convolution() -> ModelProto:
    """Few numbers, and 10^15 multiply-adds."""
    size = numbers("size", 1, 1, 4096, 4096)
    nodes = [
        helper.make_node("ReduceMean", ["face"], ["mean"], keepdims=1),
        helper.make_node("Expand", ["mean", "size"], ["wide"]),
        *(
            helper.make_node("MatMul", [f"wide{i}" if i else "wide", "wide"], [f"wide{i + 1}"])
            for i in range(100)
        ),
        helper.make_node("ReduceMean", ["wide100"], ["out"], keepdims=1),
    ]
    return network(nodes, size)


@pytest.mark.parametrize(
    "model", [endless_loop, terabytes, computed_terabytes, doubling, long_convolution]
)
def test_a_network_without_bounds_is_refused(
    model: Callable[[], ModelProto], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FR_EDGE_MAX_APART_SECONDS", "3")
    monkeypatch.setenv("FR_EDGE_MAX_APART_MB", "3000")
    path = tmp_path / "x.onnx"
    onnx.save(model(), path)
    with pytest.raises(ModelError, match="within") as caught:
        ensure_runnable(read_onnx(path), "x.onnx")
    assert "FR_EDGE_MAX_APART_" in caught.value.hint


def test_a_loop_that_ends_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = endless_loop()
    model.graph.initializer[0].CopyFrom(from_array(np.array(3, np.int64), "turns"))
    ensure_runnable(model, "x.onnx")


def test_a_network_of_many_operators_is_tried_apart() -> None:
    """Each is cheap, but loading them all may take hours."""
    names = ["face", *(f"a{i}" for i in range(5000)), "out"]
    nodes = [helper.make_node("Add", [a, a], [b]) for a, b in pairwise(names)]
    assert "5,001 operators" in _unknown_cost(network(nodes), (112, 112))
    assert (
        _unknown_cost(network([*nodes[:99], helper.make_node("Abs", ["a98"], ["out"])]), (112, 112))
        == ""
    )


def test_an_ordinary_network_needs_no_trial(tmp_path: Path) -> None:
    """Not even where its shapes depend on the batch, as torch writes a flattening."""
    model = read_onnx(write_network(tmp_path / "x.onnx", batch="batch"))
    assert _unknown_cost(model, (112, 112)) == ""
    nodes = [
        helper.make_node("Shape", ["face"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "zero"], ["count"]),
        helper.make_node("Concat", ["count", "rest"], ["flat"], axis=0),
        helper.make_node("Reshape", ["face", "flat"], ["out"]),
    ]
    flattened = network(nodes, numbers("zero", 0), numbers("rest", -1))
    assert _unknown_cost(flattened, (112, 112)) == ""


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_engines_of_onnxruntime_need_no_trial(
    calibrated_mini: Path, tmp_path: Path, precision: str
) -> None:
    """Its optimiser's own operators make the shapes of the standard ones: no process for each open."""
    source = calibrated_mini / {"fp32": "model.onnx"}.get(precision, f"model.{precision}.onnx")
    build_cpu_engine(source, tmp_path / "e.onnx", precision, InputSpec())
    engine = read_onnx(tmp_path / "e.onnx")
    domains = {node.domain for node in engine.graph.node}
    own = any(domain.startswith("com.microsoft") for domain in domains)
    assert own == (precision != "fp16")  # its optimiser leaves FP16 weights as they are
    assert _unknown_cost(engine, (112, 112)) == ""
    assert _shapes(engine, (112, 112))["embedding"] == [1, 32]


BLOCKED = "com.microsoft.nchwc"


@pytest.mark.parametrize(
    ("attributes", "cost"),
    [
        ({"pads": [40000, 0, 40000, 0]}, "Conv makes 143,560,704 numbers"),
        ({"pads": [400] * 4}, "multiply-adds"),
    ],
)
def test_operators_of_onnxruntime_count_as_much(attributes: Any, cost: str) -> None:
    nodes = [
        helper.make_node("Conv", ["face", "w"], ["a"], domain=BLOCKED, **attributes),
        helper.make_node("Conv", ["a", "v"], ["b"], domain=BLOCKED, activation="Relu"),
        helper.make_node("ReorderOutput", ["b"], ["out"], domain=BLOCKED, channels=12),
    ]
    weights = [np.zeros((16, 3, 1, 1)), np.zeros((16, 16, 150, 150))]
    stored = [from_array(w.astype(np.float32), n) for w, n in zip(weights, "wv", strict=True)]
    model = network(nodes, *stored)
    model.opset_import.append(helper.make_opsetid(BLOCKED, 1))
    assert cost in _unknown_cost(model, (112, 112))


def test_blocks_of_channels_are_cut_to_those_that_they_hold() -> None:
    for last, expected in ((0, [1, 12, 112, 112]), (1, [1, 112, 112, 12])):
        nodes = [
            helper.make_node("Conv", ["face", "w"], ["a"], domain=BLOCKED),
            helper.make_node(
                "ReorderOutput", ["a"], ["out"], domain=BLOCKED, channels=12, channels_last=last
            ),
        ]
        model = network(nodes, from_array(np.zeros((16, 3, 1, 1), np.float32), "w"))
        model.opset_import.append(helper.make_opsetid(BLOCKED, 1))
        assert _shapes(model, (112, 112))["out"] == expected


def test_shapes_that_a_file_declares_are_not_believed() -> None:
    model = doubling()
    model.graph.value_info.append(
        helper.make_tensor_value_info("t39", TensorProto.FLOAT, (1, 3, 1, 1))
    )
    assert "makes" in _unknown_cost(model, (112, 112))


def refusal(model: ModelProto) -> str:
    with pytest.raises(ModelError, match=r"^x\.onnx") as caught:
        parse_onnx(model.SerializeToString(), "x.onnx")
    return caught.value.message


@pytest.mark.parametrize(
    ("node", "word"),
    [
        (helper.make_node("RandomNormal", [], ["out"], shape=[1]), "random"),
        (helper.make_node("RandomUniformLike", ["face"], ["out"]), "random"),
        (helper.make_node("Multinomial", ["face"], ["out"]), "random"),
        (helper.make_node("Bernoulli", ["face"], ["out"]), "random"),
        (helper.make_node("Dropout", ["face", "", "yes"], ["out"]), "Dropout in training mode"),
        (helper.make_node("Dropout", ["face", "", "face"], ["out"]), "Dropout in training mode"),
        (helper.make_node("Relu", ["face"], []), "no output"),
        (helper.make_node("Conv", ["face"], ["out"]), "has 1 inputs and 1 outputs; Conv needs 2"),
        (helper.make_node("Conv", ["face", "w"], ["out"], group="two"), "attribute group"),
        (helper.make_node("Transpose", ["face"], ["out"], perm=1.5), "attribute perm"),
    ],
)
def test_a_node_that_cannot_be_is_named(node: NodeProto, word: str) -> None:
    yes = from_array(np.array(True), "yes")
    assert word in refusal(network([node], yes, from_array(np.ones((3, 3, 1, 1), np.float32), "w")))


def test_a_random_node_that_no_output_depends_on_is_no_fault() -> None:
    noise = helper.make_node("RandomNormal", [], ["noise"], shape=[1])
    unread = helper.make_node("Add", ["out", "noise"], ["unread"])
    used = helper.make_node("Relu", ["face"], ["out"])
    assert parse_onnx(network([noise, used, unread]).SerializeToString(), "x.onnx")
    into_output = helper.make_node("Add", ["face", "noise"], ["out"])
    assert "random" in refusal(network([into_output, noise]))  # in whatever order they stand


@pytest.mark.parametrize(
    "text", ["Softplus", "in-put", "inside", "a-graph", "a-maker", "a-key", "size-n", "a-weight"]
)
def test_texts_that_are_not_utf8_are_refused(text: str, tmp_path: Path) -> None:
    """protobuf gives them as bytes, and refuses them where they are copied."""
    graph = helper.make_graph(
        [
            helper.make_node("Softplus", ["in-put"], ["inside"]),
            helper.make_node("Add", ["inside", "a-weight"], ["y"]),
        ],
        "a-graph",
        [helper.make_tensor_value_info("in-put", TensorProto.FLOAT, ["size-n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [from_array(np.ones(1, np.float32), "a-weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.producer_name = "a-maker"
    model.metadata_props.add(key="a-key", value="x")
    path, data = tmp_path / "x.onnx", model.SerializeToString()
    path.write_bytes(data)
    read_onnx(path)
    path.write_bytes(
        data.replace(text.encode(), text[:2].encode() + b"\xff\xfe" + text[4:].encode())
    )
    with pytest.raises(ModelError, match="names or texts that are not UTF-8"):
        read_onnx(path)


def test_dropout_in_inference_mode_is_taken() -> None:
    no = from_array(np.array(False), "no")
    model = network([helper.make_node("Dropout", ["face", "", "no"], ["out"])], no)
    parse_onnx(model.SerializeToString(), "x.onnx")


def tensor(**fields: Any) -> TensorProto:
    return TensorProto(**{"name": "w", "data_type": TensorProto.FLOAT, "dims": [2, 3], **fields})


@pytest.mark.parametrize(
    "weight",
    [
        tensor(raw_data=b"odd"),
        tensor(raw_data=b"\0" * 23),
        tensor(raw_data=b""),
        tensor(float_data=[1.0]),
        tensor(),
        tensor(dims=[-2, -3], raw_data=b"\0" * 24),
        tensor(dims=[BIG, BIG], raw_data=b"\0" * 24),
        tensor(dims=[1 << 62, 4], raw_data=b""),
        tensor(dims=[1] * 100, raw_data=b"\0" * 4),
        tensor(data_type=99, raw_data=b"\0" * 24),
        tensor(data_type=0, raw_data=b"\0" * 24),
        tensor(data_type=TensorProto.STRING, string_data=[b"a"]),
        tensor(data_location=TensorProto.EXTERNAL),
    ],
)
def test_a_weight_that_is_not_what_it_announces_is_refused(weight: TensorProto) -> None:
    node = helper.make_node("Add", ["face", "w"], ["out"])
    assert "w" in refusal(network([node], weight))
    constant = helper.make_node("Constant", [], ["w"], value=weight)
    assert "w" in refusal(network([constant, node]))


def test_sparse_weights_are_refused() -> None:
    model = network([helper.make_node("Add", ["face", "w"], ["out"])])
    model.graph.sparse_initializer.add()
    assert "sparse" in refusal(model)


def test_functions_that_multiply_are_counted_before_they_are_inlined() -> None:
    model = network([helper.make_node("f30", ["face"], ["out"], domain="f")])
    model.opset_import.append(helper.make_opsetid("f", 1))
    opsets = list(model.opset_import)
    for level in range(31):
        inner = f"f{level - 1}" if level else "Relu"
        domain = "f" if level else ""
        nodes = [
            helper.make_node(inner, ["x"], ["a"], domain=domain),
            helper.make_node(inner, ["a"], ["y"], domain=domain),
        ]
        model.functions.append(helper.make_function("f", f"f{level}", ["x"], ["y"], nodes, opsets))
    assert "larger than 50000 operators" in refusal(model)
    model.functions[0].node[0].op_type, model.functions[0].node[0].domain = "f30", "f"
    assert "calls itself" in refusal(model)


@pytest.mark.parametrize("place", ["/etc/passwd", "../w", "link", "a/../w", "", "pipe\n"])
def test_side_files_lie_beside_the_model(place: str, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"\0" * 24)
    (tmp_path / "link").symlink_to("w")
    weight = tensor(data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=place)
    path = tmp_path / "x.onnx"
    onnx.save(network([helper.make_node("Add", ["face", "w"], ["out"])], weight), path)
    with pytest.raises(ModelError, match="side files that cannot be read"):
        read_onnx(path, side_files=True)


def test_side_files_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "side").write_bytes(b"\0" * (2 << 20))
    weight = tensor(dims=[1 << 19], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="side")
    path = tmp_path / "x.onnx"
    onnx.save(network([helper.make_node("Add", ["face", "w"], ["out"])], weight), path)
    assert len(read_onnx(path, side_files=True).graph.initializer[0].raw_data) == 2 << 20
    monkeypatch.setenv("FR_EDGE_MAX_SIDE_FILES_MB", "1")
    with pytest.raises(ModelError, match="larger than 1 MB"):
        read_onnx(path, side_files=True)


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a film, or a HEIC or AVIF image"),
        (b"GIF89a\x09\0\x09\0", "a GIF image"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "a JPEG image"),
        (b"\x1c\0\0\0TFL3", "a TensorFlow Lite model"),
        (b"PK\x03\x04\0\0\x08\x08", "a zip archive"),
        (b"ftrt\0\0\0\0", "a TensorRT engine"),
        (b"\x12\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "weights of MXNet"),
        (b'{"nodes": []}', "JSON, as MXNet's symbols are"),
        (b"7767517\n75 83\n", "an ncnn network"),
    ],
)
def test_another_kind_of_file_is_named(start: bytes, kind: str) -> None:
    data = start + b"\xff" * 200
    with pytest.raises(ModelError, match=f"is {kind}; expected an ONNX model"):
        parse_onnx(data, "n.onnx")
    told = other_file(data[:16])
    assert told is not None
    assert told[0] == kind


def test_an_onnx_model_under_another_name(tmp_path: Path) -> None:
    written = write_network(tmp_path / "n.onnx").read_bytes()
    assert other_file(written[:16]) == ("an ONNX model", "name it .onnx")
    assert other_file(b"nothing known at all") is None
    with pytest.raises(ModelError, match="is not an ONNX model, or is damaged"):
        parse_onnx(written[:-5000], "cut.onnx")
