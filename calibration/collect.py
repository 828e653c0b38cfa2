"""Run a model over faces and keep histograms of its tensors; memory does not grow with the faces."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from math import prod
from typing import Any

import numpy as np
import onnx

from ..arrays import F32, U8
from ..errors import FacesError, ModelError
from ..faces.contract import InputSpec, preprocess
from ..faces.sources import Faces
from ..graph.prelu import blended
from ..inference import make_session
from ..progress import Track, silent
from . import constants
from .histogram import Histogram, add_values, empty_histogram

# Threads that spin between operators double the CPU time of a network whose operators are short.
_WAITING = {"session.intra_op.allow_spinning": "0"}

_PART = 32  # faces after which all waiting values are counted, so that the histograms are complete


def collect_histograms(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    spec: InputSpec,
    images: Iterable[U8],
    watch: Callable[[Mapping[str, F32]], None] | None = None,
    *,
    histograms: dict[str, Histogram] | None = None,
    counted: Callable[[int], None] | None = None,
) -> dict[str, Histogram]:
    """Histograms of a model's tensors, channel by channel.

    The output of a Flatten is counted as its input, which still has channels.

    Args:
        model: A float model.
        tensors: Names of the tensors to count.
        spec: The model's input contract.
        images: `(112, 112, 3) uint8` RGB each; read once, a few at a time.
        watch: Called with each batch's tensors, name -> `(N, ...) float32`.
        histograms: Tensor -> its values in earlier images, which are counted into.
        counted: Called with the number of images that the histograms hold, every 32 of them.

    Returns:
        Tensor -> its histogram: `histograms`, where it is given.

    Raises:
        FacesError: There is no image.
        ModelError: An activation is not finite.
    """
    return _collect(
        model,
        tensors,
        lambda size: _batches(images, size, spec),
        _channels_second,
        watch,
        {} if histograms is None else histograms,
        counted,
    )


def collect_images(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    inputs: Iterable[F32],
    watch: Callable[[Mapping[str, F32]], None] | None = None,
) -> dict[str, Histogram]:
    """Histograms of a model's tensors over whole images, whose sizes may differ.

    Args:
        model: A float model.
        tensors: Names of the tensors to count.
        inputs: What the network is fed with, `(1, C, H, W) float32` each; read once.
        watch: As `collect_histograms` takes it.

    Returns:
        Tensor -> its histogram.

    Raises:
        FacesError: There is no image.
        ModelError: An activation is not finite.
    """
    return _collect(model, tensors, lambda size: inputs, _places_first, watch, {}, None)


def _collect(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    batches: Callable[[int], Iterable[F32]],
    arranged: Callable[[F32, bool], F32],
    watch: Callable[[Mapping[str, F32]], None] | None,
    histograms: dict[str, Histogram],
    counted: Callable[[int], None] | None,
) -> dict[str, Histogram]:
    flat = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Flatten"}
    sources = {name: flat.get(name, name) for name in tensors}
    last = _channels_last(model) - flat.keys()
    session = _session(model, sorted(set(sources.values())), threads=1)
    waiting: dict[str, list[F32]] = {name: [] for name in tensors}
    size, done = _batch_size(session), 0
    for values in _run_ahead(session, batches(size)):
        for name, source in sources.items():
            waiting[name].append(arranged(values[source], name in last))
            total = sum(part.size for part in waiting[name])
            channels = waiting[name][0].shape[1]
            if total >= min(constants.MIN_CHANNEL_VALUES * channels, constants.MAX_WAITING_VALUES):
                _count(histograms, name, waiting[name])
        if watch:
            watch(values)
        done += len(next(iter(values.values())))
        if done % _PART < size:
            for name in tensors:
                _count(histograms, name, waiting[name])
            if counted:
                counted(done)
    for name in tensors:
        _count(histograms, name, waiting[name])
    if len(histograms) < len(set(tensors)):
        raise FacesError("calibration needs faces, found none", "give --faces SRC")
    return histograms


def embed_model(
    model: onnx.ModelProto,
    spec: InputSpec,
    faces: Faces,
    picks: Sequence[int],
    track: Track = silent,
) -> F32:
    """Embeddings by a model that is not in a bundle, on onnxruntime's CPU.

    Args:
        model: A float or Q/DQ model.
        spec: Its input contract.
        faces: A source of faces.
        picks: Indices of the faces to embed.
        track: Shows progress.

    Returns:
        `(N, D) float32`, as the model gives them, one row for each of `picks`.
    """
    output = model.graph.output[0].name
    session = _session(model, [output])
    fixed = session.get_inputs()[0].shape[0]
    size = fixed if isinstance(fixed, int) else constants.BATCH
    steps = (len(picks) + size - 1) // size
    parts = [
        _run(session, preprocess(batch, spec))[output]
        for batch in track(faces.batches(size, picks), "comparing", steps)
    ]
    return np.concatenate(parts)


def _batches(images: Iterable[U8], size: int, spec: InputSpec) -> Iterator[F32]:
    """Network inputs `(<= size, 3, H, W)`."""
    iterator = iter(images)
    while batch := list(islice(iterator, size)):
        yield preprocess(np.stack(batch), spec)


def _count(histograms: dict[str, Histogram], name: str, waiting: list[F32]) -> None:
    """Count the waiting values of a tensor, and release them."""
    if not waiting:
        return
    values = waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
    waiting.clear()
    if name not in histograms:
        histograms[name] = empty_histogram(values.shape[1])
    try:
        add_values(histograms[name], values)
    except ValueError as error:
        raise ModelError(
            f"{name} is not finite on a real face: the model overflows or is damaged",
            "check the input contract with `fr-edge inspect BUNDLE`, or export again",
        ) from error


def _batch_size(session: Any) -> int:
    """Faces per run that keep the collected values within `MAX_BATCH_VALUES`, or the graph's."""
    if isinstance(fixed := session.get_inputs()[0].shape[0], int):
        return fixed
    shapes = [[d for d in output.shape if isinstance(d, int)] for output in session.get_outputs()]
    values = sum(prod(shape) for shape in shapes)
    return max(1, min(constants.BATCH, constants.MAX_BATCH_VALUES // max(1, values)))


def _channels_last(model: onnx.ModelProto) -> set[str]:
    """Tensors that a MatMul multiplies by weights: it reads their last axis, of any rank."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return {
        node.input[0]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in weights
    }


def _channels_second(values: F32, last: bool) -> F32:
    """`(N, C, ...)`; `last` tells that the last axis holds the channels."""
    return np.moveaxis(values, -1, 1) if last else values


def _places_first(values: F32, last: bool) -> F32:
    """`(places, C)`, so that images of several sizes can wait together."""
    second = _channels_second(values, last)
    return np.ascontiguousarray(np.moveaxis(second, 1, -1).reshape(-1, second.shape[1]))


def _session(model: onnx.ModelProto, outputs: Sequence[str], threads: int | None = None) -> Any:
    """A session of the model with these outputs; `threads` None uses all cores."""
    probe = blended(model)
    inputs = {value.name for value in model.graph.input}
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=n) for n in outputs if n not in inputs)
    data = probe.SerializeToString()
    del probe  # a large network should not be in memory twice while onnxruntime reads it
    return make_session(data, threads=threads, memory_pattern=False, config=_WAITING)


def _run_ahead(session: Any, batches: Iterable[F32]) -> Iterator[Mapping[str, F32]]:
    """What `_run` gives for each batch; the next one runs while the caller uses one."""
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
    if not names:  # of a network whose one layer reads the face; onnxruntime would refuse
        return {face: inputs}
    return dict(zip(names, session.run(names, {face: inputs}), strict=True)) | {face: inputs}
