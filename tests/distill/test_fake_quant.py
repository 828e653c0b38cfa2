"""What INT8's rounding does in training, and that export and calibration write the same."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from fr_edge.bundle.bundle import open_bundle
from fr_edge.calibration.calibrate import calibrate
from fr_edge.calibration.table import read_table
from fr_edge.distill.distributed import Ranks
from fr_edge.distill.fake_quant import (
    Conv2d,
    add_scales,
    best_scale,
    fake_quant_layers,
    init_scales,
    limit_scale_change,
    split_scales,
)
from fr_edge.distill.networks import build_network
from fr_edge.distill.recipe import Recipe, read_recipe
from fr_edge.distill.student import DeviceBatch, device_batch
from fr_edge.distill.train import distill_student
from fr_edge.distill.train_step import enable_fake_quant, start_training, train_step
from fr_edge.distill.weights import load_tensors, save_network, trained_ranges
from fr_edge.errors import ModelError, UsageError
from fr_edge.export.export import export_onnx
from fr_edge.faces.contract import InputSpec, preprocess
from fr_edge.faces.sources import Faces
from fr_edge.graph.trained_ranges import read_trained_ranges


@pytest.fixture
def qat(recipe: Recipe) -> Recipe:
    return replace(recipe, qat="int8", qat_epochs=1)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(1) / lengths)


def plain(x: np.ndarray, step: float) -> np.ndarray:
    """QuantizeLinear and DequantizeLinear as ONNX defines them."""
    return np.clip(np.rint(x / np.float32(step)), -128, 127) * np.float32(step)


@pytest.mark.parametrize("shape", [(3, 5, 7, 2), (1, 4), (2, 3, 1, 1)])
def test_inputs_round_as_onnx_says_and_learn_as_lsq_says(shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(1)
    x = (torch.randn(shape, generator=draw) * 3).requires_grad_()
    layer = Conv2d(shape[1], 2, 1)
    add_scales(layer)
    layer.enable()
    assert layer.scale is not None
    nn.init.constant_(layer.scale, 0.03)
    out = layer.quantized_input(x)
    given = torch.randn(shape, generator=draw)
    out.backward(given)
    n = x.detach().numpy() / np.float32(0.03)
    np.testing.assert_allclose(out.detach().numpy(), plain(x.detach().numpy(), 0.03), rtol=1e-6)
    inside = (n >= -128) & (n <= 127)
    assert not inside.all() or x.numel() < 10
    slope = np.where(inside, np.rint(n) - n, np.where(n > 0, 127, -128)) * given.numpy()
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), given.numpy() * inside)
    scale = 1 / np.sqrt(np.prod(shape[1:]) * 127)
    np.testing.assert_allclose(float(layer.scale.grad or 0), slope.sum() * scale, rtol=1e-4)


def test_rounding_before_a_norm_is_rounding_what_export_folds() -> None:
    torch.manual_seed(2)
    layer, norm = Conv2d(6, 5, 3, bias=False), nn.BatchNorm2d(5).eval()
    nn.init.normal_(norm.weight)  # of either sign
    nn.init.normal_(norm.bias)
    assert norm.running_var is not None
    norm.running_var.uniform_(0.1, 4)
    add_scales(layer)
    layer.enable()
    factor = (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None, None]
    ours = (layer.quantized_weight() * factor).detach().numpy()
    folded = (layer.weight * factor).detach().numpy()
    for row, weights in zip(ours, folded, strict=True):
        np.testing.assert_allclose(row, plain(weights, np.abs(weights).max() / 127), atol=1e-6)


@pytest.mark.parametrize("spread", [0.01, 1.0, 300.0])
def test_the_first_scale_errs_less_than_clipping_nothing(spread: float) -> None:
    x = torch.randn(40_000, generator=torch.Generator().manual_seed(3)).pow(3) * spread
    error = [
        float(np.square(plain(x.numpy(), step) - x.numpy()).sum())
        for step in (float(best_scale(x)), float(x.abs().max()) / 127)
    ]
    assert 0 < error[0] < error[1]
    assert float(best_scale(torch.zeros(9))) > 0


@pytest.mark.parametrize("name", ["mobilefacenet-0.25", "iresnet-tiny"])
def test_the_int8_file_is_the_network_that_rounds(name: str, faces: Faces, tmp_path: Path) -> None:
    torch.manual_seed(7)
    network = build_network(name, 32)
    inputs = preprocess(np.concatenate(list(faces.batches(50))), InputSpec())
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # what is folded is what the faces say
    add_scales(network)
    with init_scales(network, lambda scale: scale):
        network(torch.from_numpy(inputs))
    state, ranges = split_scales(network.state_dict())
    save_network(tmp_path / "model.pt", state, name, 32, ranges)
    export_onnx(tmp_path / "model.pt", tmp_path / "out", spec=InputSpec())
    bundle = calibrate(tmp_path / "out", faces, limit=8).bundle
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(inputs)).numpy()
    float_out, int8_out = (
        onnxruntime.InferenceSession(
            str(bundle.file(file)),
            providers=["CPUExecutionProvider"],
            # It rounds biases too.
            disabled_optimizers=["WeightBiasQuantization"],
        ).run(None, {"face": inputs})[0]
        for file in ("model.onnx", "model.int8.onnx")
    )
    # Most faces agree to the last digits; in some a sum in another order came to lie beyond the
    # border of a step, which an untrained network makes much of.
    assert np.median(cosines(int8_out, expected)) > 0.999
    assert np.square(int8_out - expected).sum() < 0.2 * np.square(int8_out - float_out).sum()


def test_calibration_takes_the_ranges_that_were_trained(
    qat: Recipe, faces: Faces, teacher: Path, tmp_path: Path
) -> None:
    trained = distill_student(qat, faces, tmp_path / "out", teacher=teacher).bundle
    ranges = trained_ranges(trained.file("model.pt"))
    assert 0.5 < ranges["features.0.0"] < 1.1  # pixels lie in -1..1
    assert not any(key.endswith("scale") for key in load_tensors(trained.file("model.pt"))["state"])
    export_onnx(trained.root, trained.root)
    result = calibrate(trained.root, faces, limit=8)
    table = read_table(result.bundle.file("calibration.json"))
    assert table == result.table
    assert (table.method, list(table.ranges.values())) == ("trained", list(ranges.values()))
    other = calibrate(trained.root, faces, method="minmax", limit=8)
    assert other.table.method == "minmax"


@pytest.mark.parametrize("name", ["mobilefacenet-0.25", "iresnet-tiny"])
def test_dense_layers_are_named_in_order(name: str, tmp_path: Path) -> None:
    network = build_network(name, 16)
    # A range that tells which layer it is of.
    ranges = {n: 1.0 + layer.weight.numel() for n, layer in fake_quant_layers(network)}
    save_network(tmp_path / "model.pt", network.state_dict(), name, 16, ranges)
    bundle = export_onnx(tmp_path / "model.pt", tmp_path / "out", spec=InputSpec()).bundle
    assert trained_ranges(bundle.file("model.pt")) == ranges
    model = onnx.load(bundle.file("model.onnx"))
    sizes = {t.name: int(np.prod(t.dims)) for t in model.graph.initializer}
    readers = {
        n.input[0]: sizes[n.input[1]]
        for n in model.graph.node
        if n.input[1:2] and n.input[1] in sizes and n.op_type in ("Conv", "Gemm")
    }
    ranges_read = read_trained_ranges(model)
    assert len(ranges_read) == len(ranges)
    assert all(readers[tensor] + 1.0 == value for tensor, value in ranges_read.items())
    # And they stay when the file goes on alone.
    again = export_onnx(bundle.file("model.onnx"), tmp_path / "again").bundle
    assert list(read_trained_ranges(onnx.load(again.file("model.onnx"))).values()) == list(
        ranges_read.values()
    )


def test_a_large_gradient_moves_no_scale_far() -> None:
    layer = Conv2d(3, 4, 1)
    add_scales(layer)
    assert layer.scale is not None
    nn.init.constant_(layer.scale, 0.1)
    with limit_scale_change(layer):
        nn.init.constant_(layer.scale, -7.0)
    assert float(layer.scale.detach()) == pytest.approx(0.1 / 1.05)


class _Killed(BaseException):
    pass


def test_a_stopped_run_goes_on_to_the_same_bits(
    qat: Recipe, faces: Faces, teacher: Path, tmp_path: Path
) -> None:
    recipe = replace(qat, ema=0.9)
    whole = distill_student(recipe, faces, tmp_path / "whole", teacher=teacher).bundle

    def stops_at(step: int) -> Any:
        def track(items: Iterable[Any], label: str, total: int) -> Iterable[Any]:
            for number, item in enumerate(items):
                if label == "training" and number == step:
                    raise _Killed
                yield item

        return track

    out = tmp_path / "stopped"
    for step in (3, 0, 1):  # before the rounding begins, as it does, after it
        with pytest.raises(_Killed):
            distill_student(recipe, faces, out, teacher=teacher, track=stops_at(step))
    distill_student(recipe, faces, out, teacher=teacher)
    a, b = (load_tensors(open_bundle(p).file("model.pt")) for p in (whole.root, out))
    assert a["ranges"] == b["ranges"]
    assert all(torch.equal(a["state"][name], b["state"][name]) for name in a["state"])


def test_scales_of_several_ranks_become_one() -> None:
    network = build_network("mobilefacenet-0.25", 8)
    add_scales(network)

    def combine(scale: Tensor) -> Tensor:
        return scale * 2

    x = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with init_scales(network, combine):
        network(x)
    _, ranges = split_scales(network.state_dict())
    assert ranges["features.0.0"] == pytest.approx(254 * float(best_scale(x)))


def test_ranges_that_cannot_be_are_refused(tmp_path: Path, recipe: Recipe) -> None:
    network = build_network("mobilefacenet-0.25", 8)
    path = tmp_path / "model.pt"
    for ranges in ({"a": -1.0}, {"a": float("nan")}, {"a": "wide"}):
        save_network(path, network.state_dict(), "mobilefacenet-0.25", 8, ranges)  # type: ignore[arg-type]
        with pytest.raises(ModelError, match="ranges"):
            export_onnx(path, tmp_path / "out", spec=InputSpec())
    save_network(path, network.state_dict(), "mobilefacenet-0.25", 8, {"a": 1.0})
    with pytest.raises(ModelError, match="1 INT8 ranges for 33"):
        export_onnx(path, tmp_path / "out", spec=InputSpec())
    with pytest.raises(UsageError, match="qat_epochs"):
        replace(recipe, qat="int8", qat_epochs=2)
    with pytest.raises(UsageError, match="qat"):
        read_recipe("tiny", ["qat=int4"])


def test_scales_learn_slowly_beside_muon(recipe: Recipe) -> None:
    """A step of Adam is as long as its rate, whatever the gradient, and Muon's is half of a scale: all
    would move by what `limit_scale_change` leaves, for their gradient's sign alone."""
    changes = ["batch=8", "losses=cosine", "qat=int8", "epochs=3", "optimizer=muon"]
    state = start_training(read_recipe("tiny", changes), 10, 16, Ranks())
    draw = np.random.default_rng(0)

    def batch() -> DeviceBatch:
        pixels = draw.integers(0, 256, (8, 112, 112, 3), np.uint8)
        teacher = draw.normal(size=(8, 16)).astype(np.float32)
        return device_batch(pixels, np.arange(8), teacher, 10, torch.device("cpu"))

    enable_fake_quant(state, batch().pixels)
    named = state.student.named_parameters()
    scales = [parameter for name, parameter in named if name.endswith("scale")]
    for _ in range(3):
        before = torch.stack([scale.detach().clone() for scale in scales])
        train_step(state, batch(), 0.004)
        moves = (torch.stack(scales).detach() / before - 1).abs()
        assert 0 < moves.max() < 0.049
    assert [group["lr"] for group in state.optimizer.param_groups] == [0.004, 0.004, 0.0002]
