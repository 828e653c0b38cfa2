"""Bad files: each is refused with what was found, and nothing runs or is left behind."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from fr_edge.errors import BundleError, ModelError, UsageError
from fr_edge.export.export import export_onnx
from fr_edge.faces.contract import PRESETS, make_spec

SPEC = PRESETS["insightface"]


def weight(model: ModelProto, name: str) -> TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def change(model: ModelProto, name: str, edit: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = weight(model, name)
    tensor.CopyFrom(numpy_helper.from_array(edit(numpy_helper.to_array(tensor)), name))


def integer_input(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64


def integer_output(model: ModelProto) -> None:
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("Cast", ["before"], ["fc1"], to=TensorProto.INT64))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64


def second_input(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("age", TensorProto.FLOAT, ["N", 16]))
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("Add", ["before", "age"], ["fc1"]))


def second_output(model: ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("e", TensorProto.FLOAT, ["N", 16]))


def feature_map(model: ModelProto) -> None:
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("d", TensorProto.FLOAT, None))


def nan_slope(model: ModelProto) -> None:
    change(model, "b_slope", lambda a: np.where(np.arange(8).reshape(8, 1, 1) == 3, np.nan, a))


def infinite_weight(model: ModelProto) -> None:
    change(model, "e_w", lambda a: np.where(a == a.max(), np.inf, a).astype(np.float32))


def dead(model: ModelProto) -> None:
    change(model, "e_w", lambda a: a * 0)


def unknown_operator(model: ModelProto) -> None:
    model.graph.node[2].op_type = "Mystery"


def training(model: ModelProto) -> None:
    model.opset_import[0].version = 17
    norm = next(n for n in model.graph.node if n.op_type == "BatchNormalization")
    norm.attribute.append(helper.make_attribute("training_mode", 1))
    norm.output.extend(["mean_now", "var_now"])


def plugin(model: ModelProto) -> None:
    model.graph.node[2].op_type, model.graph.node[2].domain = "Mystery", "com.acme"


def quantized(model: ModelProto) -> None:
    nodes = [*model.graph.node]
    nodes[0].input[0] = "back"
    for name, value in (("scale", np.float32(0.02)), ("zero", np.int8(0))):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    front = [
        helper.make_node("QuantizeLinear", ["data", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["back"]),
    ]
    del model.graph.node[:]
    model.graph.node.extend([*front, *nodes])


def two_channels(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 2


def flat_input(model: ModelProto) -> None:
    del model.graph.input[0].type.tensor_type.shape.dim[3]


def no_input(model: ModelProto) -> None:
    model.graph.initializer.append(
        numpy_helper.from_array(np.zeros((1, 3, 112, 112), np.float32), "data")
    )
    del model.graph.input[:]


def from_the_future(model: ModelProto) -> None:
    model.opset_import[0].version = 99


FAULTS: list[tuple[Callable[[ModelProto], None], str]] = [
    (integer_input, "int64; expected float32"),
    (integer_output, "output fc1 is int64; expected the embedding in float32"),
    (second_input, r"input age \?x16 is not an image"),
    (second_output, "2 outputs"),
    (feature_map, "1x16x7x7"),
    (nan_slope, "b_slope holds NaN"),
    (infinite_weight, "not finite"),
    (dead, "same embedding"),
    (unknown_operator, "Mystery"),
    (training, "over the batch, as in training"),
    (plugin, "com.acme"),
    (quantized, "already quantized"),
    (two_channels, "expected 3 channels or 1"),
    (flat_input, "rank 4"),
    (no_input, "0 inputs"),
    (from_the_future, "99"),
]


def refused(source: Path, out: Path, match: str) -> ModelError:
    with pytest.raises(ModelError, match=match) as caught:
        export_onnx(source, out, spec=SPEC)
    assert not out.exists()
    assert len(caught.value.message) < 600
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize(("fault", "match"), FAULTS, ids=[f.__name__ for f, _ in FAULTS])
def test_a_network_that_cannot_be_used(
    fault: Callable[[ModelProto], None], match: str, tmp_path: Path, tools: SimpleNamespace
) -> None:
    model = tools.build()
    fault(model)
    source = tmp_path / "given.onnx"
    source.write_bytes(model.SerializeToString())
    refused(source, tmp_path / "bundle", match)


JUNK = {
    "nothing": b"",
    "text": b"<html>404</html>" * 20,
    "noise": bytes(range(256)) * 8,
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n",
}


@pytest.mark.parametrize("name", JUNK)
def test_no_onnx_at_all(name: str, tmp_path: Path) -> None:
    source = tmp_path / "given.onnx"
    source.write_bytes(JUNK[name])
    refused(source, tmp_path / "bundle", "ONNX|LFS")


def test_half_a_file(tmp_path: Path, tools: SimpleNamespace) -> None:
    source = tmp_path / "given.onnx"
    data = tools.build().SerializeToString()
    for part in (0.3, 0.6, 0.9):
        source.write_bytes(data[: int(len(data) * part)])
        refused(source, tmp_path / "bundle", "ONNX")


def test_no_file(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere.onnx", tmp_path / "bundle", "no model at")


@pytest.fixture
def with_side_file(tmp_path: Path, tools: SimpleNamespace) -> Path:
    source = tmp_path / "given.onnx"
    onnx.save(
        tools.build(), str(source), save_as_external_data=True, location="w", size_threshold=0
    )
    return source


def test_a_loop_is_refused_though_it_ends(tmp_path: Path) -> None:
    """One that the image itself drives may end on the trial's image and on no other."""
    x = onnx.helper.make_tensor_value_info
    kinds = [("turn", onnx.TensorProto.INT64), ("go", onnx.TensorProto.BOOL)]
    body = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Identity", ["go"], ["more"]),
            onnx.helper.make_node("Neg", ["a"], ["b"]),
        ],
        "body",
        [*(x(name, kind, ()) for name, kind in kinds), x("a", onnx.TensorProto.FLOAT, None)],
        [x("more", onnx.TensorProto.BOOL, ()), x("b", onnx.TensorProto.FLOAT, None)],
    )
    nodes = [
        onnx.helper.make_node("ReduceMax", ["face"], ["top"], keepdims=0),
        onnx.helper.make_node("Cast", ["top"], ["turns"], to=onnx.TensorProto.INT64),
        onnx.helper.make_node("Loop", ["turns", "", "face"], ["end"], body=body),
        onnx.helper.make_node("Conv", ["end", "w"], ["mean"], kernel_shape=[112, 112]),
        onnx.helper.make_node("Flatten", ["mean"], ["embedding"]),
    ]
    weights = np.ones((8, 3, 112, 112), np.float32)
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [x("face", onnx.TensorProto.FLOAT, (1, 3, 112, 112))],
        [x("embedding", onnx.TensorProto.FLOAT, (1, 8))],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, tmp_path / "x.onnx")
    refused(tmp_path / "x.onnx", tmp_path / "bundle", "has the operator Loop")


