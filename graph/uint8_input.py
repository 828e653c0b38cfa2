"""Writes the input contract into the network, so that it takes aligned faces as uint8 pixels.

A quarter of the bytes cross to the GPU, and mean and channel order cannot be confused.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..errors import UsageError
from ..faces.contract import ALIGNED_SIZE, LUMA, LUMA_UNIT, InputSpec

UINT8_SHAPE = (ALIGNED_SIZE, ALIGNED_SIZE, 3)  # an aligned face, RGB


def crop_shape(spec: InputSpec) -> tuple[int, int, int]:
    """The aligned face that `with_uint8_input` makes a network take.

    Args:
        spec: The network's input contract.

    Returns:
        `(S, S, 3)`: 112 pixels a side, or the network's own where that is larger.
    """
    return (spec.crop_side, spec.crop_side, 3)


def with_uint8_input(model: ModelProto, spec: InputSpec) -> ModelProto:
    """Put `faces.contract.preprocess` in front of a network.

    Args:
        model: A model with one input `(N, C, H, W) float32`.
        spec: Its input contract.

    Returns:
        A copy with one input `pixels (N, S, S, 3) uint8`, RGB; `(S, S, 3)` is `crop_shape`.

    Raises:
        UsageError: The network takes less than 112 pixels a side: the face is scaled, which is not done
            in the network.
    """
    side = max(spec.height, spec.width)
    if side < ALIGNED_SIZE:
        raise UsageError(
            f"pixels-in engines are for networks of at least {ALIGNED_SIZE} pixels a side, this one"
            f" has {side}",
            "send preprocessed faces",
        )
    copy = ModelProto()
    copy.CopyFrom(model)
    graph, face = copy.graph, model.graph.input[0].name
    top, left = (side - spec.height) // 2, (side - spec.width) // 2
    contract, constants = contract_nodes(spec, "raw_crop", face)
    constants |= {
        "raw_starts": np.array([top, left], np.int64),
        "raw_ends": np.array([top + spec.height, left + spec.width], np.int64),
        "raw_axes": np.array([1, 2], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["raw_float"], to=TensorProto.FLOAT),
        helper.make_node(
            "Slice", ["raw_float", "raw_starts", "raw_ends", "raw_axes"], ["raw_crop"]
        ),
        *contract,
        *model.graph.node,
    ]
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    count = batch.dim_value or batch.dim_param or "batch"
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, (count, *crop_shape(spec)))
    for field in ("input", "node"):
        graph.ClearField(field)
    graph.input.append(pixels)
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in constants.items())
    return copy


def contract_nodes(
    spec: InputSpec, crop: str, face: str
) -> tuple[list[NodeProto], dict[str, npt.NDArray[Any]]]:
    """The nodes that turn grey levels of the network's size into its input.

    Args:
        spec: The network's input contract.
        crop: The tensor that they read, `(N, H, W, 3) float32`, RGB.
        face: The tensor that they write, `(N, C, H, W) float32`.

    Returns:
        The nodes, and name -> constant that they need.
    """
    count = spec.shape[0]
    constants: dict[str, npt.NDArray[Any]] = {
        "raw_mean": np.array(spec.mean[:count], np.float32).reshape(1, -1, 1, 1),
        "raw_std": np.array(spec.std[:count], np.float32).reshape(1, -1, 1, 1),
    }
    if spec.channels == "GREY":  # whole numbers below 2 ** 24 all along: exact in float32
        constants |= {
            "raw_luma": np.array(LUMA, np.float32)[:, None],
            "raw_half": np.array(LUMA_UNIT // 2, np.float32),
            "raw_unit": np.array(LUMA_UNIT, np.float32),
        }
        channels = _grey_nodes(crop)
    else:
        channels = _reversing_nodes(crop) if spec.channels == "BGR" else []
    levels = "raw_channels" if channels else crop
    nodes = [  # mean and std after the channels are first: OpenCV 4.6 takes (1, C, 1, 1) alone
        *channels,
        helper.make_node("Transpose", [levels], ["raw_planes"], perm=(0, 3, 1, 2)),
        helper.make_node("Sub", ["raw_planes", "raw_mean"], ["raw_centred"]),
        helper.make_node("Div", ["raw_centred", "raw_std"], [face]),
    ]
    return nodes, constants


def _reversing_nodes(crop: str) -> list[NodeProto]:
    """RGB to BGR; OpenCV 4.6 has no Gather of several indices."""
    parts = ["raw_red", "raw_green", "raw_blue"]
    return [
        helper.make_node("Split", [crop], parts, axis=3),
        helper.make_node("Concat", parts[::-1], ["raw_channels"], axis=3),
    ]


def _grey_nodes(crop: str) -> list[NodeProto]:
    """`faces.contract.luma` on float32."""
    return [
        helper.make_node("MatMul", [crop, "raw_luma"], ["raw_weighted"]),
        helper.make_node("Add", ["raw_weighted", "raw_half"], ["raw_raised"]),
        helper.make_node("Div", ["raw_raised", "raw_unit"], ["raw_ratio"]),
        helper.make_node("Floor", ["raw_ratio"], ["raw_channels"]),
    ]
