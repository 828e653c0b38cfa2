"""Half precision as a graph: the strongly typed FP16 model, and its emulation in float32.

Which nodes stay float32 is half.py's to say.
"""

import warnings
from collections.abc import Collection, MutableSequence

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..errors import ModelError
from .edit import attribute, fresh, makers, prune, reads, sort_nodes
from .shapes import tensor_types

LARGEST = float(np.finfo(np.float16).max)


def to_fp16(model: ModelProto, kept: set[str]) -> ModelProto:
    """The FP16 model, nodes named in `kept` in float32; input and output are float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = ModelProto()
    copy.CopyFrom(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of every weight that is rounded; half.py counts
            half: ModelProto = convert_float_to_float16(
                copy, keep_io_types=True, node_block_list=sorted(kept)
            )
        half.graph.ClearField("value_info")
        sort_nodes(half.graph)
        _join_casts(half.graph)
        half = onnx.shape_inference.infer_shapes(half, strict_mode=True, data_prop=True)
        onnx.checker.check_model(half, full_check=True)
    except (
        ValueError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as error:
        line = str(error).strip().splitlines()[0]
        raise ModelError(f"onnxruntime's converter failed: {line}") from error
    return half


def emulate_fp16(model: ModelProto, kept: set[str]) -> ModelProto:
    """A float32 model that computes as the FP16 one: weights and every tensor rounded to half.

    Sums stay float32, as tensor cores make them. A rounded tensor keeps its name.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    floats = {
        value.name
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    narrow = [node for node in graph.node if node.name not in kept]
    rounded = {name for node in narrow for name in (*reads(node), *node.output)}
    for tensor in graph.initializer:
        if tensor.name in rounded and tensor.data_type == TensorProto.FLOAT:
            half = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    for name in sorted(floats & rounded):
        _round(graph, name)
    sort_nodes(graph)
    return copy


def _round(graph: GraphProto, name: str) -> None:
    """float32 -> FP16 -> float32 between the maker of a tensor and its readers."""
    maker = makers(graph).get(name)
    if maker is None:  # the image
        source, result = name, fresh(graph, f"{name}_rounded")
        for node in graph.node:
            _replace(node.input, name, result)
    else:
        source, result = fresh(graph, f"{name}_exact"), name
        _replace(maker.output, name, source)
    half = fresh(graph, f"{name}_half")
    graph.node.append(helper.make_node("Cast", [source], [half], to=TensorProto.FLOAT16))
    graph.node.append(helper.make_node("Cast", [half], [result], to=TensorProto.FLOAT))


def _join_casts(graph: GraphProto) -> None:
    """float32 -> FP16 -> float32 between two float32 nodes would overflow: connect them."""
    made = makers(graph)
    for node in graph.node:
        source = made.get(node.input[0]) if node.op_type == "Cast" else None
        if source is None or source.op_type != "Cast":
            continue
        if attribute(node, "to", 0) != TensorProto.FLOAT:
            continue
        if attribute(source, "to", 0) != TensorProto.FLOAT16:
            continue
        if node.output[0] in {output.name for output in graph.output}:
            node.op_type = "Identity"
            node.ClearField("attribute")
            node.input[0] = source.input[0]
        else:
            for reader in graph.node:
                _replace(reader.input, node.output[0], source.input[0])
    prune(graph)


def _replace(names: MutableSequence[str], old: str, new: str) -> None:
    for index, name in enumerate(names):
        if name == old:
            names[index] = new


# The INT8 model with FP16 around it, which strongly typed TensorRT networks take as it is written.
#
# What has no Q and DQ runs in the type of its tensors there: without this, depthwise convolutions
# and the head of an INT8 engine would run in FP32. Nodes that overflow FP16 stay FP32.

_OPSET, _IR = 19, 9
"""The first that let Q and DQ have FP16 scales; NVIDIA's own quantiser writes it so."""

_LARGEST, _SMALLEST = np.finfo(np.float16).max, np.float16(6e-8)
"""Of FP16; a scale that is rounded to zero would divide by it."""

_PAIRS = ("QuantizeLinear", "DequantizeLinear")

_TYPES = {True: TensorProto.FLOAT, False: TensorProto.FLOAT16}


def int8_fp16_model(model: ModelProto, wide: Collection[str] = ()) -> ModelProto:
    """A copy of a float32 Q/DQ model that computes in FP16 between them, float32 in and out.

    `wide` names nodes that stay FP32. Weights behind Q and DQ stay float and are rounded with the
    FP16 scale, so that a scale's rounding costs nothing.
    """
    writer = _Writer(model, wide)
    for node in model.graph.node:
        writer.add(node)
    copy = ModelProto()
    copy.CopyFrom(model)
    for field in ("node", "initializer", "value_info"):
        copy.graph.ClearField(field)
    copy.graph.node.extend(writer.nodes)
    read = {name for node in writer.nodes for name in node.input}
    tensors = (numpy_helper.from_array(v, n) for n, v in writer.weights.items() if n in read)
    copy.graph.initializer.extend(tensors)
    copy.ir_version = max(copy.ir_version, _IR)
    opset = next(o for o in copy.opset_import if o.domain in ("", "ai.onnx"))
    opset.version = max(opset.version, _OPSET)
    return copy


def wide_nodes(half: ModelProto) -> set[str]:
    """The nodes of an FP16 flavour that compute in FP32 all the same; Cast, Q and DQ aside."""
    types = tensor_types(half)
    wide = {name for name, found in types.items() if found.elem_type == TensorProto.FLOAT}
    return {
        node.name
        for node in half.graph.node
        if node.op_type not in ("Cast", *_PAIRS) and node.output[0] in wide
    }


class _Writer:
    """Writes the nodes anew, one after the other, and Casts where FP32 and FP16 meet."""

    def __init__(self, model: ModelProto, wide: Collection[str]) -> None:
        graph = model.graph
        self.nodes: list[NodeProto] = []
        self.weights = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self._wide = set(wide)
        self._scales = {node.input[1] for node in graph.node if node.op_type in _PAIRS}
        self._ends = {output.name for output in graph.output}
        # Of each tensor the name of its FP32 (True) and FP16 (False) form, as far as written.
        self._forms = {value.name: {True: value.name} for value in graph.input}
        self._pairs: dict[str, NodeProto] = {}

    def add(self, node: NodeProto) -> None:
        if node.op_type == "DequantizeLinear":
            self._pairs[node.output[0]] = node  # written in the form its readers want
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
