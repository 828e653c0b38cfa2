"""What a graph has besides one float32 image and one embedding is filled, chosen, or refused by name."""

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from fr_edge.errors import ModelError, UsageError
from fr_edge.export.canonicalize import tidy
from fr_edge.export.export import export_onnx
from fr_edge.export.one_face import InterfaceOptions
from fr_edge.faces.contract import PRESETS

# Insightface's five points of an aligned face, as a share of its 112 pixels; x first.
POINTS = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
) / 112  # fmt: skip


def with_input(model: ModelProto, shape: list[int], name: str = "points") -> ModelProto:
    """A network that also reads a second input: its numbers, weighted, move the embedding."""
    numbers = int(np.prod(shape[1:]))
    graph = model.graph
    graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    weight = np.random.default_rng(8).normal(size=(numbers, 16)).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(weight, "by_points"))
    graph.node.extend(
        [
            helper.make_node("Flatten", [name], ["points_row"]),
            helper.make_node("MatMul", ["points_row", "by_points"], ["points_part"]),
            helper.make_node("Add", [graph.output[0].name, "points_part"], ["moved"]),
        ]
    )
    graph.output[0].name = "moved"
    return model


def run_all(model: ModelProto, feeds: dict[str, np.ndarray], output: str) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString())
    return np.asarray(session.run([output], feeds)[0])


