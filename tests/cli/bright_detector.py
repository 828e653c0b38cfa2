"""A face detector as an ONNX file: what is bright is a face."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_bright_detector(path: Path) -> Path:
    """SCRFD's layout for any size: a face of 64 pixels around each bright cell of 32."""
    nodes = [helper.make_node("ReduceMax", ["input"], ["grey"], axes=[1], keepdims=1)]
    weights = {
        "one": np.zeros((1, 2, 1, 1), np.float32),
        "half": np.float32(0.5),
        "box": np.tile(np.float32([0.5, 0.5, 1.5, 1.5]), 2).reshape(1, 8, 1, 1),
        "kps": np.tile(np.float32([0.1, 0.2, 0.9, 0.2, 0.5, 0.5, 0.2, 0.9, 0.8, 0.9]), 2).reshape(
            1, 20, 1, 1
        ),
        "dark": np.float32(0),
    }
    for stride in (8, 16, 32):
        pool = {"kernel_shape": [stride] * 2, "strides": [stride] * 2}
        nodes += [
            helper.make_node("AveragePool", ["grey"], [f"mean{stride}"], **pool),
            helper.make_node("Mul", [f"mean{stride}", "dark"], [f"zero{stride}"]),
            helper.make_node("Clip", [f"mean{stride}", "dark"], [f"clip{stride}"]),
            helper.make_node(
                "Add", [f"{'clip' if stride == 32 else 'zero'}{stride}", "one"], [f"score{stride}"]
            ),
            helper.make_node("Add", [f"zero{stride}", "box"], [f"bbox{stride}"]),
            helper.make_node("Add", [f"zero{stride}", "kps"], [f"kps{stride}"]),
        ]
    names = [f"{kind}{stride}" for kind in ("score", "bbox", "kps") for stride in (8, 16, 32)]
    graph = helper.make_graph(
        nodes,
        "bright",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
        [numpy_helper.from_array(np.array(array), name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    return path
