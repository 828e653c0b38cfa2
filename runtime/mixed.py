"""The INT8 model with FP16 around it, which strongly typed TensorRT networks take as it is written.

What has no Q and DQ runs in the type of its tensors there: without this, depthwise convolutions
and the head of an INT8 engine would run in FP32.
"""

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

_OPSET, _IR = 19, 9
"""The first that let Q and DQ have FP16 scales; NVIDIA's own quantiser writes it so."""
_LARGEST = np.finfo(np.float16).max
_SMALLEST = np.float16(6e-8)
"""The smallest FP16 above zero: a scale that is rounded to zero would divide by it."""


def mixed_flavour(model: ModelProto) -> ModelProto:
    """A copy of a float32 Q/DQ model that computes in FP16 between them, float32 in and out.

    Weights behind Q and DQ stay float and are rounded with the FP16 scale, so that a scale's
    rounding costs nothing.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    pairs = ("QuantizeLinear", "DequantizeLinear")
    scales = {node.input[1] for node in graph.node if node.op_type in pairs}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = np.clip(numpy_helper.to_array(tensor), -_LARGEST, _LARGEST).astype(np.float16)
            if tensor.name in scales:
                values = np.maximum(values, _SMALLEST)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    face, embedding = graph.input[0].name, graph.output[0].name
    inner = {face: f"{face}_fp16", embedding: f"{embedding}_fp16"}
    nodes = [helper.make_node("Cast", [face], [inner[face]], to=TensorProto.FLOAT16)]
    for node in graph.node:
        new = NodeProto()
        new.CopyFrom(node)
        new.input[:] = [inner.get(name, name) for name in node.input]
        new.output[:] = [inner.get(name, name) for name in node.output]
        nodes.append(new)
    nodes.append(helper.make_node("Cast", [inner[embedding]], [embedding], to=TensorProto.FLOAT))
    graph.ClearField("node")
    graph.ClearField("value_info")
    graph.node.extend(nodes)
    copy.ir_version = max(copy.ir_version, _IR)
    opset = next(o for o in copy.opset_import if o.domain in ("", "ai.onnx"))
    opset.version = max(opset.version, _OPSET)
    return copy