@pytest.mark.parametrize("shape", [[1, 5, 2], [1, 10]])
def test_five_points_are_the_templates(
    shape: list[int], tools: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    given = with_input(tools.build(), shape)
    model = tools.standard(given)
    faces = tools.noise(3, 3, 112, 112)
    points = POINTS.astype(np.float32).reshape(shape)
    expected = run_all(given, {"data": faces, "points": points}, "moved")
    np.testing.assert_allclose(tools.run(model, faces), expected, rtol=1e-4, atol=1e-5)
    assert "input points gets the five points of an aligned face" in caplog.text


def test_another_input_is_named_and_can_be_given(tools: SimpleNamespace) -> None:
    given = with_input(tools.build(), [1, 3], "pose")
    with pytest.raises(ModelError, match="input pose 1x3 is not an image") as caught:
        tidy(given)
    assert "--constant pose=VALUE" in str(caught.value.hint)
    pose = np.float32([0.1, -2.0, 3.0])
    model = tidy(given, InterfaceOptions(constants={"pose": pose}))
    faces = tools.noise(2, 3, 112, 112)
    expected = run_all(given, {"data": faces, "pose": pose[None]}, "moved")
    np.testing.assert_allclose(tools.run(model, faces), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="has 2 numbers; expected 3"):
        tidy(given, InterfaceOptions(constants={"pose": pose[:2]}))
    with pytest.raises(UsageError, match="no such input; it has data, pose"):
        tidy(given, InterfaceOptions(constants={"yaw": pose}))


def with_output(model: ModelProto, op: str, **attributes: int) -> ModelProto:
    graph, embedding = model.graph, model.graph.output[0].name
    graph.node.append(helper.make_node(op, [embedding], ["second"], **attributes))
    graph.output.append(helper.make_tensor_value_info("second", TensorProto.FLOAT, None))
    return model


def test_the_embedding_is_the_output_of_many_numbers(
    tools: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    given = with_output(tools.build(), "ReduceL2", keepdims=1)
    name = given.graph.output[0].name
    model = tidy(given)
    assert [value.name for value in model.graph.output] == [name]
    assert f"{name} is the embedding" in caplog.text


def test_two_candidates_are_not_chosen_between(tools: SimpleNamespace) -> None:
    given = with_output(tools.build(), "Tanh")
    with pytest.raises(ModelError, match="2 of them can be the embedding") as caught:
        tidy(given)
    assert caught.value.hint == "name the embedding: --output NAME"
    model = tidy(given, InterfaceOptions(output="second"))
    faces = tools.noise(2, 3, 112, 112)
    np.testing.assert_allclose(tools.run(model, faces), run_all(given, {"data": faces}, "second"))
    with pytest.raises(UsageError, match="no such output; it has fc1, second"):
        tidy(given, InterfaceOptions(output="third"))


def as_type(model: ModelProto, kind: int) -> ModelProto:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(dtype)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = kind
    return model


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_other_float_types_become_float32(
    kind: int, tools: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    # Without slopes: onnxruntime has no PRelu in half precision.
    given = as_type(tools.build(), kind)
    exact = tools.build()
    for tensor in exact.graph.initializer:
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(dtype).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    model = tools.standard(given)
    faces = tools.noise(3, 3, 112, 112)
    assert tools.cosine(tools.run(model, faces), tools.run(exact, faces)) > 0.999999
    assert "precision; exported in float32" in caplog.text


def test_a_number_beyond_float32_is_refused(tools: SimpleNamespace) -> None:
    given = as_type(tools.build(), TensorProto.DOUBLE)
    tensor = given.graph.initializer[0]
    array = numpy_helper.to_array(tensor).copy()
    array.reshape(-1)[0] = 1e300
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    with pytest.raises(ModelError, match="holds 1e\\+300, too large for float32"):
        tidy(given)


def uint8_network(tools: SimpleNamespace) -> ModelProto:
    """Pixels `(N, H, W, 3)` as uint8 in."""
    given = tools.build(inside=True, nhwc=True)
    graph = given.graph
    graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    cast = helper.make_node("Cast", ["data"], ["pixels"], to=TensorProto.FLOAT)
    graph.node[0].input[0] = "pixels"
    graph.node.insert(0, cast)
    return given


def test_pixels_in_name_the_contract(
    tmp_path: Path, tools: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    given = uint8_network(tools)
    onnx.save(given, tmp_path / "u8.onnx")
    bundle = export_onnx(tmp_path / "u8.onnx", tmp_path / "b").bundle
    assert bundle.spec == PRESETS["raw"]
    assert "takes pixels as uint8" in caplog.text
    assert "the channels' order taken as RGB" in caplog.text
    pixels = np.random.default_rng(0).integers(0, 256, (7, 112, 112, 3), np.uint8)
    expected = run_all(given, {"data": pixels}, given.graph.output[0].name)
    faces = pixels.transpose(0, 3, 1, 2).astype(np.float32)
    result = tools.run(onnx.load(bundle.file("model.onnx")), faces)
    assert tools.cosine(result, expected) > 0.999999


def test_no_shape(tools: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    given = tools.build(batch=1, flatten="Reshape")
    faces = tools.noise(3, 3, 112, 112)
    expected = np.concatenate([tools.run(given, face[None]) for face in faces])
    given.graph.input[0].type.tensor_type.ClearField("shape")
    model = tools.standard(given)
    assert tools.cosine(tools.run(model, faces), expected) > 0.999999
    assert "input data has no shape" in caplog.text


def test_mxnets_norms_and_slopes(tools: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    """`spatial=0` with numbers per channel, and slopes `(C)`: repaired as meant."""
    caplog.set_level(logging.INFO)
    faces = tools.noise(2, 3, 112, 112)
    expected = tools.run(tools.build(opset=8), faces)
    given = tools.build(opset=8)
    for node in given.graph.node:
        if node.op_type == "BatchNormalization":
            node.attribute.append(helper.make_attribute("spatial", 0))
    for tensor in given.graph.initializer:
        if tensor.name.endswith("_slope"):
            array = numpy_helper.to_array(tensor).reshape(-1)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    assert tools.cosine(tools.run(tools.standard(given), faces), expected) > 0.999999
    assert "its spatial=0 is dropped" in caplog.text
    assert "is taken per channel" in caplog.text


def test_a_grey_network_goes_through(tmp_path: Path, tools: SimpleNamespace) -> None:
    """One channel: exported, calibrated, built and opened; a colour contract is refused."""
    from fr_edge.calibration.calibrate import calibrate
    from fr_edge.faces.contract import make_spec, preprocess
    from fr_edge.faces.sources import open_faces
    from fr_edge.runtime.build import build_engine
    from fr_edge.runtime.session import open_session

    given = tools.build()
    for tensor in given.graph.initializer:
        if tensor.name == "a_w":
            array = numpy_helper.to_array(tensor).sum(axis=1, keepdims=True)
            tensor.CopyFrom(numpy_helper.from_array(array, "a_w"))
    given.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    onnx.save(given, tmp_path / "grey.onnx")
    with pytest.raises(UsageError, match="the network takes one channel") as caught:
        export_onnx(tmp_path / "grey.onnx", tmp_path / "b", spec=PRESETS["insightface"])
    assert caught.value.hint == "add --channels grey"
    spec = make_spec("raw", std="255", channels="grey")
    bundle = export_onnx(tmp_path / "grey.onnx", tmp_path / "b", spec=spec).bundle
    people = open_faces("synthetic:12x2@4")
    faces = np.stack([people.read(index) for index in range(6)])
    inputs = preprocess(faces, spec)
    expected = tools.run(given, inputs)
    assert tools.cosine(tools.run(onnx.load(bundle.file("model.onnx")), inputs), expected) > 0.99999
    bundle = calibrate(bundle, people).bundle
    build_engine(bundle, "int8", backend="onnxruntime")
    with open_session(bundle.root, "int8", "onnxruntime") as session:
        assert tools.cosine(session.embed(faces), expected) > 0.98
