"""Runs a detector's ONNX file on one canvas, for any shape and type of its input."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, numpy_helper

from ...arrays import U8
from ...errors import FrEdgeError, ModelError
from ...inference import make_session
from ...onnx_file import read_onnx
from ...trial_run import ensure_runnable
from ..contract import InputSpec
from .base import Outputs, Size

_SIDE = 640  # of the canvas where the network leaves it free

_MIN_SIDE = (
    64  # a smaller fixed side is what the exporter was tried with, too small for photographs
)

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}

_PIXEL_SIZE = 50  # a summand or divisor above this, and a factor below its inverse, is of pixels


@dataclass(frozen=True, eq=False)
class OnnxDetector:
    """A loaded detector.

    Attributes:
        path: The file.
        session: An onnxruntime session.
        size: Height and width of its canvas; of the largest one where `free`.
        free: Whether it takes canvases of other sizes.
        batch: Images that it takes at a time.
        channels_last: Whether its input is `(N, H, W, 3)`.
        dtype: Of its input.
        raw: Whether it takes pixels 0..255 and normalises them itself.
    """

    path: Path
    session: Any
    size: Size
    batch: int
    channels_last: bool
    dtype: npt.DTypeLike
    raw: bool
    free: bool = False


def load_detector(path: Path, threads: int | None = None) -> OnnxDetector:
    """Load a detector.

    Args:
        path: An ONNX file.
        threads: onnxruntime's threads; None for one per core.

    Raises:
        ModelError: The file is not ONNX, or takes something else than one colour image.
    """
    model = read_onnx(path, side_files=True)
    data = model.SerializeToString()
    ensure_runnable(model, f"the detector {path}", (_SIDE, _SIDE), data)
    session = make_session(data, name=f"the detector {path}", threads=threads)
    inputs = session.get_inputs()
    shape, kind = inputs[0].shape if inputs else [], inputs[0].type if inputs else ""
    if len(inputs) != 1 or len(shape) != 4 or kind not in _TYPES:
        taken = ", ".join(f"{i.name} {_shape(i.shape)} {i.type}" for i in inputs) or "nothing"
        raise ModelError(
            f"{path} takes {taken}, expected one image (1, 3, height, width) in float or bytes",
            "a detector is a network of one input that finds faces in a whole photograph",
        )
    last = shape[3] == 3 and shape[1] != 3
    if not last and isinstance(shape[1], int) and shape[1] != 3:
        raise ModelError(f"{path} takes {shape[1]} channels, expected 3")
    high, wide = (s if isinstance(s, int) else _SIDE for s in (shape[1:3] if last else shape[2:]))
    batch = shape[0] if isinstance(shape[0], int) else 1
    if min(high, wide) < _MIN_SIDE:
        session = make_session(
            with_free_shapes(model), name=f"the detector {path}", threads=threads
        )
        high, wide, batch = _SIDE, _SIDE, 1
    raw = kind == "tensor(uint8)" or _normalises(model)
    free = not any(isinstance(side, int) for side in (shape[1:3] if last else shape[2:]))
    return OnnxDetector(path, session, (high, wide), batch, last, _TYPES[kind], raw, free)


def with_free_size(network: OnnxDetector, threads: int | None) -> OnnxDetector | None:
    """The same network without the fixed sizes that its exporter wrote down.

    Args:
        network: A detector of fixed size.
        threads: As `load_detector` takes it.

    Returns:
        A network whose canvas may have other sizes, if it has no sizes inside; whether it has, a
        run shows. None where the file cannot be loaded so.
    """
    model = read_onnx(network.path, side_files=True)
    try:
        session = make_session(
            with_free_shapes(model), name=f"the detector {network.path}", threads=threads
        )
    except ModelError:
        return None
    return replace(network, session=session, batch=1, free=True)


def run_detector(network: OnnxDetector, canvas: U8, spec: InputSpec) -> Outputs:
    """Run a detector on one canvas.

    Args:
        network: The detector.
        canvas: RGB `(H, W, 3) uint8`, of the detector's size.
        spec: Channel order, mean and std; not applied to networks that take bytes.

    Returns:
        The floating-point outputs.

    Raises:
        ModelError: The network cannot be run.
    """
    blob = detector_input(network, canvas, spec)
    names = [output.name for output in network.session.get_outputs()]
    try:
        arrays = network.session.run(names, {network.session.get_inputs()[0].name: blob})
    except FrEdgeError:
        raise
    except Exception as error:  # onnxruntime's own classes derive from Exception alone
        raise ModelError(f"the detector {network.path} does not run: {_line(error)}") from error
    # Integers are counts and labels; no known layout has a list of arrays.
    return {
        name: _first(array, network.batch).astype(np.float32)
        for name, array in zip(names, arrays, strict=True)
        if isinstance(array, np.ndarray) and array.dtype.kind == "f"
    }


def detector_input(network: OnnxDetector, canvas: U8, spec: InputSpec) -> npt.NDArray[Any]:
    """A detector's input for one canvas.

    Args:
        network: The detector.
        canvas: RGB `(H, W, 3) uint8`.
        spec: Channel order, mean and std; not applied to networks that take bytes.

    Returns:
        The canvas in the type and layout of the network's input, repeated for its batch.
    """
    image = canvas[..., ::-1] if spec.channels == "BGR" else canvas
    image = np.ascontiguousarray(image if network.channels_last else image.transpose(2, 0, 1))
    blob = image if network.dtype == np.uint8 else _normalised(image, network, spec)
    return blob[None].repeat(network.batch, axis=0) if network.batch > 1 else blob[None]


def _normalised(image: U8, network: OnnxDetector, spec: InputSpec) -> npt.NDArray[Any]:
    shape = (3,) if network.channels_last else (3, 1, 1)
    values = image.astype(np.float32)
    if any(spec.mean):
        values -= np.array(spec.mean, np.float32).reshape(shape)
    if any(std != 1 for std in spec.std):
        values /= np.array(spec.std, np.float32).reshape(shape)
    return values.astype(network.dtype, copy=False)


def _first(array: npt.NDArray[Any], batch: int) -> npt.NDArray[Any]:
    return array[:1] if batch > 1 and array.shape[:1] == (batch,) else array


def with_free_shapes(given: ModelProto) -> bytes:
    """A model with free shapes of its inputs and outputs.

    Args:
        given: A detector.

    Returns:
        The serialized copy; dimensions of 3 stay, which are colours.
    """
    model = ModelProto()
    model.CopyFrom(given)
    weights = {weight.name for weight in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.output):
        if value.name in weights:
            continue
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_value != 3:
                dim.dim_param = f"{value.name}_{axis}"
    del model.graph.value_info[:]
    data: bytes = model.SerializeToString()
    return data


def _normalises(model: ModelProto) -> bool:
    """Whether the first arithmetic on the image is by numbers in the range of pixels 0..255."""
    graph = model.graph
    weights = {w.name: w for w in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            weights[node.output[0]] = node.attribute[0].t
    at = next((value.name for value in graph.input if value.name not in weights), "")
    for node in graph.node:
        if at not in node.input:
            continue
        if node.op_type in ("Cast", "Identity", "Transpose"):
            at = node.output[0]
            continue
        sizes = [
            float(np.abs(numpy_helper.to_array(weights[name])).max(initial=0))
            for name in node.input
            if name in weights
        ]
        size = max(sizes, default=0.0)
        return (node.op_type in ("Sub", "Add", "Div") and size > _PIXEL_SIZE) or (
            node.op_type == "Mul" and 0 < size < 1 / _PIXEL_SIZE
        )
    return False


def _shape(shape: list[Any]) -> str:
    return "(" + ", ".join("?" if s is None else str(s) for s in shape) + ")"


def _line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()[:200] or type(error).__name__
