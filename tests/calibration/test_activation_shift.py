"""Activation shift leaves a float network's embeddings unchanged, and halves ranges."""

import numpy as np
import onnx
from fitted import run

from fr_edge.calibration.activation_shift import (
    channel_shifts,
    shift_activations,
    shiftable_tensors,
    snap_to_grid,
)
from fr_edge.calibration.histogram import Histogram
from fr_edge.graph.layers import choose_int8_layers


def test_activation_shift_leaves_the_embedding(
    model: onnx.ModelProto, histograms: dict[str, Histogram], inputs: np.ndarray
) -> None:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    choice = choose_int8_layers(model)
    shifts = channel_shifts(model, choice, histograms)
    makers = {name: node for node in model.graph.node for name in node.output}
    assert shifts
    assert all(makers[name].op_type == "PRelu" for name in shifts)
    renamed = shift_activations(copy, choice, shifts)
    onnx.checker.check_model(copy)
    exact = run(model, inputs[:4])[0]
    np.testing.assert_allclose(
        run(copy, inputs[:4])[0], exact, rtol=1e-3, atol=2e-4 * np.abs(exact).max()
    )
    tensor = next(iter(renamed))
    before, after = run(copy, inputs, tensor, renamed[tensor])
    # Half the range for the same values.
    assert np.abs(after).max(axis=(0, 2, 3)).sum() < 0.8 * np.abs(before).max(axis=(0, 2, 3)).sum()
    assert {n.input[0] for n in copy.graph.node if n.name in choice.int8} >= set(renamed.values())


def test_padded_readers_are_not_shifted(model: onnx.ModelProto) -> None:
    choice = choose_int8_layers(model)
    padded = {
        n.input[0]
        for n in model.graph.node
        if any(a.name == "pads" and any(a.ints) for a in n.attribute)
    }
    assert not padded & set(shiftable_tensors(model, choice))


def test_zero_stays_exactly_zero() -> None:
    shift = snap_to_grid(np.array([0.3, -1.26, 0.0]), 12.7)
    np.testing.assert_allclose(shift, [0.3, -1.3, 0.0], atol=1e-12)
