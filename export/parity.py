"""Proves by number that the exported network computes what the original does.

Drawn faces and uniform noise go through both, one at a time and seven at a time. Knows nothing of
how either was made.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from ..arrays import F32
from ..errors import ModelError
from ..faces.contract import ALIGNED_SIZE, InputSpec, preprocess
from ..faces.synthetic.render import draw_face
from ..graph.run import Embed, activations
from ..metrics.verification import cosines

MIN_COSINE = 0.99999

BATCHES = (1, 7)

_SEED = 17

_CONSTANT = 1e-6


@dataclass(frozen=True)
class Parity:
    """How far an exported network is from the original over all checked inputs."""

    max_abs_difference: float
    min_cosine: float


def probe_inputs(spec: InputSpec) -> F32:
    """Drawn faces, then as much uniform noise: `(16, 3, H, W) float32` as the contract says."""
    count = sum(BATCHES)
    faces = np.stack([draw_face(identity, 0, _SEED) for identity in range(count)])
    noise = np.random.default_rng(_SEED).integers(
        0, 256, (count, ALIGNED_SIZE, ALIGNED_SIZE, 3), np.uint8
    )
    return preprocess(np.concatenate([faces, noise]), spec)


def reference_embeddings(embed: Embed, inputs: F32) -> F32:
    """The original's embeddings of `probe_inputs`, `(16, D) float32`.

    Raises ModelError when they cannot tell people apart: not finite, zero, or the same for all.
    """
    found = embed(inputs)
    if found.ndim != 2 or found.shape[0] != len(inputs) or found.shape[1] < 2:
        raise ModelError(
            f"the network gives {found.shape} for {len(inputs)} faces; expected ({len(inputs)}, D)"
        )
    if not np.isfinite(found).all():
        raise ModelError(
            "the network's embedding of a drawn face is not finite",
            "its weights are damaged (NaN or infinite), or the input contract is wrong",
        )
    faces = found[: len(found) // 2]
    if np.ptp(faces, axis=0).max() <= _CONSTANT * max(1.0, float(np.abs(faces).max())):
        raise ModelError(
            "the network gives every face the same embedding: it does not depend on the input",
            "train it further, or check the weights and the input contract",
        )
    return found


def check_parity(
    embed: Embed, inputs: F32, expected: F32, *, min_cosine: float = MIN_COSINE
) -> Parity:
    """`measure`, with a floor: raises ModelError when a cosine is under `min_cosine`."""
    agreement = measure_parity(embed, inputs, expected)
    if not agreement.min_cosine >= min_cosine:
        raise ModelError(
            f"the exported network is not the original: cosine {agreement.min_cosine:.6f},"
            f" expected {min_cosine} or more (largest difference"
            f" {agreement.max_abs_difference:.3g})",
            "this is a fault of the conversion; please report the model",
        )
    return agreement


def measure_parity(embed: Embed, inputs: F32, expected: F32) -> Parity:
    """Run the exported network at batch 1 and 7 on all inputs and compare with the original.

    Raises ModelError when it does not run at a batch or gives other shapes; what is not finite
    counts as cosine 0.
    """
    found = []
    start = 0
    while start < len(inputs):
        for size in BATCHES:
            found.append(_embed_batch(embed, inputs[start : start + size], expected.shape[1]))
            start += size
    result = np.concatenate(found)
    with np.errstate(all="ignore"):
        difference = float(np.abs(result - expected).max())
    return Parity(difference, float(cosines(result, expected).min()))


def _embed_batch(embed: Embed, batch: F32, dim: int) -> F32:
    try:
        found = embed(batch)
    except ModelError as error:
        raise ModelError(
            f"the exported network does not take {len(batch)} face(s): {error.message}",
            "its graph fixes the batch; export it again with a dynamic batch dimension",
        ) from error
    if found.shape != (len(batch), dim):
        raise ModelError(
            f"the exported network gives {found.shape} for {len(batch)} face(s); expected"
            f" ({len(batch)}, {dim})",
            "its graph fixes the batch; export it again with a dynamic batch dimension",
        )
    return found


# Names the first node from which two versions of a network differ.
#
# Steps of export keep the names of the tensors they do not remove, so equal names are compared.

NODE_TOLERANCE = 1e-3
"""Relative, of the whole tensor: far above what the order of float32 sums does."""


def first_difference(before: ModelProto, after: ModelProto, inputs: F32) -> str:
    """`NAME (OPERATOR)` of `after`'s first differing node; "" if none, or one does not run."""
    try:
        exact, found = activations(before, inputs), activations(after, inputs)
    except ModelError:
        return ""
    for node in after.graph.node:
        for name in node.output:
            if name not in exact or name not in found or found[name].dtype.kind != "f":
                continue
            a, b = exact[name].astype(np.float64), found[name].astype(np.float64)
            if a.shape != b.shape or not _close(a, b):
                return f"{node.name or name} ({node.op_type})"
    return ""


def _close(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> bool:
    with np.errstate(all="ignore"):
        gap = float(np.linalg.norm(a - b))
        return gap <= NODE_TOLERANCE * float(np.linalg.norm(a)) + 1e-12
