"""One image in, one embedding out, float32: chooses and fills what a foreign graph has besides.

Nothing is guessed silently: each choice is logged, and `parity` compares with the given graph.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
import numpy.typing as npt
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from ..arrays import F32
from ..errors import ModelError, UsageError
from ..faces.contract import ALIGNED_SIZE, ARCFACE_TEMPLATE
from ..graph.edit import all_nodes
from ..graph.run import run_once
from ..metrics.verification import cosines
from .parity import MIN_COSINE

logger = logging.getLogger(__name__)

MIN_DIM = 16  # numbers in the shortest output that is taken for an embedding

HALF_COSINE = 0.999  # of a network in half precision with itself in float32: 11 bits a step

_WIDE = {  # types that become float32
    TensorProto.FLOAT16: "half precision",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.DOUBLE: "double precision",
}

_IMAGE_TYPES = (TensorProto.FLOAT, TensorProto.UINT8)


@dataclass(frozen=True)
class InterfaceOptions:
    """What the caller declares of a graph's inputs and outputs.

    Attributes:
        output: Name of the output that is the embedding; None where there is one candidate.
        constants: Input -> its numbers, for inputs besides the image.
        size: Height and width of the image where the graph leaves them open.
    """

    output: str | None = None
    constants: Mapping[str, F32] = field(default_factory=dict)
    size: tuple[int, int] = (ALIGNED_SIZE, ALIGNED_SIZE)


def to_float32(model: ModelProto) -> ModelProto:
    """Write weights, casts and inputs of other float types as float32.

    Args:
        model: Any model.

    Returns:
        A copy; half precision is exact in float32, double precision is rounded.

    Raises:
        ModelError: A number in double precision is too large for float32.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    changed: set[int] = set()
    for graph in _graphs(copy.graph):
        for tensor in graph.initializer:
            _convert(tensor, changed)
        for value in (*graph.input, *graph.output):
            changed |= _convert_type(value)
        graph.ClearField("value_info")
        for node in graph.node:
            for item in node.attribute:
                if item.type == AttributeProto.TENSOR:
                    _convert(item.t, changed)
                elif item.name in ("to", "dtype", "stash_type") and item.i in _WIDE:
                    changed.add(item.i)
                    item.i = TensorProto.FLOAT
    if changed:
        kinds = " and ".join(sorted(text for kind, text in _WIDE.items() if kind in changed))
        logger.info("the network computes in %s; exported in float32", kinds)
    return copy if changed else model


