"""`fr-edge align`, with a detector that finds what is bright."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from fr_edge.cli.main import run
from fr_edge.faces.synthetic.render import draw_face

Captured = pytest.CaptureFixture[str]


def bright(path: Path) -> Path:
    """SCRFD's layout for any size: a face of 64 pixels around each bright cell of 32."""
    nodes = [helper.make_node("ReduceMax", ["input"], ["grey"], axes=[1], keepdims=1)]
    weights = {
        "one": np.zeros((1, 2, 1, 1), np.float32),
        "half": np.float32(0.5),
        "box": np.tile(np.float32([0.5, 0.5, 1.5, 1.5]), 2).reshape(1, 8, 1, 1),
        "kps": np.tile(np.float32([0.1, 0.2, 0.9, 0.2, 0.5, 0.5, 0.2, 0.9, 0.8, 0.9]), 2).reshape(
            1, 20, 1, 1
        ),
        "dark": np.float32(0),
    }
    for stride in (8, 16, 32):
        pool = {"kernel_shape": [stride] * 2, "strides": [stride] * 2}
        nodes += [
            helper.make_node("AveragePool", ["grey"], [f"mean{stride}"], **pool),
            helper.make_node("Mul", [f"mean{stride}", "dark"], [f"zero{stride}"]),
            helper.make_node("Clip", [f"mean{stride}", "dark"], [f"clip{stride}"]),
            helper.make_node(
                "Add", [f"{'clip' if stride == 32 else 'zero'}{stride}", "one"], [f"score{stride}"]
            ),
            helper.make_node("Add", [f"zero{stride}", "box"], [f"bbox{stride}"]),
            helper.make_node("Add", [f"zero{stride}", "kps"], [f"kps{stride}"]),
        ]
    names = [f"{kind}{stride}" for kind in ("score", "bbox", "kps") for stride in (8, 16, 32)]
    graph = helper.make_graph(
        nodes,
        "bright",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
        [numpy_helper.from_array(np.array(array), name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    return path


@pytest.fixture
def album(tmp_path: Path) -> Path:
    root = tmp_path / "album" / "ann"
    root.mkdir(parents=True)
    for name, spots in (("one", [(3, 5)]), ("two", [(3, 5), (12, 15)]), ("none", [])):
        picture = np.full((640, 640, 3), 60, np.uint8)
        for row, column in spots:
            picture[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32] = 255
        Image.fromarray(picture).save(root / f"{name}.png")
    (root / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    return root.parent


def test_a_folder_of_photographs(album: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "faces"
    detector = bright(tmp_path / "bright.onnx")
    assert run(["align", str(album), "--out", str(out), "--detector", str(detector), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["written"] == 2
    assert said["none"] == ["ann/none.png"]
    assert said["several"] == ["ann/two.png"]
    assert list(said["unreadable"]) == ["ann/torn.jpg"]
    assert said["detector"] == "SCRFD, RGB 640x640, (x - 127.5) / 128, score from 0.5"
    face = np.asarray(Image.open(out / "ann" / "one.png")).astype(int)
    # The points span the bright square, so it fills the middle of the crop.
    assert face[60:90, 45:65].min() > 200
    assert face[2, 2].max() < 80


def test_a_detector_that_does_not_do(album: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    out = tmp_path / "faces"
    common = ["align", str(album), "--out", str(out), "--detector"]
    assert run([*common, str(tmp_path / "bad.onnx")]) == 4
    assert "cannot be loaded" in capsys.readouterr().err
    good = str(bright(tmp_path / "bright.onnx"))
    assert run([*common, good, "--min-score", "2"]) == 2
    assert run([*common, good, "--mean", "grey"]) == 2
    assert "--mean takes one number or three" in capsys.readouterr().err
    assert run([*common, good, "--min-score", "1", "--mean", "255"]) == 4
    assert "shows a face" in capsys.readouterr().err
    assert not out.exists()


def test_drawn_faces_are_no_detector(tmp_path: Path, capsys: Captured) -> None:
    """An image given as the detector, by mistake."""
    Image.fromarray(draw_face(1, 0)).save(tmp_path / "face.png")
    (tmp_path / "photos").mkdir()
    line = ["align", str(tmp_path / "photos"), "--out", str(tmp_path / "o"), "--detector"]
    assert run([*line, str(tmp_path / "face.png")]) == 4
    assert "cannot be loaded" in capsys.readouterr().err
