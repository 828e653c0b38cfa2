"""Ranges that a network was trained on travel in its ONNX file: dense layer's input -> largest
magnitude. Calibration reads them instead of looking for its own.
"""

import json
import math
from collections.abc import Sequence

from onnx import ModelProto, helper

from ..errors import ModelError
from .edit import attribute

RANGES_KEY = "fr_edge.ranges"


def write_trained_ranges(model: ModelProto, ranges: Sequence[float]) -> None:
    """Write the ranges, one per dense layer in the graph's order, into the model's metadata.

    Raises ModelError when the network has another number of them.
    """
    tensors = _dense_inputs(model)
    if len(tensors) != len(ranges):
        raise ModelError(
            f"the weights bring {len(ranges)} INT8 ranges for {len(tensors)} dense layers",
            "train the network again",
        )
    texts = {entry.key: entry.value for entry in model.metadata_props}
    texts[RANGES_KEY] = json.dumps(dict(zip(tensors, ranges, strict=True)))
    helper.set_model_props(model, texts)


def read_trained_ranges(model: ModelProto) -> dict[str, float]:
    """Tensor -> the range it was trained on; empty for a network that was not.

    Raises ModelError when they are no positive numbers.
    """
    text = next((e.value for e in model.metadata_props if e.key == RANGES_KEY), "{}")
    try:
        ranges = {str(name): float(value) for name, value in json.loads(text).items()}
        if all(0.0 < value < math.inf for value in ranges.values()):
            return ranges
    except (ValueError, TypeError, AttributeError):
        pass
    raise ModelError("the model's INT8 ranges are no positive numbers", "export it again")


def _dense_inputs(model: ModelProto) -> list[str]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return [
        node.input[0]
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul")
        and node.input[1] in constants
        and attribute(node, "group", 1) == 1
    ]
