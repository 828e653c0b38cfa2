"""Run a model over faces and keep histograms of the tensors asked for; memory stays flat."""

from collections.abc import Sequence

import numpy as np
import onnx

from ..errors import ModelError, UsageError
from ..faces.contract import InputSpec, preprocess
from ..faces.sources import Faces
from ..progress import Track, silent
from .histogram import Histogram

BATCH = 4
"""Faces in flight: all observed activations of a batch are held at once."""


def observe(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    spec: InputSpec,
    faces: Faces,
    picks: Sequence[int],
    track: Track = silent,
) -> dict[str, Histogram]:
    """Histograms of `tensors` over the faces at `picks`.

    Raises UsageError without a face, ModelError when an activation is not finite.
    """
    import onnxruntime as ort

    if not picks:
        raise UsageError("calibration needs faces, found none", "give --faces SRC")
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    inputs = {value.name for value in model.graph.input}
    computed = [name for name in tensors if name not in inputs]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in computed)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    seen = {name: Histogram() for name in tensors}
    steps = (len(picks) + BATCH - 1) // BATCH
    for batch in track(faces.batches(BATCH, picks), "calibrating", steps):
        feed = {session.get_inputs()[0].name: preprocess(batch, spec)}
        values = dict(zip(computed, session.run(computed, feed), strict=True)) | feed
        for name, histogram in seen.items():
            if not np.isfinite(values[name]).all():
                raise ModelError(f"{name} is not finite on a real face", "check the input contract")
            histogram.add(values[name])
    return seen
