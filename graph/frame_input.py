"""Writes alignment into the network, so that it takes a camera frame and landmarks.

The least-squares similarity transform between two sets of points of the plane has a closed form: with
points as complex numbers, x those of the frame and y the template's, both less their means, it is the
factor sum(conj(x) y) / sum(|x|^2). So no singular value decomposition is needed, and every operator
runs on every backend. All faces are sampled from the frame in one GridSample, whose grid lies one
face below the other: the frame is not copied for each of them.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..arrays import F32
from ..errors import ModelError, UsageError
from ..faces.contract import ALIGNED_SIZE, InputSpec, aligned_template
from .uint8_input import contract_nodes, with_uint8_input

InputKind = Literal["tensor", "crop", "frame"]

INPUT_KINDS: tuple[InputKind, ...] = get_args(InputKind)
PREFIX = "frame_"  # of the names of nodes that are put in front and behind
FRAME, LANDMARKS = "frame", "landmarks"  # the inputs' names

# Of a pixel: OpenCV's warpAffine, which norm_crop uses, rounds what columns and rows contribute to
# the finer, and their sum to the coarser.
_FINE, _FRACTIONS = 1024.0, 32.0
MIN_SPREAD = 1.0  # square pixels, of five landmarks about their mean: they are in one place below
_MAX_SPREAD = 1e12  # a frame of half a million pixels a side; what is not finite is not below
_MIN_NORM = 1e-12  # an embedding of zeros stays one
_GRID_SAMPLE_OPSET = 16
_LINEAR_OPSET = 20  # from here on GridSample calls "bilinear" "linear"


def with_input(model: ModelProto, spec: InputSpec, kind: InputKind) -> ModelProto:
    """A network that takes what an engine is to take.

    Args:
        model: A model with one input `(N, C, H, W) float32`.
        spec: Its input contract.
        kind: "tensor" for that input, "crop" for aligned faces `(N, S, S, 3) uint8`, "frame" for
            a frame with landmarks.

    Returns:
        The model itself for "tensor", else a copy; see `with_uint8_input` and `with_frame_input`.

    Raises:
        UsageError: The contract's size does not go with that kind.
        ModelError: The model's opset is too old for it.
    """
    if kind == "crop":
        return with_uint8_input(model, spec)
    return with_frame_input(model, spec) if kind == "frame" else model


def with_frame_input(model: ModelProto, spec: InputSpec) -> ModelProto:
    """Put alignment and `faces.contract.preprocess` in front of a network, unit length behind it.

    Landmarks are the eyes, nose tip and mouth corners, x before y, in pixels; whole numbers are
    centres of pixels. A crop equals insightface's `norm_crop` to one grey level, black where the
    frame ends. Landmarks in one place, or that are not finite, give an embedding of NaN.
    A network of more than 112 pixels is fed from the frame, not from an enlarged crop: what it gets is
    `norm_crop` at its size.

    Args:
        model: A model with one input `(N, C, H, W) float32` and one output `(N, D) float32`.
        spec: Its input contract.

    Returns:
        A copy with the inputs `frame (1, height, width, 3) uint8`, RGB, and `landmarks (N, 5, 2)
        float32`; its output has unit length.

    Raises:
        UsageError: The network takes less than 112 pixels a side: a crop would have to be averaged.
        ModelError: The model's opset is older than GridSample.
    """
    side = max(spec.height, spec.width)
    if side < ALIGNED_SIZE:
        raise UsageError(
            f"frame engines are for networks of {ALIGNED_SIZE} pixels a side and more, this one has"
            f" {side}",
            "align on the host, and send crops",
        )
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < _GRID_SAMPLE_OPSET:
        raise ModelError(
            f"a frame engine needs opset {_GRID_SAMPLE_OPSET}, the model has {opset}",
            "export it again with `fr-edge export`",
        )
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    contract, constants = contract_nodes(spec, "frame_faces", model.graph.input[0].name)
    nodes = [*_place_nodes(), *_sample_nodes(opset), *contract, *model.graph.node]
    embedding = graph.output[0].name
    for node in nodes:
        _rename(node, embedding, "frame_embedding")
    nodes += _unit_nodes("frame_embedding", embedding, done=spec.l2_normalised)
    for field in ("input", "node"):
        graph.ClearField(field)
    faces = batch.dim_value or batch.dim_param or "batch"
    graph.input.extend(
        [
            helper.make_tensor_value_info(FRAME, TensorProto.UINT8, (1, "height", "width", 3)),
            helper.make_tensor_value_info(LANDMARKS, TensorProto.FLOAT, (faces, 5, 2)),
        ]
    )
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    constants = {k: v for k, v in {**constants, **_constants(spec)}.items() if k in used}
    graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in constants.items())
    return copy


def sampling_places(spec: InputSpec) -> tuple[F32, F32]:
    """Where a network's pixels lie in the aligned face.

    Args:
        spec: The contract: the aligned face, scaled to its larger side and cut at the centre.

    Returns:
        x of each column `(W,) float32` and y of each row `(H,) float32`, in pixels of the aligned
        face; whole numbers are centres of pixels.
    """
    side = max(spec.height, spec.width)
    x, y = (
        (np.arange(size) + (side - size) // 2).astype(np.float32)
        for size in (spec.width, spec.height)
    )
    return x, y


def _constants(spec: InputSpec) -> Mapping[str, npt.NDArray[Any]]:
    places = aligned_template(max(spec.height, spec.width))
    middle = places.mean(0)
    template = places - middle
    x, y = sampling_places(spec)
    numbers = {
        "frame_fifth": [0.2],
        "frame_template": template,
        "frame_turned_template": template[:, ::-1] * [1, -1],
        # What cos and sin are multiplied with: of x and y in the frame, for columns and rows.
        "frame_column_cos": np.stack([x, 0 * x], 1)[None, None],
        "frame_column_sin": np.stack([0 * x, -x], 1)[None, None],
        "frame_row_cos": np.stack([0 * y, y], 1)[None, :, None],
        "frame_row_sin": np.stack([y, 0 * y], 1)[None, :, None],
        "frame_middle_cos": middle[None, None, None],
        "frame_middle_sin": (middle[::-1] * [1, -1])[None, None, None],
        "frame_fine": [_FINE],
        "frame_coarse": [_FINE / _FRACTIONS],
        "frame_fractions": [_FRACTIONS],
        "frame_half": [0.5],
        "frame_one": [1.0],
        "frame_two": [2.0],
        "frame_min_norm": [_MIN_NORM],
        "frame_min_spread": [MIN_SPREAD],
        "frame_max_spread": [_MAX_SPREAD],
        "frame_nan": [np.nan],
    }
    whole = {
        "frame_points": [2],
        "frame_points_axes": [2, 3],
        "frame_landmarks_shape": [-1, 1, 5, 2],
        "frame_numbers": [1],
        "frame_width_height": [2, 1],
        "frame_grid_shape": [1, -1, spec.width, 2],
        "frame_spread_shape": [-1, 1],
        "frame_faces_shape": [-1, spec.height, spec.width, 3],
    }
    return {
        **{name: np.array(value, np.float32) for name, value in numbers.items()},
        **{name: np.array(value, np.int64) for name, value in whole.items()},
    }


def _place_nodes() -> list[NodeProto]:
    """Places in the frame, `frame_places (N, H, W, 2)`, from the landmarks.

    With u + iv = sum(conj(x) y) and P = sum(|x|^2), the inverse of the transform takes a place t of
    the aligned face to mean + (t - middle) (u - iv) P / (u^2 + v^2).
    """
    return [
        _node("Reshape", [LANDMARKS, "frame_landmarks_shape"], "frame_landmarks"),
        _sum("frame_landmarks", "frame_points", "frame_sum"),
        _node("Mul", ["frame_sum", "frame_fifth"], "frame_mean"),
        _node("Sub", ["frame_landmarks", "frame_mean"], "frame_x"),
        _node("Mul", ["frame_x", "frame_x"], "frame_squares"),
        _sum("frame_squares", "frame_points_axes", "frame_p"),
        _node("Mul", ["frame_x", "frame_template"], "frame_along"),
        _sum("frame_along", "frame_points_axes", "frame_u"),
        _node("Mul", ["frame_x", "frame_turned_template"], "frame_across"),
        _sum("frame_across", "frame_points_axes", "frame_v"),
        _node("Mul", ["frame_u", "frame_u"], "frame_uu"),
        _node("Mul", ["frame_v", "frame_v"], "frame_vv"),
        _node("Add", ["frame_uu", "frame_vv"], "frame_length"),
        _node("Div", ["frame_p", "frame_length"], "frame_scale"),
        _node("Mul", ["frame_u", "frame_scale"], "frame_cos"),
        _node("Mul", ["frame_v", "frame_scale"], "frame_sin"),
        *_turned("middle", "frame_middle"),
        _node("Sub", ["frame_mean", "frame_middle"], "frame_shift"),
        *_turned("column", "frame_column"),
        *_turned("row", "frame_row_unmoved"),
        _node("Add", ["frame_row_unmoved", "frame_shift"], "frame_row"),
        *_fine("frame_column"),
        *_fine("frame_row"),
        _node("Add", ["frame_column_whole", "frame_row_whole"], "frame_both"),
        _node("Div", ["frame_both", "frame_coarse"], "frame_thirty_seconds"),
        *_round("frame_thirty_seconds", "frame_rounded"),
        _node("Div", ["frame_rounded", "frame_fractions"], "frame_places"),
    ]


def _turned(name: str, target: str) -> list[NodeProto]:
    """Constants, turned and scaled as the face is."""
    return [
        _node("Mul", [f"frame_{name}_cos", "frame_cos"], f"{target}_part"),
        _node("Mul", [f"frame_{name}_sin", "frame_sin"], f"{target}_other"),
        _node("Add", [f"{target}_part", f"{target}_other"], target),
    ]


def _fine(source: str) -> list[NodeProto]:
    return [
        _node("Mul", [source, "frame_fine"], f"{source}_fine"),
        *_round(f"{source}_fine", f"{source}_whole"),
    ]


def _sample_nodes(opset: int) -> list[NodeProto]:
    """Faces `frame_faces (N, H, W, 3)` in whole grey levels from the frame at the places."""
    return [
        _node("Cast", [FRAME], "frame_float", to=TensorProto.FLOAT),
        _node("Shape", ["frame_float"], "frame_shape"),
        _node("Gather", ["frame_shape", "frame_width_height"], "frame_size", axis=0),
        _node("Cast", ["frame_size"], "frame_size_float", to=TensorProto.FLOAT),
        _node("Mul", ["frame_places", "frame_two"], "frame_doubled"),
        _node("Add", ["frame_doubled", "frame_one"], "frame_edges"),
        _node("Div", ["frame_edges", "frame_size_float"], "frame_shares"),
        _node("Sub", ["frame_shares", "frame_one"], "frame_centred"),
        _node("Reshape", ["frame_centred", "frame_grid_shape"], "frame_grid"),
        _node("Transpose", ["frame_float"], "frame_planes", perm=(0, 3, 1, 2)),
        _node(
            "GridSample",
            ["frame_planes", "frame_grid"],
            "frame_sampled",
            mode="linear" if opset >= _LINEAR_OPSET else "bilinear",
            padding_mode="zeros",
            align_corners=0,
        ),
        *_round("frame_sampled", "frame_levels"),
        _node("Transpose", ["frame_levels"], "frame_rows", perm=(0, 2, 3, 1)),
        _node("Reshape", ["frame_rows", "frame_faces_shape"], "frame_faces"),
    ]


def _unit_nodes(source: str, target: str, *, done: bool) -> list[NodeProto]:
    """Unit length, unless that is done; not a number where the landmarks were impossible."""
    unit = [
        _node("Mul", [source, source], "frame_embedding_squares"),
        _sum("frame_embedding_squares", "frame_numbers", "frame_norm_squared"),
        _node("Sqrt", ["frame_norm_squared"], "frame_norm"),
        _node("Max", ["frame_norm", "frame_min_norm"], "frame_divisor"),
        _node("Div", [source, "frame_divisor"], "frame_unit"),
    ]
    return [
        *([] if done else unit),
        _node("Reshape", ["frame_p", "frame_spread_shape"], "frame_spread"),
        _node("Greater", ["frame_spread", "frame_min_spread"], "frame_apart"),
        _node("Less", ["frame_spread", "frame_max_spread"], "frame_finite"),
        _node("And", ["frame_apart", "frame_finite"], "frame_possible"),
        _node("Where", ["frame_possible", source if done else "frame_unit", "frame_nan"], target),
    ]


def _round(source: str, target: str) -> list[NodeProto]:
    """To the next whole number, halves upwards as OpenCV does."""
    return [
        _node("Add", [source, "frame_half"], f"{target}_raised"),
        _node("Floor", [f"{target}_raised"], target),
    ]


def _sum(source: str, axes: str, target: str) -> NodeProto:
    return _node("ReduceSum", [source, axes], target, keepdims=1)


def _node(operator: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
    name = f"{PREFIX}{output.removeprefix(PREFIX)}_{operator}"
    return helper.make_node(operator, inputs, [output], name, **attributes)


def _rename(node: NodeProto, old: str, new: str) -> None:
    for names in (node.input, node.output):
        for index, name in enumerate(names):
            if name == old:
                names[index] = new
