"""Decoding a detector's outputs, against numbers put into a network by hand."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fr_edge.errors import ModelError
from fr_edge.faces.detect import open_detector

SIDE = 128
Cells = dict[tuple[int, int, int], tuple[float, list[float], list[float]]]


def detector(path: Path, cells: Cells) -> Path:
    """A network that sees the same faces in any image: `(stride, row, column)` -> score, box, points."""
    arrays: dict[str, np.ndarray] = {}
    for stride in (8, 16, 32):
        count = (SIDE // stride) ** 2
        for kind, width in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
            arrays[f"{kind}_{stride}"] = np.zeros((1, count, width), np.float32)
    for (stride, row, column), (score, box, points) in cells.items():
        cell = row * (SIDE // stride) + column
        arrays[f"cls_{stride}"][0, cell] = score
        arrays[f"obj_{stride}"][0, cell] = score
        arrays[f"bbox_{stride}"][0, cell] = box
        arrays[f"kps_{stride}"][0, cell] = points
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"{name}_value"], [name]) for name in arrays],
        "detector",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in arrays.items()],
        [numpy_helper.from_array(a, f"{n}_value") for n, a in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))
    return path


POINTS = [float(v) for v in np.linspace(-1, 1, 10)]
BOX = [0.5, 0.25, float(np.log(2)), float(np.log(3))]


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("size", [(128, 128), (64, 128), (256, 512), (300, 200)])
def test_places_are_those_of_the_photograph(
    stride: int, size: tuple[int, int], tmp_path: Path
) -> None:
    row, column = 2, 3
    detect = open_detector(
        detector(tmp_path / "d.onnx", {(stride, row, column): (0.9, BOX, POINTS)})
    )
    (found,) = detect(np.zeros((*size, 3), np.uint8))
    grown = max(size[0], size[1]) / SIDE
    width, height = 2 * stride, 3 * stride
    x, y = (column + 0.5) * stride - width / 2, (row + 0.25) * stride - height / 2
    np.testing.assert_allclose(found.box, np.array([x, y, width, height]) * grown, rtol=1e-5)
    expected = (np.array(POINTS).reshape(5, 2) + [column, row]) * stride * grown
    np.testing.assert_allclose(found.points, expected, rtol=1e-5)
    assert found.score == pytest.approx(0.9, rel=1e-5)


def test_the_more_certain_of_two_that_overlap(tmp_path: Path) -> None:
    cells: Cells = {
        (8, 4, 4): (0.8, [0, 0, 1, 1], POINTS),
        (8, 4, 5): (0.95, [-0.9, 0, 1, 1], POINTS),
        (8, 12, 12): (0.75, [0, 0, 1, 1], POINTS),
        (16, 0, 0): (0.3, [0, 0, 1, 1], POINTS),
    }
    detect = open_detector(detector(tmp_path / "d.onnx", cells))
    scores = [round(face.score, 3) for face in detect(np.zeros((SIDE, SIDE, 3), np.uint8))]
    assert scores == [0.95, 0.75]


def test_nobody(tmp_path: Path) -> None:
    assert open_detector(detector(tmp_path / "d.onnx", {}))(np.zeros((9, 5, 3), np.uint8)) == []


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        open_detector(tmp_path / "nowhere.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"bad")
    with pytest.raises(ModelError, match="cannot be loaded"):
        open_detector(tmp_path / "bad.onnx")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 8, 8])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(tmp_path / "other.onnx"))
    with pytest.raises(ModelError, match="no YuNet detector: it gives y"):
        open_detector(tmp_path / "other.onnx")
