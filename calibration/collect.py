"""Run a model over faces and keep histograms of the tensors asked for; memory stays flat."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from typing import Any

import numpy as np
import onnx

from ..arrays import F32
from ..errors import FacesError, ModelError
from ..faces.contract import InputSpec, preprocess
from ..faces.sources import Faces
from ..graph.prelu import blended
from ..inference import make_session
from ..progress import Track, silent
from .histogram import Histogram, add, empty

BATCH = 4
"""Faces at a time, where a network lets so many,"""

_IN_FLIGHT = 1 << 24
"""and observed values of them: a batch's are held at once, and the next batch's too."""

_WORTH = 1024
"""Values of a channel that are worth a walk through its bins: small tensors wait for more,"""

_MOST = 1 << 21
"""but never for more values than this in all."""


def collect(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    spec: InputSpec,
    faces: Faces,
    picks: Sequence[int],
    track: Track = silent,
    watch: Callable[[Mapping[str, F32]], None] | None = None,
) -> dict[str, Histogram]:
    """Histograms of `tensors`, channel by channel, over the faces at `picks`.

    `watch` is shown each batch's tensors too. What comes out of a Flatten is counted as it goes in,
    where it still has channels. Raises FacesError without a face, ModelError when an activation is
    not finite.
    """
    if not picks:
        raise FacesError("calibration needs faces, found none", "give --faces SRC")
    flat = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Flatten"}
    source = {name: flat.get(name, name) for name in tensors}
    session = _session(model, sorted(set(source.values())), threads=1)
    seen: dict[str, Histogram] = {}
    held: dict[str, list[F32]] = {name: [] for name in tensors}
    together = _together(session)
    steps = (len(picks) + together - 1) // together
    batches = track(faces.batches(together, picks), "calibrating", steps)
    for values in _ahead(session, (preprocess(batch, spec) for batch in batches)):
        for name, read in source.items():
            held[name].append(_channels(values[read]))
            size = sum(part.size for part in held[name])
            if size >= min(_WORTH * held[name][0].shape[1], _MOST):
                _count(seen, name, held[name])
        if watch:
            watch(values)
    for name in tensors:
        _count(seen, name, held[name])
    return seen


def embed_model(
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


def _count(seen: dict[str, Histogram], name: str, held: list[F32]) -> None:
    """Count what was held back of a tensor, and let it go."""
    if not held:
        return
    values = held[0] if len(held) == 1 else np.concatenate(held)
    held.clear()
    try:
        add(seen.setdefault(name, empty(values.shape[1])), values)
    except ValueError as error:
        raise ModelError(
            f"{name} is not finite on a real face: the model overflows or is damaged",
            "check the input contract with `fr-edge inspect BUNDLE`, or export again",
        ) from error


def _together(session: Any) -> int:
    """How many faces to run at a time."""
    shapes = [[d for d in output.shape if isinstance(d, int)] for output in session.get_outputs()]
    return max(1, min(BATCH, _IN_FLIGHT // max(1, sum(prod(shape) for shape in shapes))))


def _channels(values: F32) -> F32:
    """`(N, C, ...)`: channels are the second axis, or the last of three (sequences)."""
    return np.moveaxis(values, -1, 1) if values.ndim == 3 else values


def _session(model: onnx.ModelProto, outputs: Sequence[str], threads: int = 0) -> Any:
    """`threads` 0 takes what there are."""
    probe = blended(model)
    inputs = {value.name for value in model.graph.input}
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=n) for n in outputs if n not in inputs)
    data = probe.SerializeToString()
    del probe  # a large network should not be here one more time while onnxruntime reads it
    # With a memory pattern, all that a run needs would be held at once, as one block.
    return make_session(data, threads=threads, memory_pattern=False)


def _ahead(session: Any, batches: Iterable[F32]) -> Iterator[Mapping[str, F32]]:
    """What `_run` gives for each batch; the next is computed while one is looked at."""
    with ThreadPoolExecutor(1) as worker:
        coming: Future[Mapping[str, F32]] | None = None
        for batch in batches:
            done, coming = coming, worker.submit(_run, session, batch)
            if done:
                yield done.result()
        if coming:
            yield coming.result()


def _run(session: Any, inputs: F32) -> Mapping[str, F32]:
    """Every output by name, and the input."""
    names = [output.name for output in session.get_outputs()]
    face = session.get_inputs()[0].name
    return dict(zip(names, session.run(names, {face: inputs}), strict=True)) | {face: inputs}
