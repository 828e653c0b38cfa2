"""Random networks of what scales, moves, joins and gates channels; for `(2, 3, 4, 4) float32`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 4
KINDS = [
    "conv", "conv", "depthwise", "relu", "prelu", "norm", "product", "sum", "pool", "pad", "excite",
    "gate", "add", "max", "concat", "split", "slice", "gather", "shuffle", "turn",
]  # fmt: skip


class RandomGraph:
    """Grows by a node or a few at a time; `ends` are tensors with their channels."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: dict[str, np.ndarray] = {}
        self.ends: list[tuple[str, int]] = [("x", 3)]

    def constant(self, values: Any) -> str:
        array, name = np.asarray(values), f"constant_{len(self.arrays)}"
        self.arrays[name] = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        return name

    def add(self, op: str, inputs: Sequence[str], count: int = 1, **attributes: Any) -> list[str]:
        names = [f"t{len(self.nodes)}_{i}" for i in range(count)]
        self.nodes.append(
            helper.make_node(op, inputs, names, f"node_{len(self.nodes)}", **attributes)
        )
        return names

    def conv(self, tensor: str, inputs: int, outputs: int, groups: int = 1) -> str:
        weights = self.random.standard_normal((outputs, inputs // groups, 1, 1))
        scaled = self.constant(weights / np.sqrt(inputs // groups))
        return self.add("Conv", [tensor, scaled], group=groups)[0]

    def grow(self) -> None:
        random = self.random
        tensor, channels = self.ends[random.integers(max(0, len(self.ends) - 4), len(self.ends))]
        kind = random.choice(KINDS)
        each = (channels, 1, 1)
        if kind == "conv":
            outputs = int(random.choice([4, 6, 8, 12]))
            self.ends.append((self.conv(tensor, channels, outputs), outputs))
        elif kind == "depthwise":
            self.ends.append((self.conv(tensor, channels, channels, channels), channels))
        elif kind in ("gate", "add", "max", "concat"):
            self.join(kind, tensor, channels)
        elif kind in ("split", "slice", "gather"):
            self.take(kind, tensor, channels)
        elif kind in ("shuffle", "turn"):
            self.move(kind, tensor, channels)
        else:
            if kind == "relu":
                (made,) = self.add("Relu", [tensor])
            elif kind == "prelu":
                (made,) = self.add("PRelu", [tensor, self.constant(random.uniform(0, 0.5, each))])
            elif kind == "norm":
                parts = [random.uniform(0.5, 2, channels) for _ in range(4)]
                (made,) = self.add("BatchNormalization", [tensor, *map(self.constant, parts)])
            elif kind in ("product", "sum"):
                op = random.choice(["Mul", "Div"] if kind == "product" else ["Add", "Sub"])
                (made,) = self.add(op, [tensor, self.constant(random.uniform(0.5, 2, each))])
            elif kind == "pad":
                pads = self.constant([0, 0, 1, 1, 0, 0, 0, 0])
                (wide,) = self.add("Pad", [tensor, pads])
                (made,) = self.add("MaxPool", [wide], kernel_shape=[2, 2])
            elif kind == "pool":
                (made,) = self.add("AveragePool", [tensor], kernel_shape=[3, 3], pads=[1] * 4)
            else:  # squeeze and excite
                (mean,) = self.add("GlobalAveragePool", [tensor])
                (small,) = self.add("Relu", [self.conv(mean, channels, 4)])
                (gate,) = self.add("Sigmoid", [self.conv(small, 4, channels)])
                (made,) = self.add("Mul", [tensor, gate])
            self.ends.append((made, channels))

    def join(self, kind: str, tensor: str, channels: int) -> None:
        others = [end for end in self.ends if end[0] != tensor]
        if kind != "concat":
            others = [end for end in others if end[1] == channels]
        if others:
            other, more = others[self.random.integers(len(others))]
            if kind == "concat" and channels + more <= 24:
                (made,) = self.add("Concat", [tensor, other], axis=1)
                self.ends.append((made, channels + more))
            elif kind != "concat":
                op = {"gate": "Mul", "add": "Add", "max": "Max"}[kind]
                (made,) = self.add(op, [tensor, other])
                self.ends.append((made, channels))

    def take(self, kind: str, tensor: str, channels: int) -> None:
        if kind == "split" and channels > 2:
            sizes = [channels // 2, channels - channels // 2]
            halves = self.add("Split", [tensor, self.constant(sizes)], 2, axis=1)
            self.ends += zip(halves, sizes, strict=True)
        elif kind == "slice" and channels > 2:
            first, step = self.random.integers(0, 2), self.random.integers(1, 3)
            numbers = map(self.constant, ([first], [channels], [1], [step]))
            (made,) = self.add("Slice", [tensor, *numbers])
            self.ends.append((made, len(range(first, channels, step))))
        elif kind == "gather":
            picks = self.random.permutation(channels)[: max(2, channels - 1)]
            (made,) = self.add("Gather", [tensor, self.constant(picks)], axis=1)
            self.ends.append((made, len(picks)))

    def move(self, kind: str, tensor: str, channels: int) -> None:
        spoilt = self.random.random() < 0.2
        if kind == "turn":
            (last,) = self.add("Transpose", [tensor], perm=[0, 2, 3, 1])
            (last,) = self.add("Sigmoid" if spoilt else "Relu", [last])
            (made,) = self.add("Transpose", [last], perm=[0, 3, 1, 2])
            self.ends.append((made, channels))
        elif channels % 2 == 0:
            pairs = self.constant([2, 2, channels // 2, SIDE, SIDE])
            (apart,) = self.add("Reshape", [tensor, pairs])
            (mixed,) = self.add("Transpose", [apart], perm=[0, 2, 1, 3, 4])
            if spoilt:
                (mixed,) = self.add("Sigmoid", [mixed])
            whole = self.constant([2, channels, SIDE, SIDE])
            self.ends.append((self.add("Reshape", [mixed, whole])[0], channels))

    def model(self) -> onnx.ModelProto:
        """The last three ends go through a layer each into an embedding."""
        last = [self.conv(tensor, channels, 5) for tensor, channels in self.ends[-3:]]
        while len(last) > 1:
            last[:2] = self.add("Add", last[:2])
        how = self.random.integers(4)
        if how == 0:
            (end,) = self.add("Reshape", [*last, self.constant([2, -1])])
        elif how == 1:
            (end,) = self.add("Transpose", last, perm=[1, 0, 2, 3])
        else:
            (flat,) = self.add("Flatten", last)
            columns = self.constant(self.random.standard_normal((5 * SIDE * SIDE, 6)))
            (end,) = self.add("Gemm", [flat, columns])
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 3, SIDE, SIDE))],
            [helper.make_tensor_value_info(end, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, name) for name, array in self.arrays.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def random_model(seed: int) -> onnx.ModelProto:
    graph = RandomGraph(seed)
    for _ in range(int(graph.random.integers(6, 18))):
        graph.grow()
    return graph.model()
