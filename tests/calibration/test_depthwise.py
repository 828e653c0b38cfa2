"""Depthwise convolutions in 8 bits: exact steps, honest shares, and what `auto` takes."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from bench import Bench, BenchFaces, trained
from fitted import run
from onnx import TensorProto, helper, numpy_helper

from fr_edge.bundle.manifest import Bundle
from fr_edge.calibration.activation_shift import shift_activations, shiftable_tensors
from fr_edge.calibration.calibrate import calibrate
from fr_edge.calibration.equalization import channel_scales, quantized_inputs
from fr_edge.calibration.fitting import RANGES_ONLY, CalibrationSteps
from fr_edge.calibration.gptq import correct_biases
from fr_edge.calibration.histogram import add_values, empty_histogram
from fr_edge.calibration.search.budget import Budget
from fr_edge.calibration.search.latency_model import LatencyModel, LatencyOf
from fr_edge.cli.main import run as run_command
from fr_edge.errors import UsageError
from fr_edge.faces.sources import Faces
from fr_edge.graph.layers import (
    GROUPED,
    Int8Choice,
    choose_int8_layers,
    layer_precisions,
    weighted_layers,
)


@pytest.fixture(scope="module")
def bench(bench_faces: BenchFaces) -> Bench:
    """Depthwise convolutions, SiLU and squeeze-excite, all convolutions in INT8."""
    return Bench(trained("excite"), bench_faces, grouped=True)


def test_calibration_helps_depthwise_layers_too(bench: Bench) -> None:
    loss = bench.loss()
    assert layer_precisions(bench.quantized())["fp32"] == 0
    assert loss < 0.92 * bench.loss(steps=CalibrationSteps(activation_shift=False))
    assert loss < 0.87 * bench.loss("minmax", RANGES_ONLY)


def grouped_pair() -> onnx.ModelProto:
    """ReLU, a convolution of 3 groups from 6 to 12 channels, unpadded, and a dense one behind it."""
    rng = np.random.default_rng(0)

    def constant(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Relu", ["face"], ["x"], "relu"),
        helper.make_node("Conv", ["x", "w", "b"], ["y"], "grouped", group=3),
        helper.make_node("Conv", ["y", "v"], ["z"], "dense"),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ("N", channels, side, side))
        for name, channels, side in (("face", 6, 5), ("z", 4, 3))
    ]
    weights = [constant("w", 12, 2, 3, 3), constant("b", 12), constant("v", 4, 12, 1, 1)]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_shift_in_front_of_groups_leaves_the_output() -> None:
    model, copy = grouped_pair(), grouped_pair()
    choice = choose_int8_layers(model, grouped=True)
    assert shiftable_tensors(model, choice) == ["x"]
    shift_activations(copy, choice, {"x": np.arange(6.0)})
    faces = np.random.default_rng(1).standard_normal((2, 6, 5, 5)).astype(np.float32)
    exact, shifted = run(model, faces)[0], run(copy, faces)[0]
    np.testing.assert_allclose(shifted, exact, atol=1e-5 * np.abs(exact).max())


def test_bias_correction_restores_the_mean_of_groups() -> None:
    """Constant channels: the mean is all there is, so the corrected layer is exact."""
    model, copy = grouped_pair(), grouped_pair()
    choice = choose_int8_layers(model, grouped=True)
    means = np.arange(1.0, 7.0)
    faces = np.broadcast_to(means.astype(np.float32)[:, None, None], (1, 6, 5, 5)).copy()
    correct_biases(copy, choice, {"x": means})
    for tensor in copy.graph.initializer:
        if tensor.name == "w":
            weight = numpy_helper.to_array(tensor)
            scale = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127.0
            rounded = (np.rint(weight / scale) * scale).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, "w"))
    exact, corrected = run(model, faces, "y")[0], run(copy, faces, "y")[0]
    np.testing.assert_allclose(corrected, exact, atol=1e-4)


def test_scales_of_groups_know_which_channels_they_read() -> None:
    """Gain and peak of each channel are of the weights of its own group."""
    model = grouped_pair()
    choice = choose_int8_layers(model, grouped=True)
    values = np.random.default_rng(2).standard_normal((4, 12, 5, 5)).astype(np.float32)
    histograms = {
        name: add_values(empty_histogram(channels), values[:, :channels])
        for name, channels in (("x", 6), ("y", 12))
    }
    inputs = quantized_inputs(model, choice, histograms, {})
    weight = numpy_helper.to_array(model.graph.initializer[0])
    for channel in range(6):
        group, place = divmod(channel, 2)
        own = weight[4 * group : 4 * group + 4, place]
        assert inputs["x"].gain[channel] == pytest.approx((own.astype(float) ** 2).sum())
        assert inputs["x"].weight_peak[channel] == np.abs(own).max()
    assert set(channel_scales(model, choice, inputs)) == {"y"}


@pytest.fixture
def bundle(exported: Bundle, tmp_path: Path) -> Path:
    shutil.copytree(exported.root, tmp_path / "n.bundle")
    return tmp_path / "n.bundle"


def test_the_command_makes_them_int8_and_the_engine_computes_them(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["calibrate", str(bundle), "--faces", "synthetic:20x2@7", "--json", "--depthwise"]
    assert run_command([*line, "float"]) == 0
    floats = json.loads(capsys.readouterr().out)
    assert floats["kept_float"] == {GROUPED: 2}
    assert floats["int8_dense_share"] == 1.0 > floats["int8_mac_share"]
    assert run_command([*line, "int8"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["kept_float"], report["int8_layers"]) == ({}, floats["int8_layers"] + 2)
    assert report["int8_dense_share"] == report["int8_mac_share"] == 1.0
    assert (
        json.loads((bundle / "bundle.json").read_text())["history"][-1]["options"]["depthwise"]
        == "int8"
    )
    model = onnx.load(bundle / "model.int8.onnx")
    assert layer_precisions(model) == {"int8": 6, "fp16": 0, "fp32": 0}
    assert run_command(["build-engine", str(bundle), "--int8", "--backend", "onnxruntime"]) == 0
    assert "6 INT8" in capsys.readouterr().out
    assert run_command(["verify", str(bundle), "--engine", "int8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cosine"]["min"] > 0.97


def saving(depthwise: float, noise: float) -> LatencyOf:
    """Every dense layer in INT8 saves a tenth of the time, and every depthwise one `depthwise`."""

    def latency(model: onnx.ModelProto, quantize: object) -> LatencyModel:
        groups = {layer.name: layer.groups for layer in weighted_layers(model)}

        def cost(choice: Int8Choice) -> float:
            return 1.0 - sum(depthwise if groups[n] > 1 else 0.1 for n in choice.int8)

        return LatencyModel("made up", cost, lambda: noise)

    return latency


@pytest.mark.parametrize(
    ("depthwise", "noise", "taken"), [(0.05, 0.01, 2), (0.05, 0.2, 0), (-0.05, 0.01, 0)]
)
def test_auto_takes_them_where_timed_engines_are_faster(
    depthwise: float, noise: float, taken: int, bundle: Path, faces: Faces
) -> None:
    latency = saving(depthwise, noise)
    done = calibrate(bundle, faces, budget=Budget(min_cosine=0.5), latency=latency)
    precisions = layer_precisions(onnx.load(done.bundle.file("model.int8.onnx")))
    assert precisions == {"int8": 4 + taken, "fp16": 0, "fp32": 2 - taken}
    assert not list(bundle.parent.glob(".*.calibrate"))


def test_auto_keeps_float_where_they_hold_no_budget(bundle: Path, faces: Faces) -> None:
    floats = calibrate(bundle, faces).report.judged
    both = calibrate(bundle, faces, depthwise="int8").report.judged
    assert floats is not None
    assert both is not None
    assert both.cosine.min < floats.cosine.min
    budget = Budget(min_cosine=(both.cosine.min + floats.cosine.min) / 2)
    done = calibrate(bundle, faces, budget=budget, latency=saving(0.05, 0.01))
    assert done.report.judged is not None
    assert done.report.judged.cosine.min > budget.min_cosine


def test_without_timed_engines_auto_is_float(bundle: Path, faces: Faces) -> None:
    done = calibrate(bundle, faces, budget=Budget(min_cosine=0.5))
    assert set(done.choice.float_layers.values()) == {GROUPED}
    with pytest.raises(UsageError, match="--depthwise is auto, float, int8"):
        calibrate(bundle, faces, depthwise="fast")
