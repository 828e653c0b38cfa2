"""A network that needs every step of calibration: channels are uneven, one-sided and correlated."""

import numpy as np
from fitted import run
from onnx import ModelProto, helper, numpy_helper

WIDTH, MEAN = 32, 6.0


class _Graph:
    """Nodes in the making; each Conv is normalized by what it computes from `inputs`."""

    def __init__(self, inputs: np.ndarray, seed: int) -> None:
        self.inputs, self.random = inputs, np.random.default_rng(seed)
        self.nodes, self.weights = [], {}  # type: ignore[var-annotated]

    def node(self, op: str, inputs: list[str], out: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [out], out, **attributes))
        return out

    def weight(self, name: str, values: object) -> str:
        self.weights[name] = np.float32(values)
        return name

    def conv(
        self,
        x: str,
        name: str,
        shape: tuple[int, ...],
        mean: float,
        loudness: np.ndarray,
        reads: np.ndarray,
        **attributes: object,
    ) -> str:
        """Channels of standard deviation `loudness` around `mean` times that; inputs are divided by
        `reads`, so that loud ones count no more than others."""
        weight = self.random.standard_normal(shape) / reads.reshape(1, -1, 1, 1)
        if name == "pool":
            weight = weight.repeat(7, 2).repeat(7, 3)
        names = [x, self.weight(f"{name}_w", weight), self.weight(f"{name}_b", np.zeros(shape[0]))]
        self.node("Conv", names, name, **attributes)
        values = run(self.model(name), self.inputs)[0]
        center, spread = values.mean((0, 2, 3)), values.std((0, 2, 3))
        self.weight(f"{name}_w", weight * (loudness / spread).reshape(-1, 1, 1, 1))
        self.weight(f"{name}_b", (mean - center / spread) * loudness)
        return name

    def prelu(self, x: str) -> str:
        return self.node(
            "PRelu", [x, self.weight(f"{x}_s", np.full((WIDTH, 1, 1), 0.25))], f"{x}_a"
        )

    def model(self, end: str, shape: tuple[object, ...] | None = None) -> ModelProto:
        face = helper.make_tensor_value_info("face", 1, ("N", 3, 112, 112))
        result = helper.make_tensor_value_info(end, 1, shape)
        arrays = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, "uneven", [face], [result], arrays)
        opset = helper.make_opsetid("", 17)
        return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def uneven_network(inputs: np.ndarray, seed: int) -> ModelProto:
    """A network in which each step of calibration has something to do.

    - equalization: channels behind PReLU differ in loudness,
    - activation shift: they lie far above zero,
    - bias correction: so a rounded weight moves the mean of what reads them,
    - GPTQ: 32 channels made of smooth faces are correlated,
    - ranges by the output's error: a Clip, through which no scale can go, gives four channels that are
      eight times as loud and hardly read.

    `inputs` `(N, 3, 112, 112) float32` set the weights' scales.
    """
    graph, even = _Graph(inputs, seed), np.ones(WIDTH)
    graph.weight("low", 0.0), graph.weight("high", 1e4)
    loud, unread = even.copy(), even.copy()
    loud[::8], unread[::8] = 8.0, 800.0
    stem = (WIDTH, 3, 5, 5)
    x = graph.conv("face", "stem", stem, MEAN, loud, np.ones(3), strides=[4, 4], pads=[2] * 4)
    x = graph.node("Clip", [x, "low", "high"], "stem_a")
    loud = np.exp(graph.random.normal(0, 0.5, WIDTH))
    x = graph.prelu(graph.conv(x, "wide", (WIDTH, WIDTH, 1, 1), MEAN, loud, unread))
    x = graph.conv(x, "padded", (WIDTH, WIDTH, 3, 3), 0.0, even, loud, pads=[1] * 4)
    x = graph.prelu(x)
    # Errors that differ from place to place average out here; what all places share stays.
    x = graph.conv(x, "pool", (WIDTH, 1, 4, 4), 0.0, even, np.ones(1), group=WIDTH)
    graph.node("Flatten", [x], "embedding")
    return graph.model("embedding", ("N", WIDTH))
