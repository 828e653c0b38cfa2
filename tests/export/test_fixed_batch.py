"""A network whose batch cannot be freed goes the whole way, one face at a time."""

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pretend import PretendBoard

from fr_edge.bundle.golden import read_golden
from fr_edge.calibration.calibrate import calibrate
from fr_edge.cli.main import run
from fr_edge.errors import ModelError, UsageError
from fr_edge.export.export import export_onnx
from fr_edge.faces.contract import PRESETS, preprocess
from fr_edge.faces.sources import open_faces
from fr_edge.graph.load import fixed_batch
from fr_edge.inference import make_session
from fr_edge.runtime.benchmark.benchmark import benchmark
from fr_edge.runtime.build import build_engine
from fr_edge.runtime.evaluation.verify import verify
from fr_edge.runtime.session import open_session

HIDDEN, DIM = 24, 32


def write_recurrent(path: Path, batch: int = 1) -> Path:
    """A GRU over the places of a face, from an initial state of one face."""
    random = np.random.default_rng(0)
    arrays = {
        "cw": random.normal(0, 0.2, (16, 3, 7, 7)),
        "dw": random.normal(0, 0.2, (16, 16, 3, 3)),
        "gw": random.normal(0, 0.3, (1, 3 * HIDDEN, 16)),
        "gr": random.normal(0, 0.3, (1, 3 * HIDDEN, HIDDEN)),
        "gb": np.zeros((1, 6 * HIDDEN)),
        "h0": random.normal(0, 0.3, (1, batch, HIDDEN)),
        "fw": random.normal(0, 0.3, (HIDDEN, DIM)),
    }
    weights = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    shapes = {"places": [batch, 16, 196], "flat": [batch, HIDDEN]}
    weights += [numpy_helper.from_array(np.array(s, np.int64), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["data", "cw"], ["a"], strides=[8, 8]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "dw"], ["c"], pads=[1] * 4),
        helper.make_node("Reshape", ["c", "places"], ["d"]),
        helper.make_node("Transpose", ["d"], ["e"], perm=[2, 0, 1]),
        helper.make_node("GRU", ["e", "gw", "gr", "gb", "", "h0"], ["", "g"], hidden_size=HIDDEN),
        helper.make_node("Reshape", ["g", "flat"], ["i"]),
        helper.make_node("Gemm", ["i", "fw"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "recurrent",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, (batch, 3, 112, 112))],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, (batch, DIM))],
        weights,
    )
    opsets = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_one_face_at_a_time_from_export_to_verify(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network, spec = write_recurrent(tmp_path / "net.onnx"), PRESETS["insightface"]
    with caplog.at_level(logging.WARNING):
        result = export_onnx(network, tmp_path / "net.bundle", spec=spec)
    assert result.summary.batch == 1
    assert "takes one face at a time" in caplog.text
    bundle = calibrate(result.bundle, open_faces("synthetic:8x2@1")).bundle
    faces = read_golden(bundle).faces[:5]
    given = make_session(network.read_bytes())
    inputs = preprocess(faces, spec)
    rows = [given.run(None, {"data": inputs[i : i + 1]})[0] for i in range(5)]
    expected = np.concatenate(rows)
    for precision, least in (("fp32", 0.999999), ("int8", 0.99)):
        for kind in ("tensor", "frame"):
            built = build_engine(bundle, precision, "onnxruntime", input_kind=kind)  # type: ignore[arg-type]
            with open_session(bundle.root, f"{precision}-{kind}", "onnxruntime") as session:
                assert session.file == built.engine
                assert session.largest_batch == 1
                embeddings = session.embed(faces)
                dots = (embeddings * expected).sum(1)
                norms = np.linalg.norm(embeddings, axis=1) * np.linalg.norm(expected, axis=1)
                assert (dots / norms).min() > least
                assert session.embed(faces[:0]).shape == (0, DIM)
                assert session.layer_times(faces, 1)
    assert fixed_batch(onnx.load(bundle.root / "model.int8.onnx")) == 1
    assert verify(bundle.root, "int8", backend="onnxruntime").passed
    with pytest.raises(UsageError, match="more than the network takes: one face") as raised:
        benchmark(bundle.root, "int8", "onnxruntime", batches=(1, 4))
    assert "build" not in raised.value.hint


def test_tensorrts_double_takes_one_face(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A batch that was asked for is refused; of an engine of one face no larger one is advised."""
    PretendBoard("jetpack6.2", monkeypatch)
    network, root = write_recurrent(tmp_path / "net.onnx"), str(tmp_path / "n.bundle")
    export_onnx(network, root, spec=PRESETS["insightface"])
    build = ["build-engine", root, "--fp32", "--backend", "tensorrt"]
    assert run([*build, "--batch", "4,4,4"]) == 2
    assert "takes 1 face at a time" in capsys.readouterr().err
    assert run(build) == 0
    timed = ["benchmark", root, "--engine", "fp32", "--backend", "tensorrt", "--batch", "4"]
    assert run(timed) == 2
    message = capsys.readouterr().err
    assert "more than the network takes: one face at a time" in message
    assert "build the engine again" not in message


def test_an_engine_of_one_face_can_be_built_for_more(
    mini: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    PretendBoard("jetpack6.2", monkeypatch)
    line = [str(mini), "--backend", "tensorrt"]
    assert run(["build-engine", *line, "--fp32", "--batch", "1,1,1"]) == 0
    assert run(["benchmark", *line, "--engine", "fp32", "--batch", "4"]) == 2
    assert "build the engine again with a larger one" in capsys.readouterr().err


def test_nvidias_compiler_takes_one_face(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the compile check needs tensorrt-rtx")
    network = write_recurrent(tmp_path / "net.onnx")
    bundle = export_onnx(network, tmp_path / "n.bundle", spec=PRESETS["insightface"]).bundle
    built = build_engine(bundle, "fp32", "tensorrt-rtx")
    assert built.layers["fp32"] > 0


def test_a_network_of_three_faces_that_cannot_be_freed_is_refused(tmp_path: Path) -> None:
    network = write_recurrent(tmp_path / "net.onnx", batch=3)
    with pytest.raises(ModelError):
        export_onnx(network, tmp_path / "n.bundle", spec=PRESETS["insightface"])
    assert not (tmp_path / "n.bundle").exists()
