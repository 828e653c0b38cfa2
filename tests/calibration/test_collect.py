"""However many faces go at a time, and however long small tensors wait, the counts are the same."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from fr_edge.calibration import constants as module
from fr_edge.calibration.collect import collect_histograms
from fr_edge.calibration.histogram import Histogram
from fr_edge.errors import FacesError
from fr_edge.faces.contract import PRESETS
from fr_edge.faces.sources import Faces
from fr_edge.graph.layers import choose_int8_layers

SPEC = PRESETS["insightface"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_BATCH_VALUES", 1),
        ("MIN_CHANNEL_VALUES", 1),
        ("MIN_CHANNEL_VALUES", 1 << 30),
        ("MAX_WAITING_VALUES", 1),
    ],
)
def test_the_same_counts(
    name: str,
    value: int,
    model: onnx.ModelProto,
    faces: Faces,
    histograms: dict[str, Histogram],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, name, value)
    images = map(faces.read, range(len(faces)))
    counted = collect_histograms(model, choose_int8_layers(model).tensors, SPEC, images)
    assert counted.keys() == histograms.keys()
    for tensor, expected in histograms.items():
        # onnxruntime may add in another order for another batch: a value on an edge may move.
        moved = np.abs(counted[tensor].counts.astype(np.int64) - expected.counts).sum()
        assert moved <= 1e-3 * expected.counts.sum()
        assert (counted[tensor].counts.sum(axis=1) == expected.counts.sum(axis=1)).all()
        np.testing.assert_allclose(counted[tensor].high, expected.high, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(counted[tensor].mean, expected.mean, rtol=1e-4, atol=1e-4)


def test_no_faces(model: onnx.ModelProto) -> None:
    with pytest.raises(FacesError, match="found none"):
        collect_histograms(model, choose_int8_layers(model).tensors, SPEC, [])


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_channels_are_those_that_the_layer_reads(rank: int, faces: Faces) -> None:
    """A MatMul multiplies the last axis, of `(N, H, W, C)` too; a flattened one is counted before."""
    helper, height = onnx.helper, 16
    kernel = np.random.default_rng(1).normal(size=(6, 3, 7, 7)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["face", "k"], ["image"], "conv", strides=[7, 7]),
        helper.make_node("Transpose", ["image"], ["last"], "t", perm=[0, 2, 3, 1]),
    ]
    read, size = "last", 6
    if rank == 3:
        nodes.append(helper.make_node("Reshape", ["last", "shape"], ["read"], "r"))
        read = "read"
    if rank == 2:
        nodes.append(helper.make_node("Flatten", ["image"], ["read"], "f"))
        read, size = "read", 6 * height * height
    nodes.append(helper.make_node("MatMul", [read, "w"], ["out"], "matmul"))
    weights = {
        "k": kernel,
        "w": np.ones((size, 4), np.float32),
        "shape": np.array([0, -1, 6], np.int64),
    }
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("face", 1, ["N", 3, 112, 112])],
        [value("out", 1, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    counted = collect_histograms(model, [read, "image"], SPEC, map(faces.read, range(4)))
    np.testing.assert_array_equal(counted[read].high, counted["image"].high)
    np.testing.assert_array_equal(counted[read].counts, counted["image"].counts)


def test_a_network_whose_one_layer_reads_the_face(faces: Faces) -> None:
    """No tensor but the input is counted: onnxruntime has nothing to compute."""
    rng = np.random.default_rng(1)
    weights = rng.normal(0, 0.1, (16, 3, 16, 16)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["face", "w"], ["maps"], "conv", strides=[16, 16])],
        "one layer",
        [helper.make_tensor_value_info("face", onnx.TensorProto.FLOAT, ("n", 3, 112, 112))],
        [helper.make_tensor_value_info("maps", onnx.TensorProto.FLOAT, ("n", 16, 7, 7))],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    tensors = choose_int8_layers(model).tensors
    counted = collect_histograms(model, tensors, SPEC, map(faces.read, range(8)))
    assert tuple(counted) == tensors == ("face",)
    assert counted["face"].counts.sum() == 8 * 3 * 112 * 112