def one_image_in(model: ModelProto, options: InterfaceOptions) -> ModelProto:
    """Fill inputs besides the image, and let the image be float32 of rank 4.

    Args:
        model: A model whose weights are not listed as inputs.
        options: Numbers for inputs.

    Returns:
        A copy with one input. Five points get ArcFace's template, x first, as a share of the image:
        CVLface's convention (KP-RPE, 2024).

    Raises:
        ModelError: No input can be an image, or an input is not known; the message names it.
        UsageError: `options.constants` names no input, or has the wrong count of numbers.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    names = [value.name for value in graph.input]
    if unknown := sorted(options.constants.keys() - set(names)):
        raise UsageError(
            f"--constant {unknown[0]}: the network has no such input; it has {', '.join(names)}"
        )
    free = [value for value in graph.input if value.name not in options.constants]
    images = [value for value in free if _is_image(value)] if len(free) > 1 else free
    if len(images) != 1:
        shown = ", ".join(_describe(value) for value in graph.input) or "none"
        raise ModelError(
            f"the network has {len(names)} inputs ({shown}); expected one image",
            "give numbers for the others: --constant NAME=VALUE",
        )
    image = images[0]
    for value in [value for value in graph.input if value.name != image.name]:
        array = _numbers_for(value, options.constants.get(value.name))
        graph.initializer.append(numpy_helper.from_array(array, value.name))
        graph.input.remove(value)
    image = graph.input[0]
    tensor = image.type.tensor_type
    if tensor.elem_type == TensorProto.UINT8:
        logger.info(
            "input %s takes pixels as uint8: the network normalizes them itself", image.name
        )
        tensor.elem_type = TensorProto.FLOAT
        graph.ClearField("value_info")
    if not tensor.HasField("shape"):
        logger.info("input %s has no shape; taken as Nx3xHxW", image.name)
        tensor.CopyFrom(
            helper.make_tensor_type_proto(
                tensor.elem_type, ["batch", 3, "height", "width"]
            ).tensor_type
        )
    return copy


def one_embedding_out(model: ModelProto, options: InterfaceOptions) -> ModelProto:
    """Choose the output that is the embedding.

    Args:
        model: A model from `one_image_in`, channels first.
        options: The output's name, if it is declared, and the image's size.

    Returns:
        A copy with one output: the declared one, or the only one of 16 numbers or more per face.

    Raises:
        ModelError: Several outputs can be the embedding, or none; the message shows their shapes.
        UsageError: There is no output of that name.
    """
    outputs = list(model.graph.output)
    names = [value.name for value in outputs]
    if options.output is not None:
        if options.output not in names:
            raise UsageError(
                f"--output {options.output}: the network has no such output; it has"
                f" {', '.join(names)}"
            )
        return _with_output(model, options.output)
    if len(outputs) == 1:
        return model
    shape = _probe_shape(model.graph.input[0], options.size)
    arrays = run_once(model.SerializeToString(), np.zeros(shape, np.float32))
    shown = ", ".join(
        f"{name} {'x'.join(map(str, array.shape))}"
        for name, array in zip(names, arrays, strict=True)
    )
    candidates = [
        name
        for name, array in zip(names, arrays, strict=True)
        if array.dtype.kind == "f" and _is_embedding(array.shape, shape[0])
    ]
    if len(candidates) != 1:
        count = "none of them" if not candidates else f"{len(candidates)} of them"
        raise ModelError(
            f"the network has {len(names)} outputs ({shown}); {count} can be the embedding",
            "name the embedding: --output NAME",
        )
    logger.info(
        "the network has %d outputs (%s); %s is the embedding", len(names), shown, *candidates
    )
    return _with_output(model, candidates[0])


def check_widened(given: ModelProto, model: ModelProto, size: tuple[int, int]) -> None:
    """Compare a network in another float type with its float32 form, on noise.

    Args:
        given: The network as it was read.
        model: The network from `to_float32`, `one_image_in` and `one_embedding_out`.
        size: Height and width of the image where the graph leaves them open.

    Raises:
        ModelError: The float32 form computes something else.
    """
    weights = {tensor.name for tensor in given.graph.initializer}
    inputs = [value for value in given.graph.input if value.name not in weights]
    kinds = {tensor.data_type for g in _graphs(given.graph) for tensor in g.initializer}
    kinds |= {value.type.tensor_type.elem_type for value in (*inputs, *given.graph.output)}
    if kinds.isdisjoint(_WIDE) or len(inputs) != 1:
        return
    shape = _probe_shape(model.graph.input[0], size)
    faces = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    theirs = faces if list(_dims(inputs[0]))[-1:] != [shape[1]] else faces.transpose(0, 2, 3, 1)
    dtype = helper.tensor_dtype_to_np_dtype(inputs[0].type.tensor_type.elem_type)
    outputs = [output.name for output in given.graph.output]
    place = outputs.index(model.graph.output[0].name)
    try:
        expected = run_once(given.SerializeToString(), theirs.astype(dtype))[place]
    except ModelError as error:
        logger.warning("the network could not be compared in its own type: %s", error.message)
        return
    result = run_once(model.SerializeToString(), faces)[0]
    rows = [array.reshape(shape[0], -1).astype(np.float64) for array in (expected, result)]
    cosine = float(cosines(*rows).min())
    if not cosine >= (HALF_COSINE if TensorProto.DOUBLE not in kinds else MIN_COSINE):
        raise ModelError(f"in float32 the network is another one: cosine {cosine:.6f}")


def takes_pixels(model: ModelProto) -> bool:
    """Tell whether a network takes pixels 0..255 by its input's type.

    Args:
        model: A model as it was read.

    Returns:
        True for an image input of uint8.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    images = [value for value in model.graph.input if value.name not in weights]
    types = [value.type.tensor_type.elem_type for value in images if _is_image(value)]
    return TensorProto.UINT8 in types


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in all_nodes(graph):
        for item in node.attribute:
            if item.type == AttributeProto.GRAPH:
                yield item.g


