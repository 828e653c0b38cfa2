"""FP8: the Q/DQ graph of opset 19, its numbers, and the way of a bundle through every command.

onnxruntime emulates FP8; NVIDIA's compiler takes the graph without a GPU. Nothing has run on one.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.shell_completion import ShellComplete
from fitted import fit, run
from onnx import numpy_helper
from PIL import Image

from fr_edge.bundle.bundle import open_bundle
from fr_edge.bundle.manifest import Bundle
from fr_edge.calibration.calibrate import calibrate
from fr_edge.calibration.collect import collect_histograms
from fr_edge.calibration.constants import FP8_HEADROOM
from fr_edge.calibration.covariance import CovarianceCollector
from fr_edge.calibration.fitting import fit_table
from fr_edge.calibration.gptq import gptq_round, round_weights
from fr_edge.calibration.histogram import Histogram
from fr_edge.calibration.qdq import quantize_onnx
from fr_edge.calibration.table import CalibrationTable, read_table, table_to_json
from fr_edge.cli.main import root
from fr_edge.cli.main import run as run_command
from fr_edge.errors import MachineError, UsageError
from fr_edge.faces.contract import PRESETS
from fr_edge.faces.sources import Faces
from fr_edge.graph.cpu_int8 import cpu_model
from fr_edge.graph.eight_bit import FP8
from fr_edge.graph.int8_fp16 import int8_fp16_model
from fr_edge.graph.layers import choose_int8_layers, layer_precisions
from fr_edge.runtime.benchmark.benchmark import benchmark
from fr_edge.runtime.build import build_engine
from fr_edge.runtime.evaluation.select_precision import _precisions
from fr_edge.runtime.session import open_session


@pytest.fixture(scope="module")
def table(model: onnx.ModelProto, histograms: dict[str, Histogram]) -> CalibrationTable:
    choice = choose_int8_layers(model)
    return fit_table(
        model, choice, histograms, faces=1, identities=1, model_sha256="", precision="fp8"
    )


@pytest.fixture(scope="module")
def quantized(model: onnx.ModelProto, table: CalibrationTable) -> onnx.ModelProto:
    return quantize_onnx(model, table)


def test_the_graph_is_of_opset_19_with_fp8_zero_points(
    model: onnx.ModelProto, quantized: onnx.ModelProto, table: CalibrationTable
) -> None:
    onnx.checker.check_model(quantized, full_check=True)
    assert quantized.opset_import[0].version == 19
    assert quantize_onnx(model, replace(table, precision="int8")).opset_import[0].version < 19
    types = {t.name: t.data_type for t in quantized.graph.initializer}
    values = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer}
    pairs = [n for n in quantized.graph.node if n.op_type.endswith("tizeLinear")]
    assert {types[n.input[2]] for n in pairs} == {onnx.TensorProto.FLOAT8E4M3FN}
    assert {types[n.input[1]] for n in pairs} == {onnx.TensorProto.FLOAT}
    assert not any(values[n.input[2]].astype(np.float32).any() for n in pairs)
    for node in pairs:
        if node.op_type == "QuantizeLinear" and node.input[0] in values:
            weight = values[node.input[0]]
            axis = next(a.i for a in node.attribute if a.name == "axis")
            others = tuple(i for i in range(weight.ndim) if i != axis)
            steps = np.abs(weight).max(axis=others) / values[node.input[1]]
            np.testing.assert_allclose(steps, 448.0, rtol=1e-5)
    choice = choose_int8_layers(model)
    assert layer_precisions(quantized)["fp8"] == len(choice.int8)
    scales = {
        n.input[0]: float(values[n.input[1]])
        for n in pairs
        if n.op_type == "QuantizeLinear" and n.input[0] not in values
    }
    for tensor in choice.tensors:
        assert scales[tensor] == pytest.approx(table.ranges[tensor] / 448.0, rel=1e-6)


def test_ranges_hold_twice_what_was_seen_and_nothing_is_shifted(
    model: onnx.ModelProto, table: CalibrationTable, histograms: dict[str, Histogram]
) -> None:
    int8 = fit(model, histograms)
    assert int8.shifts
    assert not table.shifts
    assert table.scales.keys() == int8.scales.keys()
    for name in choose_int8_layers(model).tensors:
        histogram, scale = histograms[name], table.scales.get(name, 1.0)
        peak = (np.maximum(histogram.high, -histogram.low) / scale).max()
        assert table.ranges[name] == pytest.approx(FP8_HEADROOM * peak, rel=2e-3)


def test_the_table_keeps_its_format(table: CalibrationTable, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(table_to_json(table))
    assert read_table(path).precision == "fp8"
    data = json.loads(table_to_json(replace(table, precision="int8")))
    assert data["precision"] == "int8"


def rounded_to_fp8(values: np.ndarray, scale: np.ndarray | float) -> np.ndarray:
    """By onnx's type library, the long way round."""
    return (values / scale).clip(-448, 448).astype(np.float32).astype(FP8.dtype).astype(
        np.float32
    ) * scale


