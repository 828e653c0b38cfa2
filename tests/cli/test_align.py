"""`fr-edge align`, with a detector that finds what is bright."""

import json
import signal
from pathlib import Path

import numpy as np
import onnx
import pytest
from bright_detector import write_bright_detector
from onnx import helper, numpy_helper
from PIL import Image

from fr_edge.cli.main import run
from fr_edge.faces import align as align_stage
from fr_edge.faces import detect
from fr_edge.faces.detect import open_detector
from fr_edge.faces.synthetic.render import draw_face
from fr_edge.interruption import Interrupted

Captured = pytest.CaptureFixture[str]


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
    detector = write_bright_detector(tmp_path / "bright.onnx")
    assert run(["align", str(album), "--out", str(out), "--detector", str(detector), "--json"]) == 0
    message = json.loads(capsys.readouterr().out)
    assert message["written"] == ["ann/one.png"]
    assert message["none"] == ["ann/none.png"]
    assert message["several"] == ["ann/two.png"]
    assert list(message["unreadable"]) == ["ann/torn.jpg"]
    assert message["detector"] == (
        "SCRFD, RGB 640x640, (x - 127.5) / 128, score from 0.5, small photographs at their size"
    )
    face = np.asarray(Image.open(out / "ann" / "one.png")).astype(int)
    larger = ["--out", str(tmp_path / "larger"), "--size", "160", "-q"]
    assert run(["align", str(album), "--detector", str(detector), *larger]) == 0
    with Image.open(tmp_path / "larger" / "ann" / "one.png") as crop:
        assert crop.size == (160, 160)
    # The points span the bright square, so it fills the middle of the crop.
    assert face[60:90, 45:65].min() > 200
    assert face[2, 2].max() < 80