def _convert(tensor: TensorProto, changed: set[int]) -> None:
    if tensor.data_type not in _WIDE:
        return
    changed.add(tensor.data_type)
    with np.errstate(over="ignore"):
        before = numpy_helper.to_array(tensor)
        array = before.astype(np.float32)
    if tensor.data_type == TensorProto.DOUBLE and (np.isinf(array) & np.isfinite(before)).any():
        raise ModelError(
            f"weight {tensor.name} holds {np.abs(before[np.isfinite(before)]).max():.3g}, too large"
            " for float32"
        )
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _convert_type(value: ValueInfoProto) -> set[int]:
    tensor = value.type.tensor_type
    if tensor.elem_type not in _WIDE:
        return set()
    kind, tensor.elem_type = tensor.elem_type, TensorProto.FLOAT
    return {kind}


def _dims(value: ValueInfoProto) -> list[int | None]:
    shape = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.dim_value > 0 else None for dim in shape]


def _is_image(value: ValueInfoProto) -> bool:
    """Rank 4 with 1 or 3 channels, or no shape."""
    tensor, dims = value.type.tensor_type, _dims(value)
    if tensor.elem_type not in _IMAGE_TYPES:
        return False
    if not tensor.HasField("shape"):
        return True
    return len(dims) == 4 and bool({dims[1], dims[3]} & {1, 3, None})


def _describe(value: ValueInfoProto) -> str:
    shape = "x".join("?" if size is None else str(size) for size in _dims(value))
    return f"{value.name} {shape}".strip()


def _numbers_for(value: ValueInfoProto, given: F32 | None) -> npt.NDArray[np.generic]:
    """The constant that takes the place of an input, for one face."""
    dims = _dims(value)
    shape = tuple(1 if place == 0 else size or 0 for place, size in enumerate(dims))
    kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    if given is not None:
        if given.size not in (1, prod(shape)) or 0 in shape:
            raise UsageError(
                f"--constant {value.name} has {given.size} numbers; expected {prod(shape)}, or one"
                f" for all, for input {_describe(value)}"
            )
        filled = np.full(shape, given) if given.size == 1 else given.reshape(shape)
        return filled.astype(kind)
    if shape[1:] in ((5, 2), (10,)) and kind.kind == "f":
        logger.info(
            "input %s gets the five points of an aligned face, as shares of the image (0..1)",
            value.name,
        )
        return (np.array(ARCFACE_TEMPLATE) / ALIGNED_SIZE).reshape(shape).astype(kind)
    raise ModelError(
        f"input {_describe(value)} is not an image and not five points; what it wants is not known",
        f"give its numbers: --constant {value.name}=VALUE",
    )


def _probe_shape(image: ValueInfoProto, size: tuple[int, int]) -> tuple[int, int, int, int]:
    batch, channels, height, width = _dims(image)
    return batch or 1, channels or 3, height or size[0], width or size[1]


def _is_embedding(shape: tuple[int, ...], batch: int) -> bool:
    numbers = prod(shape)
    return (
        shape[:1] == (batch,)
        and numbers >= MIN_DIM * batch
        and max(shape[1:], default=0) * batch == numbers
    )


def _with_output(model: ModelProto, name: str) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    kept = [value for value in model.graph.output if value.name == name]
    del copy.graph.output[:]
    copy.graph.output.extend(kept)
    return copy
