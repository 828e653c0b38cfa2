"""Small face networks as people bring them, built by hand: knobs for what differs between files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from fr_edge.export.batchnorm import fold_batchnorm
from fr_edge.export.canonicalize import finish, normal_form, tidy
from fr_edge.faces.contract import PRESETS, InputSpec

DIM = 16


class Graph:
    """Nodes and weights in the making."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.random = np.random.default_rng(seed)

    def add(self, op: str, inputs: Sequence[str], out: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [out], f"n_{out}", **attributes))
        return out

    def weight(self, name: str, *shape: int, scale: float = 1.0) -> str:
        fan = max(1, int(np.prod(shape[1:])))
        self.weights[name] = np.float32(self.random.normal(0, scale / np.sqrt(fan), shape))
        return name

    def constant(self, name: str, array: Any) -> str:
        self.weights[name] = np.asarray(array)
        return name

    def norm(self, source: str, channels: int, out: str) -> str:
        draw = self.random
        parts = {
            "gamma": draw.uniform(0.5, 1.5, channels),
            "beta": draw.normal(0, 0.3, channels),
            "mean": draw.normal(0, 0.3, channels),
            "var": draw.uniform(0.5, 2, channels),
        }
        names = [self.constant(f"{out}_{k}", np.float32(v)) for k, v in parts.items()]
        return self.add("BatchNormalization", [source, *names], out, epsilon=1e-3)

    def block(self, source: str, inp: int, out: int, name: str, stride: int, group: int = 1) -> str:
        w = self.weight(f"{name}_w", out, inp // group, 3, 3)
        self.add("Conv", [source, w], f"{name}_conv", pads=[1] * 4, strides=[stride] * 2,
                 group=group, kernel_shape=[3, 3])  # fmt: skip
        self.norm(f"{name}_conv", out, f"{name}_norm")
        slope = self.constant(f"{name}_slope", np.float32(self.random.uniform(0, 0.5, (out, 1, 1))))
        return self.add("PRelu", [f"{name}_norm", slope], name)

    def model(
        self, opset: int, face: Sequence[Any], output: Sequence[Any], end: str, start: str
    ) -> ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info(start, TensorProto.FLOAT, face)],
            [helper.make_tensor_value_info(end, TensorProto.FLOAT, output)],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        ir = 4 if opset < 10 else 8 if opset < 18 else 10
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir
        )


def build(
    opset: int = 13,
    batch: int | str = "N",
    flatten: str = "Flatten",
    head: str = "Gemm",
    size: tuple[int, int] = (112, 112),
    inside: bool = False,
    nhwc: bool = False,
    unit: bool = False,
    start: str = "data",
    end: str = "fc1",
    seed: int = 0,
) -> ModelProto:
    """A network of 4 convolutions; see the knobs' names.

    `flatten`: Flatten, Reshape (batch written in), shape (Shape and Gather), minus (1, -1),
    squeeze or squeeze all (no axes). `head`: Gemm, MatMul (then Add) or Conv (rank 4 until the flatten). `inside`: mean and
    std in the graph. `unit`: L2-normalised output.
    """
    g = Graph(seed)
    height, width = size
    x = start
    if nhwc:
        x = g.add("Transpose", [x], "first", perm=[0, 3, 1, 2])
    if inside:
        x = g.add("Sub", [x, g.constant("mean", np.float32(127.5))], "centred")
        x = g.add("Mul", [x, g.constant("scale", np.float32(1 / 128))], "scaled")
    x = g.block(x, 3, 8, "a", 4)
    x = g.block(x, 8, 8, "b", 4, group=8)
    y = g.block(x, 8, 8, "c", 1)
    x = g.add("Add", [x, y], "sum")
    g.add("Conv", [x, g.weight("d_w", 16, 8, 1, 1)], "d", kernel_shape=[1, 1])
    x = g.norm("d", 16, "d_norm")
    h, w = -(-height // 16), -(-width // 16)
    inner = 16 * h * w
    if head == "Conv":
        x = g.add("Conv", [x, g.weight("g_w", DIM, 16, h, w)], "g", kernel_shape=[h, w])
        inner = DIM
    x = _flat(g, x, flatten, inner, opset, 1 if isinstance(batch, str) else batch)
    if head == "Gemm":
        x = g.add("Gemm", [x, g.weight("e_w", DIM, inner)], "e", transB=1, alpha=1.0, beta=1.0)
        g.nodes[-1].input.append(g.weight("e_b", DIM))
    elif head == "MatMul":
        x = g.add("MatMul", [x, g.weight("e_w", inner, DIM)], "e")
        x = g.add("Add", [x, g.weight("e_b", DIM)], "e_biased")
    if unit:
        x = g.norm(x, DIM, "raw")
        if opset < 18:
            g.add("ReduceL2", [x], "length", axes=[1], keepdims=1)
        else:
            g.add("ReduceL2", [x, g.constant("row", np.int64([1]))], "length", keepdims=1)
        g.add("Div", [x, "length"], end)
    else:
        g.norm(x, DIM, end)
    face = [batch, height, width, 3] if nhwc else [batch, 3, height, width]
    return g.model(opset, face, [batch, DIM], end, start)


def _flat(g: Graph, x: str, how: str, inner: int, opset: int, batch: int) -> str:
    if how == "Flatten":
        return g.add("Flatten", [x], "flat", axis=1)
    if how == "Reshape":
        return g.add("Reshape", [x, g.constant("shape", np.int64([batch, inner]))], "flat")
    if how == "minus":
        return g.add("Reshape", [x, g.constant("shape", np.int64([batch, -1]))], "flat")
    if how == "squeeze all":
        return g.add("Squeeze", [x], "flat")
    if how == "squeeze":
        if opset < 13:
            return g.add("Squeeze", [x], "flat", axes=[2, 3])
        return g.add("Squeeze", [x, g.constant("axes", np.int64([2, 3]))], "flat")
    g.add("Shape", [x], "shape_of")
    g.add("Gather", ["shape_of", g.constant("zero", np.int64(0))], "count", axis=0)
    if opset < 13:
        g.add("Unsqueeze", ["count"], "count_1", axes=[0])
    else:
        g.add("Unsqueeze", ["count", g.constant("axes", np.int64([0]))], "count_1")
    g.add("Concat", ["count_1", g.constant("minus", np.int64([-1]))], "shape", axis=0)
    return g.add("Reshape", [x, "shape"], "flat")


@pytest.fixture
def save(tmp_path: Path) -> Callable[[ModelProto], Path]:
    def write(model: ModelProto) -> Path:
        path = tmp_path / "given.onnx"
        onnx.save(model, str(path))
        return path

    return write


def standard(model: ModelProto, spec: InputSpec = PRESETS["insightface"]) -> ModelProto:
    """Everything export does to a graph, but onnxsim (a process of its own, and slow)."""
    result = normal_form(tidy(model), spec)
    folded, _ = fold_batchnorm(result)
    return finish(folded, spec)


def run(model: ModelProto, faces: np.ndarray) -> np.ndarray:
    """What onnxruntime makes of it, `(N, D)`; a plain session, none of fr-edge's."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    outputs: np.ndarray = session.run(None, {session.get_inputs()[0].name: faces})[0]
    return outputs


def noise(count: int, *shape: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, *shape)).astype(np.float32)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The lowest cosine between rows."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """`build`, `standard`, `run`, `noise` and `cosine`."""
    return SimpleNamespace(build=build, standard=standard, run=run, noise=noise, cosine=cosine)
