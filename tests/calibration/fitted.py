"""Running a network, and a table for it, in one line."""

import numpy as np
import onnx
import onnxruntime as ort

from fr_edge.calibration.fitting import fit_table
from fr_edge.calibration.histogram import Histogram
from fr_edge.calibration.scale_groups import scale_groups
from fr_edge.calibration.table import CalibrationTable
from fr_edge.graph.layers import choose_int8_layers


def run(model: onnx.ModelProto, inputs: np.ndarray, *outputs: str) -> list[np.ndarray]:
    """The embedding, or the tensors asked for."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    if outputs:
        del probe.graph.output[:]
        probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    session = ort.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(list(outputs) or None, {session.get_inputs()[0].name: inputs}))


def fit(
    model: onnx.ModelProto, histograms: dict[str, Histogram], *args: object
) -> CalibrationTable:
    return fit_table(
        model, choose_int8_layers(model), histograms, *args, faces=1, identities=1, model_sha256=""
    )


def close(result: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=2e-4 * np.abs(expected).max())


def any_scales(model: onnx.ModelProto, seed: int) -> dict[str, np.ndarray]:
    """Random scales for every channel that may have one."""
    groups = scale_groups(model)
    by_group = np.exp(np.random.default_rng(seed).normal(0, 1, 1 + 64 * len(groups)))
    by_group[-1] = 1.0  # of channels without a group
    return {tensor: by_group[channels] for tensor, channels in groups.items()}


def alike(groups: dict[str, np.ndarray], *tensors: str) -> bool:
    return all(np.array_equal(groups[tensors[0]], groups[other]) for other in tensors[1:])
