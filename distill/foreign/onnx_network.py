"""ONNX face networks as torch modules, so that a teacher runs on the GPU that trains.

The operators are those of convolutional face networks as trainers export them, opsets 7 to 21; others are
refused by name. Weights are as in the file; nothing of it is executed but these operators.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from ...errors import ModelError

Operator = Callable[..., Tensor]


class OnnxNetwork(nn.Module):
    """A network that computes an ONNX graph's first output.

    Args:
        model: A checked model with one image input.

    Raises:
        ModelError: It has an operator, or a form of one, that is not known here.
    """

    def __init__(self, model: ModelProto) -> None:
        super().__init__()
        self._constants: dict[str, Tensor] = {}  # whole numbers: shapes, which stay on the host
        self._names: dict[str, str] = {}
        for tensor in model.graph.initializer:
            self._add(tensor.name, numpy_helper.to_array(tensor))
        self._steps: list[tuple[Operator, dict[str, Any], list[str], str]] = []
        for node in model.graph.node:
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Constant" and "value" in attributes:
                self._add(node.output[0], numpy_helper.to_array(attributes["value"]))
                continue
            step = (_operator(node, attributes), attributes, list(node.input), node.output[0])
            self._steps.append(step)
        self.input_name = next(
            i.name for i in model.graph.input if i.name not in {*self._names, *self._constants}
        )
        self.output_name = model.graph.output[0].name

    def forward(self, images: Tensor) -> Tensor:
        """The first output.

        Args:
            images: `(N, 3, H, W) float32`.
        """
        values = {self.input_name: images, **self._constants}
        values |= {name: getattr(self, buffer) for name, buffer in self._names.items()}
        for operator, attributes, inputs, output in self._steps:
            given = [values[name] if name else None for name in inputs]
            values[output] = operator(attributes, *given)
        return values[self.output_name]

    def _add(self, name: str, array: Any) -> None:
        tensor = torch.from_numpy(np.array(array))
        if not tensor.is_floating_point():
            self._constants[name] = tensor
            return
        self._names[name] = f"weight{len(self._names)}"
        self.register_buffer(self._names[name], tensor.float())


def _operator(node: NodeProto, attributes: Mapping[str, Any]) -> Operator:
    operator = _OPERATORS.get(node.op_type)
    odd = [
        name
        for name, usual in (
            ("auto_pad", (b"", b"NOTSET")),
            ("ceil_mode", (0,)),
            ("training_mode", (0,)),
        )
        if name in attributes and attributes[name] not in usual
    ]
    if operator is None or odd or node.domain not in ("", "ai.onnx"):
        detail = f" with {odd[0]}" if odd else ""
        raise ModelError(
            f"operator {node.op_type}{detail} of the ONNX file is not known to torch here",
            "give the teacher's torch weights",
        )
    return operator


def _padded(x: Tensor, attributes: Mapping[str, Any], value: float = 0.0) -> Tensor:
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    if not any((top, left, bottom, right)):
        return x
    return functional.pad(x, (left, right, top, bottom), value=value)


def _conv(a: Mapping[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.conv2d(
        _padded(x, a),
        weight,
        bias,
        tuple(a.get("strides", (1, 1))),
        0,
        tuple(a.get("dilations", (1, 1))),
        a.get("group", 1),
    )


def _batch_norm(
    a: Mapping[str, Any], x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor
) -> Tensor:
    return functional.batch_norm(x, mean, var, scale, bias, False, 0.0, a.get("epsilon", 1e-5))


def _gemm(a: Mapping[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x = x.T if a.get("transA", 0) else x
    weight = weight.T if a.get("transB", 0) else weight
    out: Tensor = a.get("alpha", 1.0) * (x @ weight)
    if bias is not None:
        out = out + a.get("beta", 1.0) * bias
    return out


def _max_pool(a: Mapping[str, Any], x: Tensor) -> Tensor:
    x = _padded(x, a, -torch.inf)
    return functional.max_pool2d(x, tuple(a["kernel_shape"]), tuple(a.get("strides", (1, 1))))


def _average_pool(a: Mapping[str, Any], x: Tensor) -> Tensor:
    size, strides = tuple(a["kernel_shape"]), tuple(a.get("strides", (1, 1)))
    sums = functional.avg_pool2d(_padded(x, a), size, strides)
    if a.get("count_include_pad", 0) or not any(a.get("pads", ())):
        return sums
    return sums / functional.avg_pool2d(_padded(torch.ones_like(x[:1, :1]), a), size, strides)


def _flatten(a: Mapping[str, Any], x: Tensor) -> Tensor:
    axis = a.get("axis", 1) % (x.ndim + 1)
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


def _reshape(a: Mapping[str, Any], x: Tensor, shape: Tensor) -> Tensor:
    sizes = [x.shape[k] if s == 0 else s for k, s in enumerate(shape.tolist())]
    return x.reshape(sizes)


def _prelu(a: Mapping[str, Any], x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _clip(
    a: Mapping[str, Any], x: Tensor, low: Tensor | None = None, high: Tensor | None = None
) -> Tensor:
    least = float(low) if low is not None else a.get("min", -torch.inf)
    most = float(high) if high is not None else a.get("max", torch.inf)
    return x.clamp(least, most)


def _unsqueeze(a: Mapping[str, Any], x: Tensor, axes: Tensor | None = None) -> Tensor:
    for axis in sorted(a["axes"] if axes is None else axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _squeeze(a: Mapping[str, Any], x: Tensor, axes: Tensor | None = None) -> Tensor:
    wanted: Sequence[int] = a.get("axes", ()) if axes is None else axes.tolist()
    for axis in sorted((axis % x.ndim for axis in wanted), reverse=True):
        x = x.squeeze(axis)
    return x


def _gather(a: Mapping[str, Any], x: Tensor, indices: Tensor) -> Tensor:
    axis = a.get("axis", 0)
    picked = x.index_select(axis, indices.reshape(-1) % x.shape[axis])
    return picked.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


_OPERATORS: dict[str, Operator] = {
    "Add": lambda a, x, y: x + y,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": lambda a, *parts: torch.cat(parts, a["axis"]),
    "Conv": _conv,
    "Div": lambda a, x, y: x / y,
    "Dropout": lambda a, x, *_: x,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda a, x: x.mean((2, 3), keepdim=True),
    "Identity": lambda a, x: x,
    "LeakyRelu": lambda a, x: functional.leaky_relu(x, a.get("alpha", 0.01)),
    "MatMul": lambda a, x, y: x @ y,
    "MaxPool": _max_pool,
    "Mul": lambda a, x, y: x * y,
    "PRelu": _prelu,
    "Relu": lambda a, x: x.relu(),
    "Reshape": _reshape,
    "Shape": lambda a, x: torch.tensor(x.shape),
    "Sigmoid": lambda a, x: x.sigmoid(),
    "Squeeze": _squeeze,
    "Sub": lambda a, x, y: x - y,
    "Transpose": lambda a, x: x.permute(*a["perm"]),
    "Unsqueeze": _unsqueeze,
}
