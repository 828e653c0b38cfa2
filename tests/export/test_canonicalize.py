"""Whatever a network looks like, the normal form is one, and computes the same at every batch."""

from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import GraphProto, ModelProto, helper, numpy_helper

from fr_edge.errors import ModelError
from fr_edge.export.canonicalize import tidy
from fr_edge.faces.contract import PRESETS, make_spec
from fr_edge.graph.load import contract_of
from fr_edge.graph.run import original_embedder

SPEC = PRESETS["insightface"]

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "fixed batch, reshape": {"batch": 1, "flatten": "Reshape"},
    "fixed batch, minus one": {"batch": 1, "flatten": "minus"},
    "fixed batch of 4": {"batch": 4, "flatten": "Reshape"},
    "shape and gather": {"batch": 1, "flatten": "shape"},
    "matrix product": {"head": "MatMul"},
    "global convolution, squeezed": {"head": "Conv", "flatten": "squeeze"},
    "global convolution, fixed": {"head": "Conv", "flatten": "minus", "batch": 1},
    "squeezed of everything": {"head": "Conv", "flatten": "squeeze all", "batch": 2},
    "mean and std inside": {"inside": True},
    "channels last": {"nhwc": True},
    "channels last, fixed": {"nhwc": True, "batch": 1, "flatten": "Reshape"},
    "unit length": {"unit": True},
    "our names the wrong way round": {"start": "embedding", "end": "face"},
}


def in_their_layout(faces: np.ndarray, knobs: dict[str, Any]) -> np.ndarray:
    return np.ascontiguousarray(faces.transpose(0, 2, 3, 1)) if knobs.get("nhwc") else faces


@pytest.mark.parametrize(
    ("name", "opset"),
    [*product(SHAPES, (9, 13, 21)), ("shape and gather", 11), ("unit length", 18)],
)
def test_same_function_in_one_form(name: str, opset: int, tools: SimpleNamespace) -> None:
    knobs = SHAPES[name]
    given = tools.build(opset=opset, **knobs)
    model = tools.standard(given)
    assert [value.name for value in model.graph.input] == ["face"]
    assert [value.name for value in model.graph.output] == ["embedding"]
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    assert model.ir_version == 8
    assert contract_of(model) == SPEC
    faces = tools.noise(64, 3, 112, 112)
    size = knobs.get("batch", 1) if isinstance(knobs.get("batch", 1), int) else 1
    theirs = in_their_layout(faces, knobs)
    expected = np.concatenate(
        [tools.run(given, theirs[i : i + size]) for i in range(0, 64, size)]
    ).reshape(64, -1)
    for count in (1, 7, 64):
        result = tools.run(model, faces[:count])
        assert result.shape == (count, 16)
        assert tools.cosine(result, expected[:count]) > 0.999999


@pytest.mark.parametrize(
    "knobs", [{"flatten": "minus"}, {"flatten": "Reshape"}, {"head": "Conv", "flatten": "squeeze all"}]
)  # fmt: skip
def test_a_batch_that_is_free_in_name_alone(knobs: dict[str, Any], tools: SimpleNamespace) -> None:
    """Declared free, with a flatten traced at one face; or one that several faces alone survive."""
    given = tools.build(batch="N", **knobs)
    faces = tools.noise(9, 3, 112, 112)
    expected = original_embedder(tidy(given).SerializeToString())(faces)
    by_hand = tools.run(given, faces) if "head" in knobs else None
    if by_hand is None:
        by_hand = np.concatenate([tools.run(given, face[None]) for face in faces])
    np.testing.assert_allclose(expected, by_hand.reshape(9, -1), rtol=1e-4, atol=1e-5)
    model = tools.standard(given)
    for count in (1, 7, 9):
        assert tools.cosine(tools.run(model, faces[:count]), expected[:count]) > 0.999999


def test_one_face_squeezed_to_a_row(tools: SimpleNamespace) -> None:
    """`(D,)` for a batch of one."""
    given = tools.build(batch=1, head="Conv", flatten="minus")
    end = given.graph.output[0]
    end.name = "row"
    given.graph.node.append(helper.make_node("Squeeze", ["fc1"], ["row"]))
    end.CopyFrom(helper.make_tensor_value_info("row", 1, [16]))
    faces = tools.noise(3, 3, 112, 112)
    expected = original_embedder(tidy(given).SerializeToString())(faces)
    assert expected.shape == (3, 16)
    result = tools.run(tools.standard(given), faces)
    assert tools.cosine(result, expected) > 0.999999


