"""INT8 ranges that a network was trained on, in the metadata of its ONNX file.

A range is the largest magnitude of a dense layer's input; calibration takes it as it is.
"""

import json
import math
from collections.abc import Sequence

from onnx import ModelProto, helper

from ..documents import decode_json
from ..errors import DataError, ModelError
from .edit import attribute
from .layers import weighted_nodes

RANGES_KEY = "fr_edge.ranges"  # metadata key; JSON, tensor -> range


def write_trained_ranges(model: ModelProto, ranges: Sequence[float]) -> None:
    """Write trained ranges into a model's metadata, in place.

    Args:
        model: A float model.
        ranges: One per dense layer, in graph order.

    Raises:
        ModelError: The network has another number of dense layers.
    """
    tensors = _dense_inputs(model)
    if len(tensors) != len(ranges):
        raise ModelError(
            f"the weights have {len(ranges)} INT8 ranges for {len(tensors)} dense layers",
            "train the network again",
        )
    texts = {entry.key: entry.value for entry in model.metadata_props}
    texts[RANGES_KEY] = json.dumps(dict(zip(tensors, ranges, strict=True)))
    helper.set_model_props(model, texts)


def read_trained_ranges(model: ModelProto) -> dict[str, float]:
    """Read the ranges that a network was trained on.

    Args:
        model: A model that fr-edge exported.

    Returns:
        Tensor -> its range; empty for a network that was not trained so.

    Raises:
        ModelError: The ranges are not positive numbers.
    """
    text = next((e.value for e in model.metadata_props if e.key == RANGES_KEY), "{}")
    try:
        ranges = {
            str(name): float(value)
            for name, value in decode_json(text.encode(), dict[str, float], RANGES_KEY).items()
        }
        if all(0.0 < value < math.inf for value in ranges.values()):
            return ranges
    except DataError:
        pass
    raise ModelError("the model's INT8 ranges are not positive numbers", "export it again")


def _dense_inputs(model: ModelProto) -> list[str]:
    return [n.input[0] for n in weighted_nodes(model) if attribute(n, "group", 1) == 1]