def test_onnxruntime_rounds_activations_and_weights_to_fp8(
    quantized: onnx.ModelProto, inputs: np.ndarray
) -> None:
    """The first layer's DQs, and the whole network as the engine rewrites it."""
    values = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer}
    first = next(n for n in quantized.graph.node if n.op_type == "Conv")
    makers = {name: node for node in quantized.graph.node for name in node.output}
    data, weight = (makers[makers[name].input[0]] for name in first.input[:2])
    rounded = run(quantized, inputs[:2], *first.input[:2])
    scale = values[data.input[1]]
    np.testing.assert_array_equal(rounded[0], rounded_to_fp8(inputs[:2], scale))
    scales = values[weight.input[1]].reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(rounded[1], rounded_to_fp8(values[weight.input[0]], scales))
    exact = run(quantized, inputs[:4])[0]
    engine = run(cpu_model(quantized), inputs[:4])[0]
    cosine = (
        (exact * engine).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(engine, axis=1)
    )
    assert cosine.min() > 0.999


def test_gptq_lowers_the_error_of_the_sums_in_fp8(
    model: onnx.ModelProto, table: CalibrationTable, faces: Faces
) -> None:
    weights = np.random.default_rng(1).standard_normal((5, 65))
    mix = np.random.default_rng(0).standard_normal((65, 65)) * np.exp(-np.arange(65) / 4)
    hessian, scale = mix @ mix.T + 1e-3 * np.eye(65), np.abs(weights).max(axis=1) / 448
    rounded = gptq_round(weights, scale, hessian, FP8)
    steps = rounded / scale[:, None]
    np.testing.assert_allclose(FP8.nearest(steps), steps, rtol=1e-6)
    np.testing.assert_allclose(np.abs(rounded).max(axis=1), np.abs(weights).max(axis=1))

    def error(other: np.ndarray) -> float:
        return float(np.einsum("on,nm,om->", other - weights, hessian, other - weights))

    assert error(rounded) < 0.5 * error(FP8.nearest(weights / scale[:, None]) * scale[:, None])
    collector = CovarianceCollector(model, choose_int8_layers(model).int8[:1])
    spec, images = PRESETS["insightface"], map(faces.read, range(4))
    collect_histograms(model, table.ranges, spec, images, watch=collector)
    layer, result = next(iter(round_weights(model, table, collector.moments).items()))
    node = next(n for n in model.graph.node if n.name == layer)
    flat = result.weight.reshape(len(result.weight), -1)
    steps = flat / (np.abs(flat).max(axis=1, keepdims=True) / 448)
    np.testing.assert_allclose(FP8.nearest(steps), steps, rtol=1e-5)
    assert node.op_type == "Conv"


