"""Checks a declared input contract before it is written into a bundle.

A graph that begins with its own normalization shows which pixels it wants; faces of known identity
show it by measurement. A contract that contradicts either is refused.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from ..arrays import F64
from ..errors import FacesError, ModelError
from ..faces.contract import InputSpec, preprocess, with_usual_normalizations
from ..faces.sources import Faces, portable_name, synthetic_faces
from ..graph.edit import attribute
from ..graph.run import Embed
from ..metrics.verification import normalise
from .preprocessing_search import (
    PreprocessingResult,
    contract_options,
    describe_contract,
    rank_contracts,
    same_input,
)

logger = logging.getLogger(__name__)

_PASSING = ("Transpose", "Cast", "Identity", "Gather", "Resize")  # keep (x - mean) / std as it is

_NORMALIZED_WIDTH = (0.5, 12.0)  # of normalized pixels, highest minus lowest; ImageNet's is 4.7

_RAW_ZERO = (-30.0, 225.0)  # grey level 0..255 that a network for pixels maps to 0

_UNIT_ZERO = (0.25, 0.75)  # the same for pixels 0..1; learned norms of other inputs have it near 0

_HINT_FACES = "synthetic:16x1@3"

_ALIKE = 0.7  # mean cosine of different synthetic faces; trained networks have 0.29 to 0.34

_TIE = 0.05  # of that cosine

_CLEARLY_LESS_ALIKE = 0.3  # networks with random weights find faces alike under every contract


@dataclass(frozen=True)
class OwnNormalization:
    """The normalization that a network begins with: `x * scale + offset`, per channel.

    Attributes:
        operators: The operators that do it, first to last.
        scale: `(3,)` as a tuple.
        offset: `(3,)` as a tuple.
    """

    operators: tuple[str, ...]
    scale: tuple[float, ...]
    offset: tuple[float, ...]

    @property
    def pixel_range(self) -> float | None:
        """Highest pixel value that it is made for: 255, 1, or None where it shows neither."""
        scale = np.abs(self.scale)
        zero = -np.array(self.offset) / np.array(self.scale)
        for top, (low, high) in ((255.0, _RAW_ZERO), (1.0, _UNIT_ZERO)):
            width = scale * top
            if np.all((width >= _NORMALIZED_WIDTH[0]) & (width <= _NORMALIZED_WIDTH[1])) and (
                np.all((zero >= low) & (zero <= high))
            ):
                return top
        return None

    def fits(self, spec: InputSpec) -> bool | None:
        """Whether a contract gives the pixels that the network normalizes; None if it shows none."""
        top = self.pixel_range
        if top is None:
            return None
        mean, std = np.array(spec.mean) * top / 255, np.array(spec.std) * top / 255
        return bool(np.all(np.abs(mean) <= 0.04 * top) and np.all((std >= 0.75) & (std <= 1.5)))


@dataclass(frozen=True)
class ContractCheck:
    """How the input contract was checked.

    Attributes:
        own_normalization: Operators by which the network normalizes pixels itself; empty where it
            does not.
        faces: Source of the faces that it was checked on; None without any.
        verdict: What the check showed, a sentence.
        right: Whether the check confirms the contract; None where it can tell nothing.
    """

    own_normalization: tuple[str, ...]
    faces: str | None
    verdict: str
    right: bool | None


def own_normalization(model: ModelProto) -> OwnNormalization | None:
    """Read the normalization that a network begins with.

    Args:
        model: A model from `export.canonicalize.tidy`.

    Returns:
        Its scale and offset; None if the first operation does not normalise.
    """
    graph, constants = model.graph, _constants(model)
    tensor = graph.input[0].name
    scale, offset = np.ones(3), np.zeros(3)
    operators: list[str] = []
    readers: dict[str, list[NodeProto]] = {}  # looked up, for a chain may have 50,000 nodes
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            readers.setdefault(name, []).append(node)
    while len(following := readers.pop(tensor, [])) == 1:
        node = following[0]
        if node.op_type not in _PASSING:
            step = _affine(node, tensor, constants)
            if step is None:
                break
            scale, offset = scale * step[0], offset * step[0] + step[1]
            operators.append(node.op_type)
        tensor = node.output[0]
    if not operators or not np.all(scale):
        return None
    return OwnNormalization(tuple(operators), tuple(map(float, scale)), tuple(map(float, offset)))


def check_contract(
    model: ModelProto,
    embed: Embed,
    spec: InputSpec,
    faces: Faces | None = None,
    *,
    force: bool = False,
) -> ContractCheck:
    """Check a declared contract by the graph's first operations, and by faces where there are any.

    Args:
        model: A model from `export.canonicalize.tidy`.
        embed: The original network, `(N, 3, H, W) float32 -> (N, D) float32`.
        spec: The contract.
        faces: Faces of known identity.
        force: Warn of a wrong contract instead of refusing it.

    Returns:
        What was checked.

    Raises:
        ModelError: The contract is wrong; the hint names the one that fits.
    """
    own = own_normalization(model)
    fits = own.fits(spec) if own else None
    operators = own.operators if own and fits is not None else ()
    if own and fits is False:
        _refuse_second_normalization(own, spec, force)
    result = _search(embed, spec, faces) if faces is not None else None
    if faces is None or result is None:
        verdict = "the contract was declared and not tried on faces"
        if fits is None and (hint := _scale_hint(embed, spec)):
            logger.warning("%s", hint)
            verdict += f"; {hint}"
        return ContractCheck(operators, None, verdict, fits)
    if result.right is None:
        logger.warning(
            "the input contract could not be checked on %s: %s", faces.where, result.verdict
        )
        return ContractCheck(operators, portable_name(faces.where), result.verdict, fits)
    if result.right:
        logger.info("the input contract is right for %s: %s", faces.where, result.verdict)
    else:
        _refuse_worse(result, spec, faces.where, force)
    right = result.right and fits is not False
    return ContractCheck(operators, portable_name(faces.where), result.verdict, right)


def _scale_hint(embed: Embed, spec: InputSpec) -> str:
    """A contract under which different faces look alike to the network, and one under which they do
    not: the first layer was made for pixels on another scale, which no operator shows when the
    normalization was folded into its weights."""
    faces = synthetic_faces(_HINT_FACES)
    pixels = np.stack([faces.read(index) for index in range(len(faces))])

    def likeness(contract: InputSpec) -> float:
        unit = normalise(embed(preprocess(pixels, contract)).reshape(len(pixels), -1))
        return float(((unit @ unit.T).sum() - len(unit)) / (len(unit) * (len(unit) - 1)))

    declared = likeness(spec)
    if not declared > _ALIKE:
        return ""
    others = with_usual_normalizations(spec)
    likenesses = [likeness(other) for other in others]
    least = min(likenesses)
    if not least < declared - _CLEARLY_LESS_ALIKE:
        return ""
    # Of several that do as well, the most usual.
    best = next(o for o, alike in zip(others, likenesses, strict=True) if alike < least + _TIE)
    return (
        f"with {spec.describe()} different faces get nearly the same embedding (mean cosine"
        f" {declared:.2f}), with {best.describe()} they do not ({least:.2f}): does the"
        f" network's first layer normalize pixels? Compare {contract_options(best)}, or check with"
        " --faces"
    )


def _search(embed: Embed, spec: InputSpec, faces: Faces) -> PreprocessingResult | None:
    """The contracts on the faces; None where there are too few people to compare them."""
    try:
        return rank_contracts(embed, (spec.height, spec.width), faces, spec)
    except FacesError as error:
        logger.warning("the input contract was not checked: %s", error.message)
        return None


def _refuse_second_normalization(own: OwnNormalization, spec: InputSpec, force: bool) -> None:
    raw = own.pixel_range == 255.0
    pixels = "pixels 0..255" if raw else "pixels 0..1"
    message = (
        f"the network normalizes {pixels} itself (it begins with {' and '.join(own.operators)}),"
        f" and the contract would normalize them before: {spec.describe()}"
    )
    option = "--preset raw" if raw else "--mean 0 --std 255"
    _refuse(message, f"export with {option}", force)


def _refuse_worse(result: PreprocessingResult, spec: InputSpec, where: str, force: bool) -> None:
    """Refuse a contract that is worse than the best one beyond doubt."""
    declared = next(
        (c for c in result.ranking if c.view == result.best.view and same_input(c.input, spec)),
        None,
    )
    best = result.best.d_prime
    rest = f", d' {best:.2f} instead of {declared.d_prime:.2f}" if declared else ""
    message = (
        f"the input contract ({spec.describe()}) is not the one that this network was trained with:"
        f" {describe_contract(result.best)} separates the people in {where} better{rest}"
    )
    _refuse(message, f"export with {contract_options(result.best.input)}", force)


def _refuse(message: str, hint: str, force: bool) -> None:
    if not force:
        raise ModelError(message, f"{hint}; --force exports it nevertheless")
    logger.warning("%s; %s", message, hint)


def _affine(node: NodeProto, tensor: str, constants: Mapping[str, F64]) -> tuple[F64, F64] | None:
    """Scale and offset `(3,)` of one operation on `tensor`; None for any other operation."""
    if node.op_type == "BatchNormalization":
        if node.input[0] != tensor or not all(name in constants for name in node.input[1:5]):
            return None
        gamma, beta, mean, variance = (constants[name].reshape(-1) for name in node.input[1:5])
        if gamma.size not in (1, 3):
            return None
        scale = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
        return _triple(scale), _triple(beta - mean * scale)
    if node.op_type not in ("Sub", "Add", "Mul", "Div") or len(node.input) != 2:
        return None
    other = next((name for name in node.input if name != tensor), "")
    if other not in constants or constants[other].size not in (1, 3):
        return None
    value, one, first = _triple(constants[other]), np.ones(3), node.input[0] == tensor
    if node.op_type == "Add":
        return one, value
    if node.op_type == "Sub":
        return (one, -value) if first else (-one, value)
    if node.op_type == "Mul":
        return value, np.zeros(3)
    return (1 / value, np.zeros(3)) if first and np.all(value) else None


def _triple(values: F64) -> F64:
    return np.broadcast_to(values.reshape(-1), 3).astype(np.float64)


def _constants(model: ModelProto) -> dict[str, F64]:
    """Small constants by name, from initializers and Constant nodes."""
    tensors = list(model.graph.initializer)
    for node in model.graph.node:
        for item in node.attribute if node.op_type == "Constant" else ():
            if item.name == "value":
                tensors.append(item.t)
                tensors[-1].name = node.output[0]
    return {
        tensor.name: numpy_helper.to_array(tensor).astype(np.float64)
        for tensor in tensors
        if prod(tensor.dims) <= 3 and tensor.data_type in (TensorProto.FLOAT, TensorProto.DOUBLE)
    }