def test_side_file_missing(with_side_file: Path, tmp_path: Path) -> None:
    (tmp_path / "w").unlink()
    assert "side files" in refused(with_side_file, tmp_path / "bundle", "side files").hint


def test_side_file_elsewhere_is_not_read(with_side_file: Path, tmp_path: Path) -> None:
    model = onnx.load(str(with_side_file), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../../../etc/hostname"
    with_side_file.write_bytes(model.SerializeToString())
    refused(with_side_file, tmp_path / "bundle", "side files")


def test_side_file_too_short(with_side_file: Path, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"short")
    refused(with_side_file, tmp_path / "bundle", "side files|damaged")


def given(tmp_path: Path, tools: SimpleNamespace) -> Path:
    source = tmp_path / "given.onnx"
    onnx.save(tools.build(), str(source))
    return source


def test_the_contract_is_never_guessed(tmp_path: Path, tools: SimpleNamespace) -> None:
    with pytest.raises(UsageError, match="does not say how a face") as caught:
        export_onnx(given(tmp_path, tools), tmp_path / "bundle")
    assert "--preset" in caught.value.hint
    assert not (tmp_path / "bundle").exists()


def test_a_contract_of_another_size(tmp_path: Path, tools: SimpleNamespace) -> None:
    spec = make_spec("insightface", size="112x96")
    with pytest.raises(UsageError, match="takes 112x112, the contract says 112x96"):
        export_onnx(given(tmp_path, tools), tmp_path / "bundle", spec=spec)


def test_arch_is_for_weights(tmp_path: Path, tools: SimpleNamespace) -> None:
    with pytest.raises(UsageError, match="--arch"):
        export_onnx(given(tmp_path, tools), tmp_path / "bundle", spec=SPEC, arch="iresnet18")


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    with pytest.raises(BundleError, match="not a bundle"):
        export_onnx(tmp_path / "faces", tmp_path / "bundle", spec=SPEC)
