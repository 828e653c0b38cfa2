"""What a network computes before fr-edge touches it: functions from input to embedding.

Neither knows how a face becomes the input: `faces.contract.preprocess` does. torch is imported by
the functions that need it, so a machine without it can still run ONNX.
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

_BATCH = 64


def onnx_embedder(model: bytes) -> Embed:
    """An ONNX model with one input and one output as a function, on onnxruntime's CPU.

    A model with a fixed batch is fed that many faces at a time. Raises ModelError when onnxruntime
    refuses the model or a run of it.
    """
    session = make_session(model)
    face = session.get_inputs()[0]
    fixed = face.shape[0] if isinstance(face.shape[0], int) else None

    def embed(inputs: F32) -> F32:
        results = []
        for part in _parts(inputs, fixed or _BATCH):
            count = len(part)
            if fixed and count < fixed:
                part = np.concatenate([part, np.repeat(part[-1:], fixed - count, axis=0)])
            out = _run(session, face.name, part)[0]
            whole = len(part) == 1 or len(out) == len(part)  # of one face, a squeeze may leave (D,)
            results.append(out.reshape(len(part), -1)[:count] if whole else out)
        return np.concatenate(results).astype(np.float32)

    return embed


def original_embedder(model: bytes) -> Embed:
    """The same for somebody's file, whose batch may be free in name alone: where several faces at
    a time do not give as many embeddings, one at a time is what it was made for."""
    embed = onnx_embedder(model)

    def patient(inputs: F32) -> F32:
        try:
            found = embed(inputs)
            if found.ndim == 2 and len(found) == len(inputs):
                return found
        except ModelError:
            if len(inputs) == 1:
                raise
        return np.concatenate([embed(one[None]) for one in inputs])

    return patient


def run_once(model: bytes, inputs: F32) -> list[npt.NDArray[Any]]:
    """All outputs of a model for one input; raises ModelError when it does not run."""
    session = make_session(model)
    return _run(session, session.get_inputs()[0].name, inputs)


def run_constants(model: bytes) -> list[npt.NDArray[Any]]:
    """All outputs of a model without inputs; raises ModelError when it does not run."""
    session = make_session(model)
    try:
        return list(session.run(None, {}))
    except Exception as error:
        raise ModelError(
            f"the network's constants cannot be computed: {first_line(error)}"
        ) from error


def _parts(inputs: F32, size: int) -> list[F32]:
    return [inputs[start : start + size] for start in range(0, len(inputs), size)]


def _run(session: Any, name: str, inputs: F32) -> list[npt.NDArray[Any]]:
    try:
        return list(session.run(None, {name: inputs}))
    except Exception as error:
        shape = "x".join(map(str, inputs.shape))
        raise ModelError(
            f"the network does not run on an input of {shape}: {first_line(error)}"
        ) from error


# What a network's inner tensors hold for given inputs.


def peaks(model: ModelProto, inputs: F32) -> dict[str, float]:
    """Float tensor -> the largest magnitude it takes; the model's shapes must be inferred."""
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
    data = probe.SerializeToString()
    found = np.max([run_once(data, part) for part in np.array_split(inputs, 4)], axis=0)
    return dict(zip(names, map(float, found), strict=True))


def activations(model: ModelProto, inputs: F32) -> dict[str, npt.NDArray[Any]]:
    """Every tensor that a node of the model makes."""
    probe = ModelProto()
    probe.CopyFrom(model)
    graph = probe.graph
    ends = {output.name for output in graph.output}
    made = [name for node in graph.node for name in node.output if name and name not in ends]
    graph.output.extend(ValueInfoProto(name=name) for name in made)
    order = [output.name for output in graph.output]
    return dict(zip(order, run_once(probe.SerializeToString(), inputs), strict=True))
