"""The commands do their job on a real network, one after the other, and programs can read them."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fr_edge.bundle.bundle import open_bundle
from fr_edge.cli.main import run
from fr_edge.faces.sources import open_faces
from fr_edge.runtime.session import embed_faces, open_session

Captured = pytest.CaptureFixture[str]
PEOPLE = "synthetic:24x4@9"


def asked(capsys: Captured, *args: str, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert run([*args, "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    assert isinstance(document, dict)
    return document


def test_export_makes_the_normal_form(exported: Path, capsys: Captured) -> None:
    model = onnx.load(exported / "model.onnx")
    assert [value.name for value in model.graph.input] == ["face"]
    assert [value.name for value in model.graph.output] == ["embedding"]
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    result = asked(capsys, "inspect", str(exported))
    assert result["embedding_dim"] == 32
    assert result["problems"] == []
    assert {"model.onnx", "golden.npz"} <= set(result["files"])


def test_calibrate_within_a_budget_shows_what_it_tried(bundle: Path, capsys: Captured) -> None:
    start = ("calibrate", str(bundle), "--faces", "synthetic:16x2@5", "-q")
    report = json.loads((bundle / "reports/calibration.json").read_text())
    worst = report["judged"]["cosine"]["min"]
    result = asked(capsys, *start, "--min-cosine", str((3 * worst + 1) / 4))
    assert len(result["trials"]) > 1
    if not asked(capsys, "doctor")["backends"]["tensorrt"]["ready"]:
        assert result["time_source"].endswith("counted")
    assert result["trials"][-1]["loss"] == result["judged"]
    assert result["kept_float"]["accuracy budget"] == len(result["trials"][-1]["float_layers"])
    assert run([*start, "--min-cosine", str((3 * worst + 1) / 4)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"MACs in INT8 +left out +time .*TAR drop at 0.0001", text)
    assert text.count(" taken") == 1
    assert run([*start, "--min-cosine", "1"]) == 1
    assert "no assignment holds cosine >= 1" in capsys.readouterr().err


def test_a_budget_says_where_its_times_come_from(bundle: Path, capsys: Captured) -> None:
    start = ("calibrate", str(bundle), "--faces", "synthetic:16x2@5", "-q")
    worst = json.loads((bundle / "reports/calibration.json").read_text())["judged"]["cosine"]["min"]
    budget = ("--min-cosine", str((3 * worst + 1) / 4))
    assert run([*start, *budget, "--backend", "onnxruntime"]) == 0
    text = capsys.readouterr().out
    times = json.loads((bundle / "reports/calibration.json").read_text())["time_source"]
    assert times.startswith("engines of onnxruntime on ")
    assert f"assignments tried (time: {times}; all in float is 1)" in text


def test_timing_engines_without_a_budget_or_a_backend(bundle: Path, capsys: Captured) -> None:
    start = ("calibrate", str(bundle), "--faces", "synthetic:16x2@5")
    before = (bundle / "bundle.json").read_bytes()
    result = asked(capsys, *start, "--backend", "onnxruntime", code=2)
    assert "--max-tar-drop" in result["error"]
    start = (*start, "--min-cosine", "0", "--backend")
    assert "no backend 'tpu'" in asked(capsys, *start, "tpu", code=2)["error"]
    if not asked(capsys, "doctor")["backends"]["tensorrt"]["ready"]:
        assert "tensorrt" in asked(capsys, *start, "tensorrt", code=3)["error"]
    assert (bundle / "bundle.json").read_bytes() == before


def test_people_who_cannot_judge_a_budget(bundle: Path, capsys: Captured) -> None:
    before = (bundle / "bundle.json").read_bytes()
    start = ("calibrate", str(bundle), "--faces", "synthetic:16x2@5")
    result = asked(capsys, *start, "--max-tar-drop", "0.1", "--far", "0.1", code=4)
    assert (
        "cannot judge TAR drop <= 0.1 at FAR 0.1: 6 held-out faces of 3 people" in result["error"]
    )
    assert "hold out 40 faces or more" in result["hint"]
    assert (bundle / "bundle.json").read_bytes() == before


def test_calibrate_makes_true_int8(calibrated: Path) -> None:
    """Explicit, symmetric Q/DQ as TensorRT takes it: both operands, zero points 0, no bias."""
    model = onnx.load(calibrated / "model.int8.onnx")
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    int8 = [
        node
        for node in layers
        if all(makers.get(i) and makers[i].op_type == "DequantizeLinear" for i in node.input[:2])
    ]
    assert 2 <= len(int8) < len(layers)
    assert all(name in constants for node in int8 for name in node.input[2:])
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert constants[node.input[1]].dtype == np.float32
            assert constants[node.input[2]].dtype == np.int8
            assert not constants[node.input[2]].any()
    for node in int8:
        scales = constants[makers[node.input[1]].input[1]]
        assert scales.shape == (constants_rows(constants, makers, node.input[1]),)


def constants_rows(constants: Any, makers: Any, name: str) -> int:
    """Output channels of a weight behind Q and DQ."""
    while name not in constants:
        name = makers[name].input[0]
    return int(constants[name].shape[0])


def test_int8_differs_from_fp32_but_not_by_much(bundle: Path, capsys: Captured) -> None:
    for precision in ("fp32", "int8"):
        result = asked(capsys, "build-engine", str(bundle), f"--{precision}")
        assert result["precision"] == precision
        assert result["backend"] == "onnxruntime"
        assert bool(result["layers"]["int8"]) == (precision == "int8")
    opened, faces = open_bundle(bundle), open_faces(PEOPLE)
    fp32, int8 = (embed_faces(open_session(opened, name), faces) for name in ("fp32", "int8"))
    unit = [e / np.linalg.norm(e, axis=1, keepdims=True) for e in (fp32, int8)]
    cosine = (unit[0] * unit[1]).sum(axis=1)
    assert 0.9 < cosine.min() < 0.99999


def test_embed_verify_evaluate_benchmark_report(
    bundle: Path, distinct: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "e.npz"
    result = asked(capsys, "embed", str(bundle), "--faces", PEOPLE, "--out", str(out))
    assert (result["faces"], result["dim"], result["identities"]) == (96, 32, 24)
    with np.load(out) as data:
        assert data["embeddings"].shape == (96, 32)
        assert data["embeddings"].dtype == np.float32
        assert len(set(data["keys"].tolist())) == 96
        assert data["labels"].tolist() == [i // 4 for i in range(96)]

    result = asked(capsys, "verify", str(bundle), "--engine", "int8", "--faces", str(distinct))
    assert result["passed"] is True
    assert result["verdict"] == "PASSED"
    assert result["cosine"]["min"] <= result["cosine"]["p1"] <= result["cosine"]["mean"] < 1
    assert set(result["tar"]["1e-2"]) >= {"reference", "engine", "delta"}
    assert all(gate["passed"] for gate in result["gates"])

    result = asked(capsys, "evaluate", str(bundle), "--protocol", PEOPLE, "--engine", "int8")
    assert 0.4 <= result["accuracy"] <= 1
    assert result["pairs"] == {"genuine": 24 * 6, "impostor": 96 * 95 // 2 - 24 * 6}
    assert result["tar_at_far"]["1e-6"] is None  # 4,416 impostor pairs do not resolve it
    assert set(result["tar_at_far"]) == set(result["threshold_at_far"])

    result = asked(
        capsys, "benchmark", str(bundle), "--engine", "int8", "--batch", "1,3",
        "--duration", "0.5", "--allow-invalid",
    )  # fmt: skip
    assert [run["batch"] for run in result["runs"]] == [1, 3]
    for timed in result["runs"]:
        latency = timed["latency_ms"]
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p95"] <= latency["p99"]
        assert timed["verdict"] in ("VALID", "INVALID")
        assert bool(timed["reasons"]) == (timed["verdict"] == "INVALID")

    result = asked(capsys, "report", str(bundle))
    page = Path(result["report"]).read_text()
    assert page.lower().startswith("<!doctype html>")
    assert not re.search(r"(src|href)=.?https?:|url\(.?https?:|@import", page)  # opens offline


def test_a_gate_that_fails_exits_1(bundle: Path, capsys: Captured) -> None:
    result = asked(capsys, "verify", str(bundle), "--min-cosine", "0.999999", code=1)
    assert result["passed"] is False
    assert [gate["passed"] for gate in result["gates"] if gate["name"] == "min cosine"] == [False]


def test_int8_is_never_calibrated_on_nothing(exported: Path, capsys: Captured) -> None:
    before = (exported / "bundle.json").read_bytes()
    assert "--faces" in asked(capsys, "build-engine", str(exported), "--int8", code=2)["hint"]
    assert (exported / "bundle.json").read_bytes() == before


@pytest.mark.parametrize("command", ["build-engine", "embed"])
def test_a_backend_this_machine_lacks_exits_3(
    bundle: Path, tmp_path: Path, command: str, capsys: Captured
) -> None:
    if not asked(capsys, "doctor")["backends"]["tensorrt"]["ready"]:
        rest = (
            ["--int8"]
            if command == "build-engine"
            else ["--faces", PEOPLE, "--out", str(tmp_path / "e.npz")]
        )
        result = asked(capsys, command, str(bundle), *rest, "--backend", "tensorrt", code=3)
        assert "tensorrt" in result["error"]


def test_doctor_says_what_there_is(capsys: Captured) -> None:
    result = asked(capsys, "doctor")
    assert result["backends"]["onnxruntime"]["ready"] is True
    assert {"backends", "gpu", "jetson", "problems"} <= set(result)


def test_an_engine_of_frames_is_built_judged_and_timed(
    mini: Path, capsys: Captured, tmp_path: Path
) -> None:
    root = str(mini)
    assert run(["build-engine", root, "--fp32", "--input", "frame"]) == 0
    assert f"next: fr-edge verify {root} --engine fp32-frame" in capsys.readouterr().out
    result = asked(capsys, "verify", root, "--engine", "fp32-frame")
    assert result["artifact"]["file"] == "engines/onnxruntime-fp32-frame.onnx"
    assert result["golden"]["alignment_min_cosine"] > 0.999
    out = tmp_path / "frame.npz"
    asked(
        capsys,
        "embed",
        root,
        "--faces",
        "synthetic:3x2@1",
        "--out",
        str(out),
        "--engine",
        "fp32-frame",
    )
    with np.load(out) as data:
        norms = np.linalg.norm(data["embeddings"], axis=1)
    assert norms == pytest.approx(np.ones(6), abs=1e-5)
    timed = ("benchmark", root, "--engine", "fp32-frame", "--batch", "2", "--duration", "0.2")
    asked(capsys, *timed, "--allow-invalid")
    for options, message in (
        (["--fp32", "--input", "film"], "'film' is not one of"),
        (["--fp32", "--frame-size", "9x9"], "--frame-size takes three sizes"),
        (["--precision", "auto", "--input", "frame"], "auto compares engines of --input tensor"),
    ):
        assert run(["build-engine", root, *options]) == 2
        assert message in capsys.readouterr().err
