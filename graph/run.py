"""Runs ONNX networks on onnxruntime's CPU: from input to embedding, and what inner tensors hold.

Inputs are preprocessed already: `faces.contract.preprocess` does that.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from ..arrays import F32
from ..errors import ModelError
from ..inference import first_line, make_session

Embed = Callable[[F32], F32]
"""`(N, 3, H, W) float32 -> (N, D) float32`, any N of 1 or more."""

BATCH = 64  # faces per run


def onnx_embedder(model: bytes) -> Embed:
    """Make a function of an ONNX model with one input and one output.

    Args:
        model: A serialized model. One with a fixed batch is fed that many faces at a time.

    Returns:
        `(N, 3, H, W) float32 -> (N, D) float32`; it raises ModelError when a run fails.

    Raises:
        ModelError: onnxruntime does not load the model.
    """
    session = make_session(model)
    face = session.get_inputs()[0]
    fixed = face.shape[0] if isinstance(face.shape[0], int) else None

    def embed(inputs: F32) -> F32:
        results = []
        for part in split_batches(inputs, fixed or BATCH):
            count = len(part)
            if fixed and count < fixed:
                part = np.concatenate([part, np.repeat(part[-1:], fixed - count, axis=0)])
            out = _run(session, face.name, part)[0]
            whole = len(part) == 1 or len(out) == len(part)  # of one face, a squeeze may leave (D,)
            results.append(out.reshape(len(part), -1)[:count] if whole else out)
        return np.concatenate(results).astype(np.float32)

    return embed


def original_embedder(model: bytes) -> Embed:
    """Make a function of a foreign ONNX model, whose batch may be free in name only.

    Where several faces at a time do not give as many embeddings, they are run one at a time.

    Args:
        model: A serialized model with one input and one output.

    Returns:
        `(N, 3, H, W) float32 -> (N, D) float32`; it raises ModelError when a run fails.

    Raises:
        ModelError: onnxruntime does not load the model.
    """
    embed = onnx_embedder(model)

    def embed_any(inputs: F32) -> F32:
        try:
            embeddings = embed(inputs)
            if embeddings.ndim == 2 and len(embeddings) == len(inputs):
                return embeddings
        except ModelError:
            if len(inputs) == 1:
                raise
        return np.concatenate([embed(face[None]) for face in inputs])

    return embed_any


def run_once(model: bytes, inputs: F32) -> list[npt.NDArray[Any]]:
    """Run a model once.

    Args:
        model: A serialized model with one input.
        inputs: `(N, 3, H, W) float32`.

    Returns:
        All its outputs.

    Raises:
        ModelError: The model does not load or run.
    """
    session = make_session(model)
    return _run(session, session.get_inputs()[0].name, inputs)


def split_batches(inputs: F32, size: int) -> list[F32]:
    """Cut an array into batches.

    Args:
        inputs: `(N, ...) float32`.
        size: Rows per batch; the last may have fewer.

    Returns:
        Views of the array.
    """
    return [inputs[start : start + size] for start in range(0, len(inputs), size)]


def peaks(model: ModelProto, inputs: F32) -> dict[str, float]:
    """Find the largest magnitude of each float tensor.

    Args:
        model: A model with inferred shapes.
        inputs: `(N, 3, H, W) float32`, N at least 4.

    Returns:
        Tensor -> its largest magnitude over all inputs.

    Raises:
        ModelError: The model does not run.
    """
    probe = ModelProto()
    probe.CopyFrom(model)
    graph = probe.graph
    names = [
        value.name
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    ]
    del graph.output[:]
    for name in names:
        size, top = f"{name}#abs", f"{name}#peak"
        graph.node.append(helper.make_node("Abs", [name], [size]))
        graph.node.append(helper.make_node("ReduceMax", [size], [top], keepdims=0))
        graph.output.append(helper.make_tensor_value_info(top, TensorProto.FLOAT, ()))
    session = make_session(probe.SerializeToString())
    face = session.get_inputs()[0]
    batch = face.shape[0] if isinstance(face.shape[0], int) else -(-len(inputs) // 4)
    parts = split_batches(inputs, batch)
    tops = np.max([_run(session, face.name, part) for part in parts], axis=0)
    return dict(zip(names, map(float, tops), strict=True))


def activations(model: ModelProto, inputs: F32) -> dict[str, npt.NDArray[Any]]:
    """Give what each inner tensor holds.

    Args:
        model: A model with one input.
        inputs: `(N, 3, H, W) float32`.

    Returns:
        Tensor -> its numbers, of every tensor that a node makes.

    Raises:
        ModelError: The model does not run.
    """
    probe = ModelProto()
    probe.CopyFrom(model)
    graph = probe.graph
    ends = {output.name for output in graph.output}
    inner = [name for node in graph.node for name in node.output if name and name not in ends]
    graph.output.extend(ValueInfoProto(name=name) for name in inner)
    order = [output.name for output in graph.output]
    return dict(zip(order, run_once(probe.SerializeToString(), inputs), strict=True))


def _run(session: Any, name: str, inputs: F32) -> list[npt.NDArray[Any]]:
    try:
        return list(session.run(None, {name: inputs}))
    except Exception as error:  # onnxruntime's exception classes share no base of their own
        shape = "x".join(map(str, inputs.shape))
        raise ModelError(
            f"the network does not run on an input of {shape}: {first_line(error)}"
        ) from error
