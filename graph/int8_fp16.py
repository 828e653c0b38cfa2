"""The INT8 model with FP16 around it, which strongly typed TensorRT networks run as written.

What has no Q and DQ runs in the type of its tensors there: without this, depthwise convolutions
and the head of an INT8 engine would run in FP32. Nodes that overflow FP16 stay FP32.
"""

from collections.abc import Collection

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .edit import write_newer_forms
from .shapes import tensor_types

_OPSET, _IR_VERSION = 19, 9  # the first whose Q and DQ take FP16 scales; NVIDIA's quantizer, too

_REDUCTION_OPSET = 18  # from here on axes are an input

_LARGEST = np.finfo(np.float16).max

_SMALLEST = np.float16(6e-8)  # a scale that is rounded to zero would divide by it

_PAIRS = ("QuantizeLinear", "DequantizeLinear")

_TYPES = {True: TensorProto.FLOAT, False: TensorProto.FLOAT16}


def int8_fp16_model(model: ModelProto, wide: Collection[str] = ()) -> ModelProto:
    """Convert what lies between Q and DQ to FP16.

    Weights in front of Q and DQ stay float32 and are quantized with the FP16 scale, so that the
    rounding of a scale costs nothing.

    Args:
        model: A float32 Q/DQ model.
        wide: Names of the nodes that stay FP32.

    Returns:
        A copy with float32 input and output, of opset 19 or later.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    opset = next(o for o in copy.opset_import if o.domain in ("", "ai.onnx"))
    if opset.version < _REDUCTION_OPSET:
        write_newer_forms(copy.graph)
    writer = _Writer(copy, wide)
    for node in copy.graph.node:
        writer.add(node)
    for field in ("node", "initializer", "value_info"):
        copy.graph.ClearField(field)
    copy.graph.node.extend(writer.nodes)
    read = {name for node in writer.nodes for name in node.input}
    tensors = (numpy_helper.from_array(v, n) for n, v in writer.weights.items() if n in read)
    copy.graph.initializer.extend(tensors)
    copy.ir_version = max(copy.ir_version, _IR_VERSION)
    opset.version = max(opset.version, _OPSET)
    return copy


def wide_nodes(half: ModelProto) -> set[str]:
    """Find the nodes of an FP16 model that compute in FP32.

    Args:
        half: An FP16 model, or an INT8 one with FP16 around it.

    Returns:
        Their names; Cast, Q and DQ are not counted.
    """
    types = tensor_types(half)
    wide = {name for name, kind in types.items() if kind.elem_type == TensorProto.FLOAT}
    return {
        node.name
        for node in half.graph.node
        if node.op_type not in ("Cast", *_PAIRS) and node.output[0] in wide
    }


class _Writer:
    """Copies the nodes one after the other, and adds Casts where FP32 and FP16 meet."""

    def __init__(self, model: ModelProto, wide: Collection[str]) -> None:
        graph = model.graph
        self.nodes: list[NodeProto] = []
        self.weights = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self._wide = set(wide)
        self._scales = {node.input[1] for node in graph.node if node.op_type in _PAIRS}
        self._ends = {output.name for output in graph.output}
        # Tensor -> the names of its FP32 (True) and FP16 (False) form, as far as they are written.
        self._forms = {value.name: {True: value.name} for value in graph.input}
        self._pairs: dict[str, NodeProto] = {}

    def add(self, node: NodeProto) -> None:
        if node.op_type == "DequantizeLinear":
            self._pairs[node.output[0]] = node  # written where a reader asks for it
            return
        wide = node.name in self._wide
        if node.op_type == "QuantizeLinear":
            known = self._forms.get(node.input[0], {})
            wide = node.input[0] not in self.weights and True in known and False not in known
        new = NodeProto()
        new.CopyFrom(node)
        new.input[:] = [self._form(name, wide) for name in node.input]
        if node.op_type == "QuantizeLinear":
            self.nodes.append(new)
            return
        new.output[:] = [n if wide or n not in self._ends else f"{n}_fp16" for n in node.output]
        self.nodes.append(new)
        for name, written in zip(node.output, new.output, strict=True):
            self._forms[name] = {wide: written}
            if name in self._ends and not wide:
                self._cast(written, name, True)

    def _form(self, name: str, wide: bool) -> str:
        """The tensor's name in FP32 or FP16; what is neither keeps its own."""
        if name in self.weights:
            return self._weight(name, wide)
        if name in self._pairs:
            return self._dequantised(name, wide)
        forms = self._forms.get(name)
        if forms is None:  # integers
            return name
        if wide not in forms:
            forms[wide] = f"{name}_{'fp32' if wide else 'fp16'}"
            self._cast(forms[not wide], forms[wide], wide)
        return forms[wide]

    def _dequantised(self, name: str, wide: bool) -> str:
        node = self._pairs[name]
        forms = self._forms.setdefault(name, {})
        if wide not in forms:
            forms[wide] = f"{name}_fp32" if wide else name
            new = NodeProto()
            new.CopyFrom(node)
            new.input[1] = self._weight(node.input[1], wide)
            new.output[0] = forms[wide]
            new.name = f"{node.name}_fp32" if wide else node.name
            self.nodes.append(new)
        return forms[wide]

    def _weight(self, name: str, wide: bool) -> str:
        values = self.weights[name]
        if values.dtype != np.float32:
            return name
        form = f"{name}_{'fp32' if wide else 'fp16'}"
        if form not in self.weights:
            half = np.clip(values, -_LARGEST, _LARGEST).astype(np.float16)
            if name in self._scales:
                half = np.maximum(half, _SMALLEST)
                # Both forms of a scale are the same number, or Q and DQ would not be inverse.
                values = half.astype(np.float32)
            self.weights[form] = values if wide else half
        return form

    def _cast(self, source: str, target: str, wide: bool) -> None:
        self.nodes.append(helper.make_node("Cast", [source], [target], to=_TYPES[wide]))