def test_shapes_written_down_for_slopes(tools: SimpleNamespace) -> None:
    """PyTorch's newer exporter lists the shapes of weights too; slopes are reshaped here."""
    given = tools.build(opset=18)
    for weight in given.graph.initializer:
        if weight.name.endswith("_slope"):
            weight.dims.insert(0, 1)
            given.graph.value_info.append(
                helper.make_tensor_value_info(weight.name, 1, list(weight.dims))
            )
    faces = tools.noise(3, 3, 112, 112)
    result = tools.run(tools.standard(given), faces)
    assert tools.cosine(result, tools.run(given, faces)) > 0.999999


@pytest.mark.parametrize("name", SHAPES)
def test_no_batch_norm_is_left(name: str, tools: SimpleNamespace) -> None:
    model = tools.standard(tools.build(**SHAPES[name]))
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


def test_odd_size(tools: SimpleNamespace) -> None:
    spec = make_spec("insightface", size="112x96")
    given = tools.build(size=(112, 96), batch=1, flatten="Reshape")
    model = tools.standard(given, spec)
    faces = tools.noise(3, 3, 112, 96)
    expected = np.concatenate([tools.run(given, faces[i : i + 1]) for i in range(3)])
    assert tools.cosine(tools.run(model, faces), expected) > 0.999999
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value or d.dim_param for d in shape] == ["batch", 3, 112, 96]


def same(model: ModelProto, given: ModelProto, tools: SimpleNamespace) -> bool:
    faces = tools.noise(2, 3, 112, 112)
    return bool(tools.cosine(tools.run(model, faces), tools.run(given, faces)) > 0.999999)


def slopes_as(model: ModelProto, *shape: int) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name.endswith("_slope"):
            array = numpy_helper.to_array(tensor).reshape(shape)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return copy


@pytest.mark.parametrize("shape", [(-1,), (1, -1, 1, 1)])
def test_slopes_become_c_1_1(shape: tuple[int, ...], tools: SimpleNamespace) -> None:
    given = tools.build()
    model = tools.standard(slopes_as(given, *shape))
    slopes = [t for t in model.graph.initializer if t.name.endswith("_slope")]
    assert [list(t.dims) for t in slopes] == [[8, 1, 1]] * 3
    assert same(model, given, tools)


def test_stray_inputs_and_weights_as_inputs(tools: SimpleNamespace) -> None:
    given = tools.build()
    old = ModelProto()
    old.CopyFrom(given)
    old.graph.input.append(helper.make_tensor_value_info("nobody", onnx.TensorProto.FLOAT, [1]))
    for tensor in given.graph.initializer:
        old.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    assert same(tools.standard(old), given, tools)


def test_unsorted_nodes(tools: SimpleNamespace) -> None:
    given = tools.build()
    mixed = ModelProto()
    mixed.CopyFrom(given)
    nodes = list(reversed(given.graph.node))
    del mixed.graph.node[:]
    mixed.graph.node.extend(nodes)
    assert same(tools.standard(mixed), given, tools)


def test_a_cycle_is_an_error(tools: SimpleNamespace) -> None:
    model = tools.build()
    model.graph.node[0].input[0] = "d"
    with pytest.raises(ModelError, match="cycle"):
        tools.standard(model)