def test_it_goes_on_where_it_was_interrupted(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    out, detector = tmp_path / "faces", write_bright_detector(tmp_path / "bright.onnx")
    line = ["align", str(album), "--out", str(out), "--detector", str(detector), "--json", "-q"]
    line += ["--faces", "largest"]
    read, seen = align_stage.read_image, []

    def interrupted(source: Path, key: str) -> bytes:
        if key == "ann/two.png" and key not in seen:
            seen.append(key)
            raise Interrupted(signal.SIGTERM)
        seen.append(key)
        return read(source, key)

    monkeypatch.setattr(align_stage, "read_image", interrupted)
    assert run(line) == 143
    assert f"3 photographs are done in {out}" in capsys.readouterr().err
    with (out / ".align.jsonl").open("ab") as log:
        log.write(b'{"key": "torn')
    assert [mode & 0o777 for mode in modes(out)] == [0o600] * 2
    crop = (out / "ann" / "one.png").stat().st_mtime_ns
    (album / "ann" / "none.png").touch()  # changed since: looked at again
    del seen[:-1]
    assert run(line) == 0
    assert seen == ["ann/two.png", "ann/none.png", "ann/two.png"]
    report = json.loads(capsys.readouterr().out)
    assert report["written"] == ["ann/one.png", "ann/two.png"]
    assert report["none"] == ["ann/none.png"]
    assert list(report["unreadable"]) == ["ann/torn.jpg"]
    assert (out / "ann" / "one.png").stat().st_mtime_ns == crop
    assert not (out / ".align.jsonl").exists()
    assert run([*line, "--min-score", "0.6"]) == 0
    assert (out / "ann" / "one.png").stat().st_mtime_ns != crop


def modes(folder: Path) -> list[int]:
    return [file.stat().st_mode for file in folder.rglob("*") if file.is_file()]


def test_a_detector_that_does_not_do(album: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    out = tmp_path / "faces"
    common = ["align", str(album), "--out", str(out), "--detector"]
    assert run([*common, str(tmp_path / "bad.onnx")]) == 4
    assert "is not an ONNX model" in capsys.readouterr().err
    good = str(write_bright_detector(tmp_path / "bright.onnx"))
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
    assert "is a PNG image; expected an ONNX model" in capsys.readouterr().err


def test_worker_processes_write_the_same(album: Path, tmp_path: Path, capsys: Captured) -> None:
    detector = write_bright_detector(tmp_path / "bright.onnx")
    line = [
        "align",
        str(album),
        "--detector",
        str(detector),
        "--faces",
        "all",
        "--json",
        "-q",
        "--out",
    ]
    assert run([*line, str(tmp_path / "one")]) == 0
    assert run([*line, str(tmp_path / "two"), "--workers", "2"]) == 0
    texts = capsys.readouterr().out.replace("}\n{", "}\0{").split("\0")
    first, second = map(json.loads, texts)
    assert first == second
    crops = [crop for crops in first["crops"].values() for crop in crops]
    assert crops == ["ann/one.png.1.png", "ann/two.png.1.png", "ann/two.png.2.png"]
    for crop in crops:
        assert (tmp_path / "one" / crop).read_bytes() == (tmp_path / "two" / crop).read_bytes()
    assert list(second["unreadable"]) == ["ann/torn.jpg"]
    assert modes(tmp_path / "two") == [0o100600] * 3


def test_the_canvas_follows_the_photograph(tmp_path: Path) -> None:
    """A small photograph is not enlarged; a face is where it was, whatever the canvas."""
    free = open_detector(write_bright_detector(tmp_path / "free.onnx"))
    model = onnx.load(str(tmp_path / "free.onnx"))
    for axis, size in ((2, 640), (3, 640)):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    onnx.save(model, str(tmp_path / "fixed.onnx"))
    fixed = open_detector(tmp_path / "fixed.onnx")
    assert fixed.network.size == free.network.size == (640, 640)
    canvases: list[tuple[int, ...]] = []
    with pytest.MonkeyPatch.context() as patch:
        run_detector = detect.run_detector

        def recorded(network: object, canvas: np.ndarray, spec: object) -> object:
            canvases.append(canvas.shape[:2])
            return run_detector(network, canvas, spec)  # type: ignore[arg-type]

        patch.setattr(detect, "run_detector", recorded)
        for width, height, canvas in (
            (640, 640, (640, 640)),
            (256, 224, (224, 256)),
            (250, 250, (256, 256)),
            (1280, 640, (320, 640)),
            (96, 64, (128, 192)),
            (3000, 10, (32, 640)),
        ):
            photo = np.full((height, width, 3), 60, np.uint8)
            scale = {640: 1, 256: 1, 250: 1, 1280: 0.5, 96: 2, 3000: 640 / 3000}[width]
            left, top = round(width / 2), round(height / 2)
            photo[top:, left:] = 255
            for one in (free, fixed):
                assert one.network.free
                canvases.clear()
                faces = one(photo)
                assert canvases == [canvas]
                assert faces or height == 10
                for face in faces:  # 64 pixels of the canvas around a bright cell
                    assert face.box[2] == pytest.approx(64 / scale, rel=0.01)
                    assert (face.box[:2] + face.box[2:] > (left, top)).all()


def test_a_network_with_sizes_inside_keeps_its_canvas(tmp_path: Path) -> None:
    """Reshaped to the cells of 640x640: another canvas does not run."""
    model = onnx.load(str(write_bright_detector(tmp_path / "free.onnx")))
    shape = numpy_helper.from_array(np.array([1, 2, 20, 20]), "shape")
    model.graph.initializer.append(shape)
    (last,) = [node for node in model.graph.node if node.output[0] == "score32"]
    last.output[0] = "before"
    model.graph.node.append(helper.make_node("Reshape", ["before", "shape"], ["score32"]))
    onnx.save(model, str(tmp_path / "inside.onnx"))
    one = open_detector(tmp_path / "inside.onnx")
    assert not one.network.free
    photo = np.full((128, 128, 3), 60, np.uint8)
    photo[32:64, 32:64] = 255
    assert one(photo)[0].box[2] == pytest.approx(64 / 5)
    assert "at their size" not in one.describe()