@pytest.fixture(scope="module")
def calibrated(exported: Bundle, faces: Faces, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle calibrated for INT8 and FP8, with an FP8 engine for the CPU."""
    folder = tmp_path_factory.mktemp("fp8") / "n.bundle"
    shutil.copytree(exported.root, folder)
    calibrate(folder, faces, limit=8)
    build_engine(folder, "fp8", "onnxruntime", faces)
    return folder


def test_fp8_stands_beside_int8(calibrated: Path) -> None:
    bundle = open_bundle(calibrated)
    for name in ("calibration.json", "calibration.fp8.json", "model.int8.onnx", "model.fp8.onnx"):
        assert name in bundle
    report = json.loads(bundle.file("reports/calibration-fp8.json").read_text())
    assert (report["precision"], report["int8_layers"]) == ("fp8", 4)
    assert report["judged"]["cosine"]["min"] > 0.95
    with open_session(bundle) as session:  # nothing else is built, and FP8 is slow on a CPU
        assert session.precision == "fp32"
    with open_session(bundle, "fp8") as session:
        assert session.file == "engines/onnxruntime-fp8.onnx"
    engine = layer_precisions(onnx.load(bundle.file("model.fp8.onnx")))
    assert engine == {"int8": 0, "fp16": 0, "fp32": 2, "fp8": 4}


def test_the_commands_take_fp8(calibrated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["verify", str(calibrated), "--engine", "fp8", "--json"]) == 0
    verified = json.loads(capsys.readouterr().out)
    assert verified["cosine"]["min"] > 0.95
    assert verified["passed"] is True
    assert (
        run_command(["verify", str(calibrated), "--engine", "fp8", "--min-cosine", "0.9999"]) == 1
    )
    assert run_command(["report", str(calibrated)]) == 0
    capsys.readouterr()
    assert run_command(["compare", str(calibrated), str(calibrated), "--json"]) == 0
    names = {change["name"] for change in json.loads(capsys.readouterr().out)["changes"]}
    assert any("fp8" in name for name in names)


def test_times_of_the_emulation_are_invalid(calibrated: Path) -> None:
    result = benchmark(calibrated, "fp8", duration_s=0.1, warmup_s=0.05, batches=(1,))
    assert result.verdict == "INVALID"
    assert any("FP8 is emulated on this CPU" in reason for reason in result.runs[0].reasons)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["--precision", "fp8", "--method", "entropy"], "no calibration method 'entropy' for FP8"),
        (["--precision", "fp8", "--trt-cache", "8.6.1"], "a TensorRT calibration cache is INT8's"),
        (
            ["--precision", "fp8", "--min-cosine", "0.9", "--backend", "onnxruntime"],
            "onnxruntime emulates FP8",
        ),
    ],
)
def test_what_does_not_go_with_fp8(
    exported: Bundle, line: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run_command(["calibrate", str(exported.root), "--faces", "synthetic:5x1", *line])
    assert code == 2
    assert words in capsys.readouterr().err


def test_an_engine_of_an_uncalibrated_bundle(exported: Bundle) -> None:
    with pytest.raises(UsageError, match="not calibrated for FP8") as caught:
        build_engine(exported, "fp8", "onnxruntime")
    assert "--precision fp8" in caught.value.hint


def test_nvidias_compiler_computes_fp8_for_ada_and_blackwell(calibrated: Path) -> None:
    pytest.importorskip(
        "tensorrt_rtx", reason="the compile check needs tensorrt-rtx (pip install 'fr-edge[rtx]')"
    )
    from fr_edge.runtime.trt.config import EngineOptions

    options = EngineOptions(batch=(1, 1, 4), compute=("8.9", "12.0"))
    built = build_engine(calibrated, "fp8", "tensorrt-rtx", options=options)
    assert built.compile_only
    assert {name: count for name, count in built.layers.items() if count} == {"fp8": 4, "fp16": 2}
    assert {proof.evidence for proof in built.proof} == {"tensors and weights"}
    assert {(proof.asked, proof.built) for proof in built.proof} == {
        ("fp8", "fp8"),
        ("fp16", "fp16"),
    }
    for compute in ("8.6", "8.0", "7.5"):
        wrong = replace(options, compute=(compute,))
        with pytest.raises(MachineError, match=f"compute capability {compute} has no FP8"):
            build_engine(calibrated, "fp8", "tensorrt-rtx", options=wrong)


def test_fp16_around_fp8_keeps_its_numbers(quantized: onnx.ModelProto, inputs: np.ndarray) -> None:
    half = int8_fp16_model(quantized)
    onnx.checker.check_model(half, full_check=True)
    exact, embeddings = run(quantized, inputs[:4])[0], run(half, inputs[:4])[0]
    cosine = (exact * embeddings).sum(1)
    cosine /= np.linalg.norm(exact, axis=1) * np.linalg.norm(embeddings, axis=1)
    assert cosine.min() > 0.99


def test_evaluate_and_a_policy_know_fp8(
    calibrated: Path, faces: Faces, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index, label in enumerate(faces.labels[:24]):
        person = tmp_path / "people" / str(label)
        person.mkdir(parents=True, exist_ok=True)
        Image.fromarray(faces.read(index)).save(person / f"{index}.png")
    bundle = tmp_path / "n.bundle"  # its last verdict, with a policy, would be another test's
    shutil.copytree(calibrated, bundle)
    line = [str(bundle), "--engine", "fp8", "--json"]
    assert run_command(["evaluate", *line, "--protocol", str(tmp_path / "people")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["pairs"] == {"genuine": 12, "impostor": 264}
    assert (result["engine"], result["backend"]) == ("fp8", "onnxruntime")
    policy = tmp_path / "policy.toml"
    for text, code in (
        ("[int8]\nmin_cosine = 0.99999\n", 0),
        ("[fp8]\nmin_cosine = 0.99999\n", 1),
    ):
        policy.write_text(text)
        assert run_command(["verify", *line, "--policy", str(policy)]) == code
    assert "min cosine" in capsys.readouterr().out


def test_a_pack_carries_fp8(calibrated: Path, tmp_path: Path) -> None:
    pack = tmp_path / "n.frb"
    assert run_command(["pack", str(calibrated), "--out", str(pack)]) == 0
    line = ["unpack", str(pack), "--out", str(tmp_path / "u.bundle"), "--allow-unsigned"]
    assert run_command(line) == 0
    image = np.full((1, 112, 112, 3), 90, np.uint8)
    for name in ("calibration.fp8.json", "model.fp8.onnx", "engines/onnxruntime-fp8.onnx"):
        assert (tmp_path / "u.bundle" / name).read_bytes() == (calibrated / name).read_bytes()
    with open_session(calibrated, "fp8") as a, open_session(tmp_path / "u.bundle", "fp8") as b:
        np.testing.assert_array_equal(a.embed(image), b.embed(image))


@pytest.mark.parametrize(
    ("line", "start", "words"),
    [
        (["verify", "b", "--engine"], "fp8", {"fp8", "fp8-tensor", "fp8-crop", "fp8-frame"}),
        (["calibrate", "b", "--precision"], "f", {"fp8"}),
        (["build-engine", "b", "--precision"], "fp8", {"fp8"}),
        (["build-engine", "b"], "--fp8", {"--fp8"}),
    ],
)
def test_the_shell_completes_fp8(line: list[str], start: str, words: set[str]) -> None:
    completion = ShellComplete(root, {}, "fr-edge", "_FR_EDGE_COMPLETE")
    assert {item.value for item in completion.get_completions(line, start)} == words


def test_the_choice_of_a_precision_leaves_the_emulation_out(calibrated: Path) -> None:
    assert set(_precisions(calibrated, "onnxruntime")) == {"fp32", "fp16", "int8"}
    assert set(_precisions(calibrated, "tensorrt")) == {"fp32", "fp16", "int8", "fp8"}