def block_quantised(model: ModelProto, name: str, block: int = 8) -> ModelProto:
    """The weight as int8 blocks along its rows, as OpenCV's zoo stores them."""
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    tensor = next(t for t in graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor)
    rows = array.reshape(len(array), -1, block)
    scale = np.abs(rows).max(-1) / 127
    whole = np.round(rows / scale[..., None]).astype(np.int8).reshape(len(array), -1)
    graph.initializer.remove(tensor)
    for part, value in (("q", whole), ("s", scale), ("shape", np.int64(array.shape))):
        graph.initializer.append(numpy_helper.from_array(value, f"{name}_{part}"))
    unfold = [
        helper.make_node(
            "DequantizeLinear", [f"{name}_q", f"{name}_s"], [f"{name}_f"], axis=1, block_size=block
        ),
        helper.make_node("Reshape", [f"{name}_f", f"{name}_shape"], [name]),
    ]
    nodes = [*unfold, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return copy


def test_block_quantised_weights_are_unfolded(tools: SimpleNamespace) -> None:
    given = block_quantised(block_quantised(tools.build(opset=21), "e_w"), "d_w")
    model = tools.standard(given)
    assert same(model, given, tools)
    assert not {n.op_type for n in model.graph.node} & {"DequantizeLinear", "Reshape"}


def test_half_precision_weights_behind_a_cast(tools: SimpleNamespace) -> None:
    given = tools.build()
    tensor = next(t for t in given.graph.initializer if t.name == "e_w")
    half = numpy_helper.to_array(tensor).astype(np.float16)
    tensor.CopyFrom(numpy_helper.from_array(half, "e_w_half"))
    given.graph.node.insert(
        0, helper.make_node("Cast", ["e_w_half"], ["e_w"], to=onnx.TensorProto.FLOAT)
    )
    assert same(tools.standard(given), given, tools)


@pytest.mark.parametrize("opset", [9, 13])
def test_dropout_and_identity_vanish(opset: int, tools: SimpleNamespace) -> None:
    given = tools.build(opset=opset)
    last = given.graph.node[-1]
    last.output[0] = "before"
    given.graph.node.append(helper.make_node("Dropout", ["before"], ["dropped"]))
    given.graph.node.append(helper.make_node("Identity", ["dropped"], ["fc1"]))
    model = tools.standard(given)
    assert not {n.op_type for n in model.graph.node} & {"Dropout", "Identity"}
    assert same(model, given, tools)


def test_the_exporters_traces_are_gone(tools: SimpleNamespace) -> None:
    given = tools.build()
    for node in given.graph.node:
        node.doc_string = "/home/someone/secret.py"
    given.graph.doc_string = given.doc_string = "/home/someone"
    assert b"/home/" not in tools.standard(given).SerializeToString()


def test_names_are_unique(tools: SimpleNamespace) -> None:
    given = tools.build()
    for node in given.graph.node:
        node.name = "same"
    names = [node.name for node in tools.standard(given).graph.node]
    assert len(set(names)) == len(names)


def test_one_file_of_raw_numbers(tools: SimpleNamespace) -> None:
    given = tools.build()
    for tensor in given.graph.initializer:
        array = numpy_helper.to_array(tensor)
        flat = array.reshape(-1).tolist()
        tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, array.shape, flat))
    graph: GraphProto = tools.standard(given).graph
    assert all(t.raw_data and not t.external_data for t in graph.initializer)


def behind(model: ModelProto, *nodes: onnx.NodeProto, **weights: np.ndarray) -> ModelProto:
    """The model with nodes from "before" to "fc1" behind it."""
    model.graph.node[-1].output[0] = "before"
    model.graph.node.extend(nodes)
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


@pytest.mark.parametrize("opset", [18, 21])
def test_operators_without_a_way_back(opset: int, tools: SimpleNamespace) -> None:
    """ONNX's converter has no adapter for Split 18; what it means did not change."""
    given = behind(
        tools.build(opset=opset),
        helper.make_node("Split", ["before"], ["left", "right"], axis=1, num_outputs=2),
        helper.make_node("Concat", ["right", "left"], ["fc1"], axis=1),
    )
    model = tools.standard(given)
    assert model.opset_import[0].version == 17
    assert same(model, given, tools)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_operators_that_are_newer(approximate: str, tools: SimpleNamespace) -> None:
    gelu = helper.make_node("Gelu", ["before"], ["fc1"], approximate=approximate)
    given = behind(tools.build(opset=20), gelu)
    model = tools.standard(given)
    assert "Gelu" not in {node.op_type for node in model.graph.node}
    assert same(model, given, tools)


def test_operators_that_cannot_come_along(tools: SimpleNamespace) -> None:
    given = behind(
        tools.build(opset=20),
        helper.make_node("Unsqueeze", ["before", "row"], ["wide"]),
        helper.make_node("StringNormalizer", ["wide"], ["fc1"]),
        row=np.int64([1]),
    )
    given.graph.node[-1].op_type = "ImageDecoder"
    with pytest.raises(ModelError, match="opset 20 and cannot be brought to 17"):
        tools.standard(given)


@pytest.mark.parametrize("axes", [[2, 3], [1], [1, 3]])
def test_an_embedding_with_empty_dimensions(axes: list[int], tools: SimpleNamespace) -> None:
    given = behind(
        tools.build(),
        helper.make_node("Unsqueeze", ["before", "axes"], ["fc1"]),
        axes=np.int64(axes),
    )
    given.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("fc1", onnx.TensorProto.FLOAT, None)
    )
    model = tools.standard(given)
    faces = tools.noise(7, 3, 112, 112)
    result = tools.run(model, faces)
    assert result.shape == (7, 16)
    assert tools.cosine(result, tools.run(given, faces).reshape(7, 16)) > 0.999999
