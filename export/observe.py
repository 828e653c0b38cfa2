"""What a network's inner tensors hold for given inputs."""

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from .reference import Floats, run_once


def peaks(model: ModelProto, inputs: Floats) -> dict[str, float]:
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


def activations(model: ModelProto, inputs: Floats) -> dict[str, npt.NDArray[Any]]:
    """Every tensor that a node of the model makes."""
    probe = ModelProto()
    probe.CopyFrom(model)
    graph = probe.graph
    ends = {output.name for output in graph.output}
    made = [name for node in graph.node for name in node.output if name and name not in ends]
    graph.output.extend(ValueInfoProto(name=name) for name in made)
    order = [output.name for output in graph.output]
    return dict(zip(order, run_once(probe.SerializeToString(), inputs), strict=True))
