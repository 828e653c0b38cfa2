"""Detectors without weights, in the layouts of SCRFD and YuNet: what is bright is a face."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BOX = np.float32([0.1, 0.2, 0.7, 0.4])
POINTS = np.float32([0.1, 0.2, 0.9, 0.2, 0.5, 0.5, 0.2, 0.9, 0.8, 0.9])


def write_two_detectors(folder: Path) -> list[Path]:
    """SCRFD's outputs as lists of cells, two anchors each, and YuNet's as maps."""
    return [_write(folder / "scrfd.onnx", scrfd=True), _write(folder / "yunet.onnx", scrfd=False)]


def _write(path: Path, *, scrfd: bool) -> Path:
    anchors = 2 if scrfd else 1
    nodes = [helper.make_node("ReduceMax", ["image"], ["bright"], axes=[1], keepdims=1)]
    weights = {
        "box": np.tile(BOX, anchors),
        "kps": np.tile(POINTS, anchors),
        "ones": np.ones(anchors, np.float32),
        # RGB (x - 127.5) / 128 or BGR 0..255; a cell of grey 60 is no face, one of 255 is.
        "scale": np.float32(1 if scrfd else 1 / 256),
        "zero": np.float32(0),
        "top": np.float32(1),
    }
    outputs = []
    for stride in (8, 16, 32):
        pool = {"kernel_shape": [stride] * 2, "strides": [stride] * 2}
        nodes += [
            helper.make_node("AveragePool", ["bright"], [f"mean{stride}"], **pool),
            helper.make_node("Mul", [f"mean{stride}", "scale"], [f"level{stride}"]),
            helper.make_node("Clip", [f"level{stride}", "zero", "top"], [f"share{stride}"]),
            helper.make_node("Mul", [f"share{stride}", "zero"], [f"none{stride}"]),
        ]
        parts = {"score": "ones", "bbox": "box", "kps": "kps"}
        if not scrfd:
            parts = {"cls": "ones", "obj": "ones", "bbox": "box", "kps": "kps"}
        for kind, constant in parts.items():
            shaped = f"{constant}_map"
            weights[shaped] = weights[constant].reshape(1, -1, 1, 1)
            scores = weights[constant] is weights["ones"]
            operator, source = ("Mul", "share") if scores else ("Add", "none")
            name = f"{kind}{stride}"
            made = f"{name}_map" if scrfd else name
            nodes.append(helper.make_node(operator, [f"{source}{stride}", shaped], [made]))
            if scrfd:
                weights[f"shape_{kind}"] = np.array([-1, weights[constant].size // 2], np.int64)
                nodes += [
                    helper.make_node("Transpose", [made], [f"{name}_last"], perm=(0, 2, 3, 1)),
                    helper.make_node("Reshape", [f"{name}_last", f"shape_{kind}"], [name]),
                ]
            outputs.append(name)
    graph = helper.make_graph(
        nodes,
        "bright",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))
    return path
