"""Small face networks as ONNX files, for tests that need a real one without torch."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_network(
    path: Path, *, dim: int = 32, batch: int | str = 1, seed: int = 0, side: int = 112
) -> Path:
    """A MobileFaceNet in miniature: conv, PReLU, depthwise, residual, global depthwise, Gemm, BN.

    Random weights, opset 13, batch as given: what people bring, before export has cleaned it.
    """
    rng = np.random.default_rng(seed)
    weights: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, *shape: int, scale: float | None = None) -> str:
        fan = np.prod(shape[1:]) if len(shape) > 1 else 1
        values = rng.standard_normal(shape) * (scale or np.sqrt(2.0 / fan))
        weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def conv(x: str, name: str, out: int, inp: int, kernel: int, **attributes: object) -> str:
        w = constant(f"{name}.w", out, inp, kernel, kernel)
        nodes.append(helper.make_node("Conv", [x, w], [name], name, **attributes))
        return name

    def prelu(x: str, channels: int) -> str:
        slope = numpy_helper.from_array(np.full((channels, 1, 1), 0.25, np.float32), f"{x}.slope")
        weights.append(slope)
        nodes.append(helper.make_node("PRelu", [x, f"{x}.slope"], [f"{x}_act"], f"{x}_act"))
        return f"{x}_act"

    def norm(x: str, channels: int, spread: float) -> str:
        names = [f"{x}.{part}" for part in ("gamma", "beta", "mean", "var")]
        for name, value in zip(names, (1.0, 0.0, 0.0, spread), strict=True):
            values = np.full(channels, value) + 0.05 * np.abs(rng.standard_normal(channels))
            weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        nodes.append(helper.make_node("BatchNormalization", [x, *names], [f"{x}_bn"], f"{x}_bn"))
        return f"{x}_bn"

    x = prelu(norm(conv("data", "stem", 16, 3, 5, strides=[4, 4], pads=[2] * 4), 16, 1.0), 16)
    y = prelu(norm(conv(x, "dw", 16, 1, 3, group=16, pads=[1] * 4), 16, 1.0), 16)
    y = norm(conv(y, "project", 16, 16, 1), 16, 1.0)
    nodes.append(helper.make_node("Add", [x, y], ["sum"], "sum"))
    x = prelu(norm(conv("sum", "wide", 32, 16, 3, strides=[4, 4], pads=[1] * 4), 32, 1.0), 32)
    x = conv(x, "pool", 32, 1, side // 16, group=32)
    nodes.append(helper.make_node("Flatten", [x], ["flat"], "flat"))
    constant("gemm.w", 32, dim)
    nodes.append(helper.make_node("Gemm", ["flat", "gemm.w"], ["gemm"], "gemm"))
    end = norm("gemm", dim, 1.0)
    graph = helper.make_graph(
        nodes,
        "miniature",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, (batch, 3, side, side))],
        [helper.make_tensor_value_info(end, TensorProto.FLOAT, (batch, dim))],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
    return path


def write_distinct_people(folder: Path, people: int = 40, faces: int = 4) -> Path:
    """People whom a network of random weights tells apart: noisy copies of one face each."""
    from PIL import Image

    from fr_edge.faces.sources import open_faces

    source, random = open_faces(f"synthetic:{people}x1@9"), np.random.default_rng(0)
    for person in range(people):
        (folder / f"person{person:03}").mkdir(parents=True)
        base = source.read(person)
        for face in range(faces):
            noisy = np.clip(base + random.normal(0, 4, base.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"person{person:03}" / f"{face}.png")
    return folder
