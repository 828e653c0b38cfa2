"""A face detector as an ONNX file: what is bright is a face."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
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


def write_conv_detector(path: Path, *, bytes_in: bool = False) -> Path:
    """The same with convolutions and a batch norm: what INT8 and FP16 can round.

    With `bytes_in` it takes `(1, h, w, 3) uint8` and normalises itself.
    """
    write_bright_detector(path)
    model = onnx.load(str(path))
    graph = model.graph
    random = np.random.default_rng(0)
    gains, spots = random.uniform(0.8, 1.2, 8), random.normal(0, 0.5, (20, 8))
    spots -= np.outer(spots @ gains, gains) / (gains @ gains)  # what INT8 rounds alone moves them
    weights = {
        "stem": np.full((8, 3, 32, 32), 1 / 3072) * gains.reshape(8, 1, 1, 1),
        "gamma": np.ones(8),
        "beta": np.zeros(8),
        "mean": np.zeros(8),
        "var": np.ones(8),
        "head": np.concatenate([np.zeros((1, 8, 1, 1)), np.full((1, 8, 1, 1), 1 / 8)]),
        "full": np.array(1),
        "spots": spots.reshape(20, 8, 1, 1),
    }
    nodes = [
        helper.make_node("Conv", ["input", "stem"], ["stem_out"], "stem_conv", strides=[32, 32]),
        helper.make_node(
            "BatchNormalization", ["stem_out", "gamma", "beta", "mean", "var"], ["norm"], "norm"
        ),
        helper.make_node("Relu", ["norm"], ["act"], "act"),
        helper.make_node("Conv", ["act", "head"], ["raw"], "head_conv"),
        helper.make_node("Clip", ["raw", "dark", "full"], ["score32"], "head_clip"),
        helper.make_node("Conv", ["act", "spots"], ["moved"], "spots_conv"),
        helper.make_node("Add", ["moved", "kps"], ["kps32"], "kps_add"),
    ]
    others = [node for node in graph.node if not {"score32", "kps32"} & set(node.output)]
    if bytes_in:
        others[:0] = [
            helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["floats"], ["planes"], perm=(0, 3, 1, 2)),
            helper.make_node("Sub", ["planes", "grey"], ["centred"]),
            helper.make_node("Div", ["centred", "range"], ["input"]),
        ]
        weights |= {"grey_level": np.array(127.5), "range": np.array(128.0)}
        others[2].input[1] = "grey_level"
        del graph.input[:]
        graph.input.append(
            helper.make_tensor_value_info("pixels", TensorProto.UINT8, [1, "h", "w", 3])
        )
    del graph.node[:]
    graph.node.extend([*others[: 4 if bytes_in else 0], *nodes, *others[4 if bytes_in else 0 :]])
    graph.initializer.extend(
        numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()
    )
    onnx.save(model, str(path))
    return path


def draw_bright_cell(
    place: int, seed: int = 0, size: tuple[int, int] = (192, 256)
) -> npt.NDArray[np.uint8]:
    """A dark picture with one bright cell of 32 pixels, counted row by row."""
    random = np.random.default_rng(seed)
    image = random.integers(0, 30, (*size, 3)).astype(np.uint8)
    row, column = divmod(place, size[1] // 32)
    cell = image[32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
    cell[:] = random.integers(215, 256, cell.shape)
    return image
