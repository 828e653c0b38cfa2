"""Running a network, and a table for it, in one line."""

import numpy as np
import onnx
import onnxruntime as ort

from fr_edge.calibration.fitting import fit_table
from fr_edge.calibration.histogram import Histogram
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
