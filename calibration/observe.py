"""Run a model over faces and keep histograms of the tensors asked for; memory stays flat."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from ..errors import FacesError, ModelError
from ..faces.contract import InputSpec, preprocess
from ..faces.sources import Faces
from ..progress import Track, silent
from .histogram import F32, Histogram, add, empty

BATCH = 8
"""Faces in flight: all observed activations of a batch are held at once."""


def observe(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    spec: InputSpec,
    faces: Faces,
    picks: Sequence[int],
    track: Track = silent,
    watch: Callable[[Mapping[str, F32]], None] | None = None,
) -> dict[str, Histogram]:
    """Histograms of `tensors`, channel by channel, over the faces at `picks`.

    `watch` is shown each batch's tensors too. What comes out of a Flatten is counted as it goes in, where it still has channels. Raises
    FacesError without a face, ModelError when an activation is not finite.
    """
    if not picks:
        raise FacesError("calibration needs faces, found none", "give --faces SRC")
    flat = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Flatten"}
    source = {name: flat.get(name, name) for name in tensors}
    session = _session(model, sorted(set(source.values())))
    seen: dict[str, Histogram] = {}
    steps = (len(picks) + BATCH - 1) // BATCH
    for batch in track(faces.batches(BATCH, picks), "calibrating", steps):
        values = _run(session, preprocess(batch, spec))
        for name, read in source.items():
            channels = _channels(values[read])
            if not np.isfinite(channels.max() - channels.min()):
                raise ModelError(
                    f"{read} is not finite on a real face: the model overflows or is damaged",
                    "check the input contract with `fr-edge inspect BUNDLE`, or export again",
                )
            seen[name] = add(seen.get(name) or empty(channels.shape[1]), channels)
        if watch:
            watch(values)
    return seen


def embeddings(
    model: onnx.ModelProto,
    spec: InputSpec,
    faces: Faces,
    picks: Sequence[int],
    track: Track = silent,
) -> F32:
    """`(N, D) float32`, what a model says of the faces at `picks`."""
    output = model.graph.output[0].name
    session = _session(model, [output])
    steps = (len(picks) + BATCH - 1) // BATCH
    parts = [
        _run(session, preprocess(batch, spec))[output]
        for batch in track(faces.batches(BATCH, picks), "comparing", steps)
    ]
    return np.concatenate(parts)


def _channels(values: F32) -> F32:
    """`(N, C, ...)`: channels are the second axis, or the last of three (sequences)."""
    return np.moveaxis(values, -1, 1) if values.ndim == 3 else values


def _session(model: onnx.ModelProto, outputs: Sequence[str]) -> Any:
    import onnxruntime as ort

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    inputs = {value.name for value in model.graph.input}
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=n) for n in outputs if n not in inputs)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(
        probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _run(session: Any, inputs: F32) -> Mapping[str, F32]:
    """Every output by name, and the input."""
    names = [output.name for output in session.get_outputs()]
    face = session.get_inputs()[0].name
    return dict(zip(names, session.run(names, {face: inputs}), strict=True)) | {face: inputs}
