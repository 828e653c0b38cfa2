"""A face network of nine layers, float and with Q/DQ, and a bundle that holds it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.bundle.manifest import Bundle
from fr_edge.faces.contract import InputSpec
from fr_edge.runtime.machine.backends import lacking

SIDE, DIM = 16, 5


class Tiny:
    """Collects the nodes; `int8` puts Q and DQ around the inputs of every dense layer."""

    def __init__(self, *, int8: bool, dtype: type = np.float32, side: int = SIDE) -> None:
        self.random = np.random.default_rng(7)
        self.int8, self.dtype, self.side = int8, dtype, side
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def constant(self, name: str, value: np.ndarray) -> str:
        self.weights[name] = value
        return name

    def add(self, op: str, inputs: list[str], out: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [out], out, **attributes))
        return out

    def pair(self, name: str, scale: np.ndarray, **axis: int) -> str:
        """Q and DQ after `name`."""
        self.constant(f"{name}_scale", scale)
        self.constant(f"{name}_zero", np.zeros(scale.shape, np.int8))
        step = [f"{name}_scale", f"{name}_zero"]
        self.add("QuantizeLinear", [name, *step], f"{name}_q", **axis)
        return self.add("DequantizeLinear", [f"{name}_q", *step], f"{name}_dq", **axis)

    def conv(self, x: str, out: str, shape: tuple[int, ...], **attributes: object) -> str:
        values = self.random.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        weight = self.constant(f"{out}_w", values.astype(self.dtype))
        bias = self.constant(f"{out}_b", self.random.normal(size=shape[0]).astype(self.dtype))
        if self.int8 and attributes.get("group", 1) == 1:
            x = f"{x}_dq" if f"{x}_scale" in self.weights else self.pair(x, np.float32(0.04))
            largest = np.abs(values).max(axis=(1, 2, 3)).astype(np.float32)
            weight = self.pair(weight, largest / np.float32(127), axis=0)
        return self.add("Conv", [x, weight, bias], out, kernel_shape=shape[2:], **attributes)

    def prelu(self, x: str, channels: int) -> str:
        slope = self.random.uniform(-0.5, 1.5, (channels, 1, 1)).astype(self.dtype)
        return self.add("PRelu", [x, self.constant(f"{x}_slope", slope)], f"{x}_act")

    def model(self) -> ModelProto:
        x = self.add("Cast", ["face"], "cast", to=10) if self.dtype == np.float16 else "face"
        x = self.prelu(self.conv(x, "c1", (8, 3, 3, 3), strides=[2, 2], pads=[1] * 4), 8)
        y = self.prelu(self.conv(x, "c2", (16, 8, 1, 1)), 16)
        y = self.prelu(self.conv(y, "c3", (16, 1, 3, 3), group=16, pads=[1] * 4), 16)
        y = self.conv(y, "c4", (8, 16, 1, 1))
        x = self.add("Add", [x, y], "sum")
        x = self.prelu(self.conv(x, "c5", (12, 8, 1, 1)), 12)
        x = self.conv(x, "c6", (12, 1, self.side // 2, self.side // 2), group=12)
        x = self.add("Flatten", [x], "flat")
        shape = (DIM, 12)
        weight = self.constant("gemm_w", self.random.normal(size=shape).astype(self.dtype))
        last = "half" if self.dtype == np.float16 else "embedding"
        x = self.add("Gemm", [x, weight], last, transB=1)
        if self.dtype == np.float16:
            self.add("Cast", [x], "embedding", to=1)
        graph = helper.make_graph(
            self.nodes,
            "tiny",
            [
                helper.make_tensor_value_info(
                    "face", TensorProto.FLOAT, ("batch", 3, *[self.side] * 2)
                )
            ],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ("batch", DIM))],
            [numpy_helper.from_array(np.asarray(v), n) for n, v in self.weights.items()],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        checker.check_model(made, full_check=True)
        return made


Make = Callable[..., ModelProto]


@pytest.fixture(scope="session")
def tiny() -> Make:
    """`tiny(int8=False, dtype=np.float32)`: the network, always with the same weights."""
    return lambda **kind: Tiny(**{"int8": False, **kind}).model()


@pytest.fixture
def faces() -> Callable[[int], np.ndarray]:
    """`faces(n)`: `(n, 3, 16, 16) float32` inputs, not images of anybody."""
    return lambda n: np.random.default_rng(3).normal(size=(n, 3, SIDE, SIDE)).astype(np.float32)


def write_tiny_bundle(folder: Path, side: int = SIDE) -> Bundle:
    """The network in all flavours, not calibrated on anything."""
    with transaction(folder, "export", {}) as draft:
        draft.spec, draft.embedding_dim = InputSpec(height=side, width=side), DIM
        for name, kind in (
            ("model.onnx", {}),
            ("model.fp16.onnx", {"dtype": np.float16}),
            ("model.int8.onnx", {"int8": True}),
        ):
            model = Tiny(**{"int8": False, "side": side, **kind}).model()
            draft.path(name, "model").write_bytes(model.SerializeToString())
    return open_bundle(folder)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """The tiny network's bundle."""
    return write_tiny_bundle(tmp_path / "tiny.bundle")


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def gpu_backend(request: pytest.FixtureRequest) -> str:
    """A backend that runs on this machine's GPU; skips with what is missing."""
    if lack := lacking(request.param):
        pytest.skip(f"{request.param}: {lack}")
    return str(request.param)
