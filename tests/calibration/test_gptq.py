"""Weights rounded to the data: less error in the sums, always whole steps, and the mean kept."""

import numpy as np
import onnx
import pytest
from fitted import fit, run

from fr_edge.calibration.collect import collect_histograms
from fr_edge.calibration.covariance import CovarianceCollector, InputCovariance
from fr_edge.calibration.gptq import gptq_round, round_weights
from fr_edge.calibration.histogram import Histogram
from fr_edge.calibration.qdq import quantize_onnx
from fr_edge.faces.contract import PRESETS
from fr_edge.faces.sources import Faces
from fr_edge.graph.layers import choose_int8_layers


def correlated(wide: int, seed: int = 0) -> np.ndarray:
    """`(wide, wide)`: a few directions hold most of what there is, as in networks."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((wide, wide)) * np.exp(-np.arange(wide) / 4)
    return mix @ mix.T + 1e-3 * np.eye(wide)


def reference_gptq(weights: np.ndarray, scale: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """Column by column, each time solving for the best change of those to come."""
    order = np.argsort(-np.diag(hessian), kind="stable")
    out = weights.copy()
    for row, size in zip(out, scale, strict=True):
        for at, i in enumerate(order):
            exact, rest = row[i], order[at + 1 :]
            row[i] = np.clip(np.rint(exact / size), -127, 127) * size
            if len(rest):
                cross = hessian[rest, i] * (row[i] - exact)
                row[rest] -= np.linalg.solve(hessian[np.ix_(rest, rest)], cross)
    return out


@pytest.mark.parametrize("wide", [3, 65, 130])
def test_the_sums_err_less_than_with_rounding_to_nearest(wide: int) -> None:
    weights = np.random.default_rng(1).standard_normal((5, wide))
    scale, hessian = np.abs(weights).max(axis=1) / 16, correlated(wide)
    rounded = gptq_round(weights, scale, hessian)
    nearest = np.clip(np.rint(weights / scale[:, None]), -127, 127) * scale[:, None]
    steps = rounded / scale[:, None]
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-9)
    assert np.abs(steps).max() <= 127 + 1e-9

    def error(other: np.ndarray) -> float:
        return float(np.einsum("on,nm,om->", other - weights, hessian, other - weights))

    assert error(rounded) < (0.5 if wide > 3 else 1.0) * error(nearest)
    np.testing.assert_allclose(rounded, reference_gptq(weights, scale, hessian), atol=1e-9)


def test_the_largest_weight_keeps_its_127_steps() -> None:
    weights = np.random.default_rng(2).standard_normal((9, 40))
    peak = np.abs(weights).max(axis=1)
    rounded = gptq_round(weights, peak / 127, correlated(40))
    np.testing.assert_allclose(np.abs(rounded).max(axis=1), peak)
    at = np.abs(weights).argmax(axis=1)
    np.testing.assert_allclose(rounded[range(9), at], weights[range(9), at])


def test_independent_inputs_are_rounded_to_nearest() -> None:
    weights = np.random.default_rng(3).standard_normal((4, 20))
    scale = np.abs(weights).max(axis=1) / 127
    rounded = gptq_round(weights, scale, np.diag(np.linspace(1, 3, 20)))
    np.testing.assert_allclose(rounded, np.rint(weights / scale[:, None]) * scale[:, None])


def test_the_network_is_closer_to_itself(
    model: onnx.ModelProto, histograms: dict[str, Histogram], faces: Faces, inputs: np.ndarray
) -> None:
    """Weights alone rounded, people held out from those whose moments were collected."""
    collector = CovarianceCollector(model, choose_int8_layers(model).int8)
    collect_histograms(
        model,
        choose_int8_layers(model).tensors,
        PRESETS["insightface"],
        map(faces.read, range(30)),
        watch=collector,
    )
    table = fit(model, histograms)
    rounded = round_weights(model, table, collector.moments)
    assert set(rounded) == set(choose_int8_layers(model).int8)
    exact = run(model, inputs[30:])[0]

    def error(quantized: onnx.ModelProto) -> float:
        embeddings = run(without_activations(quantized), inputs[30:])[0]
        return float(np.square(embeddings - exact).sum())

    data = error(quantize_onnx(model, table, None, rounded))
    assert data < 0.8 * error(quantize_onnx(model, table))


def without_activations(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its weights alone between Q and DQ."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = {t.name for t in copy.graph.initializer}
    makers = {name: node for node in copy.graph.node for name in node.output}
    for node in copy.graph.node:
        for index, name in enumerate(node.input):
            if name in makers and makers[name].op_type == "DequantizeLinear":
                source = makers[makers[name].input[0]].input[0]
                if source not in constants:
                    node.input[index] = source
    return copy


def test_moments_that_are_not_finite_are_not_used(
    model: onnx.ModelProto, histograms: dict[str, Histogram]
) -> None:
    layer = choose_int8_layers(model).int8[-1]
    wide = CovarianceCollector(model, [layer]).moments[layer].total.size
    broken = InputCovariance(np.full((wide, wide), np.inf, np.float32), np.zeros(wide), 9)
    assert round_weights(model, fit(model, histograms), {layer: broken}) == {}
