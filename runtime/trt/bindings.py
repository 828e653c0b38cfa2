"""An engine's inputs, each with its buffer on the host and on the GPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...arrays import F32, U8
from ...errors import MachineError
from ...faces.contract import InputSpec, preprocess, resize_faces
from ...graph.frame_input import FRAME, InputKind
from ..cuda.interface import Buffer, Cuda
from ..frames import fit_frame, tile_faces

if TYPE_CHECKING:
    import tensorrt

Shape = tuple[int, ...]
Inputs = tuple[F32 | U8, ...]  # one array for each input of an engine


@dataclass(frozen=True)
class InputBinding:
    """One input of an engine.

    Attributes:
        name: The tensor's name.
        type: uint8 or float32.
        smallest: The smallest shape that the engine's profile takes.
        largest: The largest; the buffer has room for it.
        buffer: Where the engine reads it.
    """

    name: str
    type: np.dtype[Any]
    smallest: Shape
    largest: Shape
    buffer: Buffer

    def bytes_of(self, shape: Shape) -> npt.NDArray[np.uint8]:
        """The part of the buffer that an array fills.

        Args:
            shape: Of the array.
        """
        return self.buffer.array[: self.type.itemsize * prod(shape)]

    def write(self, array: F32 | U8) -> Shape:
        """Put an array into the buffer.

        Args:
            array: Of the input's type, at least one row, not larger than `largest`.

        Returns:
            The shape to run with: up to the smallest batch the first row is repeated.
        """
        shape = (max(len(array), self.smallest[0]), *array.shape[1:])
        rows = self.bytes_of(shape).view(self.type).reshape(shape)
        rows[: len(array)] = array
        rows[len(array) :] = array[0]
        return shape


@dataclass(frozen=True)
class EngineInputs:
    """What an engine takes.

    Attributes:
        kind: "tensor", "crop" or "frame".
        bindings: The inputs; the last one has the batch in front.
        file: The engine's name.
    """

    kind: InputKind
    bindings: tuple[InputBinding, ...]
    file: str

    @property
    def largest_batch(self) -> int:
        """Faces that one run takes."""
        return self.bindings[-1].largest[0]

    def split(self, faces: npt.NDArray[Any], spec: InputSpec) -> list[npt.NDArray[Any]]:
        """Cut faces into parts that one run takes.

        Args:
            faces: N faces, or the landmarks of N.
            spec: The network's input contract.
        """
        size = self.largest_batch
        if self.kind == "frame":  # aligned faces lie side by side in one
            size = min(size, self.bindings[0].largest[2] // spec.crop_side)
        return [faces[start : start + size] for start in range(0, len(faces), size)]

    def of_faces(self, images: U8, spec: InputSpec) -> Inputs:
        """The inputs for aligned faces.

        Args:
            images: `(N, S, S, 3) uint8`, RGB, a part of `split`.
            spec: The network's input contract.
        """
        if self.kind == "frame":
            return self.of_frame(*tile_faces(images, spec.crop_side))
        if self.kind == "crop":
            return (resize_faces(images, spec.crop_side),)
        return (preprocess(images, spec),)

    def of_frame(self, frame: U8, landmarks: F32) -> Inputs:
        """The inputs for faces of a frame.

        Args:
            frame: `(H, W, 3) uint8`, RGB.
            landmarks: `(N, 5, 2) float32`, a part of `split`.

        Raises:
            UsageError: The frame is too large for the engine.
        """
        first = self.bindings[0]
        fitted = fit_frame(frame, first.smallest[1:3], first.largest[1:3], self.file)
        return fitted[None], landmarks

    def write(self, arrays: Inputs) -> tuple[Shape, ...]:
        """Put arrays into the buffers.

        Args:
            arrays: One for each input.

        Returns:
            The shapes to run with.
        """
        return tuple(b.write(array) for b, array in zip(self.bindings, arrays, strict=True))

    def used(self, shapes: Sequence[Shape]) -> list[npt.NDArray[np.uint8]]:
        """The parts of the buffers that a run reads.

        Args:
            shapes: Of the run.
        """
        return [b.bytes_of(shape) for b, shape in zip(self.bindings, shapes, strict=True)]


def tensor_type(trt: Any, engine: "tensorrt.ICudaEngine", name: str, file: str) -> np.dtype[Any]:
    """The type of an engine's tensor, by which its buffer is sized: float32, or uint8 of an input.

    Args:
        trt: The module `tensorrt` or `tensorrt_rtx`.
        engine: The engine.
        name: The tensor's name.
        file: The engine's name.

    Raises:
        MachineError: It has another type, such as half precision or int64.
    """
    # Not trt.nptype: TensorRT 8's fails with NumPy 1.24 and later.
    types: dict[str, np.dtype[Any]] = {"FLOAT": np.dtype(np.float32)}
    if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
        types["UINT8"] = np.dtype(np.uint8)
    kind = engine.get_tensor_dtype(name)
    for label, made in types.items():
        if kind == getattr(trt.DataType, label, None):
            return made
    raise MachineError(
        f"{name!r} of {file} has the type {getattr(kind, 'name', kind)}, expected"
        f" {' or '.join(types)}",
        "build it again with `fr-edge build-engine`",
    )


def bind_inputs(trt: Any, engine: "tensorrt.ICudaEngine", cuda: Cuda, file: str) -> EngineInputs:
    """Make buffers for an engine's inputs.

    Args:
        trt: The module `tensorrt` or `tensorrt_rtx`.
        engine: The engine, built by `trt.builder.compile_plan`.
        cuda: The GPU.
        file: The engine's name.

    Raises:
        MachineError: Memory does not suffice, or an input has a type that is not served.
    """
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    names = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    names.sort(key=lambda name: name != FRAME)
    bindings = []
    for name in names:
        kind = tensor_type(trt, engine, name, file)
        smallest, _, largest = (
            tuple(int(dims[i]) for i in range(len(dims)))
            for dims in engine.get_tensor_profile_shape(name, 0)
        )
        buffer = cuda.buffer(kind.itemsize * prod(largest))
        bindings.append(InputBinding(name, kind, smallest, largest, buffer))
    taken: InputKind = "crop" if bindings[0].type == np.uint8 else "tensor"
    return EngineInputs("frame" if names[0] == FRAME else taken, tuple(bindings), file)
