"""Decoding a detector's outputs, against numbers put into a network by hand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fr_edge.errors import ModelError, UsageError
from fr_edge.faces.detect import open_detector
from fr_edge.faces.sources import open_faces

SIDE = 128
KINDS = (("score", 1), ("bbox", 4), ("kps", 10))
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
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        open_detector(tmp_path / "nowhere.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"bad")
    with pytest.raises(ModelError, match="is not an ONNX model, or is damaged"):
        open_detector(tmp_path / "bad.onnx")
    cut = detector(tmp_path / "d.onnx", {}).read_bytes()[:-5000]
    (tmp_path / "cut.onnx").write_bytes(cut)
    with pytest.raises(ModelError, match="is not an ONNX model, or is damaged"):
        open_detector(tmp_path / "cut.onnx")


@pytest.mark.parametrize(
    "shapes",
    [
        {"y": (1, 3, 128, 128)},
        {"scores": (1, 4420, 2), "boxes": (1, 4420, 4)},
        {"regressors": (1, 896, 16), "classificators": (1, 896, 1)},
        {"embedding": (1, 512)},
        {"output0": (1, 84, 336)},
        {f"{k}_{s}": (1, (SIDE // s) ** 2, n) for k, n in KINDS for s in (8, 16, 32)},
        {f"{k}_{s}": (1, (SIDE // s) ** 2 * 2, n) for k, n in KINDS for s in (8, 16)},
        {"loc": (1, 680, 4), "conf": (1, 680, 2), "landms": (1, 680, 10)},
        {"boxes": (1, 5000, 4), "scores": (1, 5000), "landmarks": (1, 5000, 10)},
        {"boxes": (1, 100, 4), "landmarks": (1, 100, 10)},
    ],
    ids=lambda shapes: "+".join(shapes),
)
def test_layouts_that_nobody_told_us_of(
    shapes: dict[str, tuple[int, ...]], constant: Callable[..., Path]
) -> None:
    """What it says is listed, and what is known; nothing is guessed."""
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    with pytest.raises(
        ModelError, match="no known layout of a detector with five landmarks"
    ) as caught:
        open_detector(constant(arrays, (SIDE, SIDE)))
    for name, shape in shapes.items():
        assert f"{name} {shape}" in caught.value.message
    for layout in ("YuNet", "SCRFD", "RetinaFace", "YOLO-face", "CenterFace"):
        assert layout in caught.value.hint


def test_what_is_said_goes_before_the_layout(tmp_path: Path) -> None:
    file = detector(tmp_path / "d.onnx", {})
    opened = open_detector(file, 0.25, mean="1,2,3", std="4", channels="rgb")
    assert (opened.spec.mean, opened.spec.std, opened.spec.channels) == (
        (1, 2, 3),
        (4, 4, 4),
        "RGB",
    )
    assert opened.min_score == 0.25
    assert opened.describe() == "YuNet, RGB 128x128, (x - [1, 2, 3]) / 4, score from 0.25"
    with pytest.raises(UsageError, match="--mean takes"):
        open_detector(file, mean="grey")


def plainly_decoded(file: Path, image: np.ndarray) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """YuNet as its authors define it, one cell after the other; the most certain face alface."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    blob = image[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32)
    out = dict(zip(names, session.run(names, {session.get_inputs()[0].name: blob}), strict=True))
    faces = []
    for stride in (8, 16, 32):
        for cell in range((640 // stride) ** 2):
            score = np.sqrt(out[f"cls_{stride}"][0, cell, 0] * out[f"obj_{stride}"][0, cell, 0])
            if score < 0.7:
                continue
            at = np.array([cell % (640 // stride), cell // (640 // stride)])
            x, y, w, h = out[f"bbox_{stride}"][0, cell]
            size = np.exp([w, h]) * stride
            box = np.concatenate([(at + [x, y]) * stride - size / 2, size])
            points = (out[f"kps_{stride}"][0, cell].reshape(5, 2) + at) * stride
            faces.append((float(score), box, points))
    return sorted(faces, key=lambda found: -found[0])[:1]


@pytest.mark.real
def test_the_real_one(real_data: Path) -> None:
    file = real_data / "yunet_fp32.onnx"
    detect = open_detector(file)
    faces = open_faces(real_data / "faces_dev.tar")
    for index in range(0, len(faces), len(faces) // 5):
        image = np.full((640, 640, 3), 120, np.uint8)
        image[200:424, 150:374] = faces.read(index).repeat(2, axis=0).repeat(2, axis=1)
        detected = detect(image)
        assert len(detected) == 1
        for face, (score, box, points) in zip(detected, plainly_decoded(file, image), strict=True):
            assert face.score == pytest.approx(score, abs=1e-5)
            np.testing.assert_allclose(face.box, box, atol=0.01)
            np.testing.assert_allclose(face.points, points, atol=0.01)
