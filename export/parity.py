"""Measures that an exported network computes what the original does, and where two differ.

Synthetic faces and uniform noise go through both, one at a time and seven at a time.
"""

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from ..arrays import F32, F64
from ..errors import ModelError
from ..faces.contract import ALIGNED_SIZE, InputSpec, preprocess
from ..faces.synthetic.render import draw_face
from ..graph.run import Embed, activations
from ..metrics.verification import cosines

MIN_COSINE = 0.99999

BATCHES = (1, 7)

NODE_TOLERANCE = (
    1e-3  # relative to the tensor's norm: far above what the order of float32 sums does
)

_SEED = 17

_CONSTANT = 1e-6  # relative spread of an embedding that does not depend on the face


@dataclass(frozen=True)
class Parity:
    """How far an exported network is from the original over all checked inputs."""

    max_abs_difference: float
    min_cosine: float


def probe_inputs(spec: InputSpec) -> F32:
    """Make inputs to compare networks on: synthetic faces, then as much uniform noise.

    Args:
        spec: The input contract.

    Returns:
        `(16, 3, H, W) float32`, the same in every call.
    """
    count = sum(BATCHES)
    faces = np.stack([draw_face(identity, 0, _SEED) for identity in range(count)])
    noise = np.random.default_rng(_SEED).integers(
        0, 256, (count, ALIGNED_SIZE, ALIGNED_SIZE, 3), np.uint8
    )
    return preprocess(np.concatenate([faces, noise]), spec)


def reference_embeddings(embed: Embed, inputs: F32) -> F32:
    """Run the original network on `probe_inputs` and check that it tells faces apart.

    Args:
        embed: The original network.
        inputs: `(N, 3, H, W) float32`; the first half are faces.

    Returns:
        Its embeddings, `(N, D) float32`.

    Raises:
        ModelError: They are not one per face, not finite, or the same for every face.
    """
    embeddings = embed(inputs)
    shape = embeddings.shape
    if len(shape) != 2 or shape[0] != len(inputs) or shape[1] < 2:
        raise ModelError(
            f"the network gives {shape} for {len(inputs)} faces; expected ({len(inputs)}, D)"
        )
    if not np.isfinite(embeddings).all():
        raise ModelError(
            "the network's embedding of a synthetic face is not finite",
            "its weights are damaged (NaN or infinite), or the input contract is wrong",
        )
    faces = embeddings[: len(embeddings) // 2]
    if np.ptp(faces, axis=0).max() <= _CONSTANT * max(1.0, float(np.abs(faces).max())):
        raise ModelError(
            "the network gives every face the same embedding: it does not depend on the input",
            "train it further, or check the weights and the input contract",
        )
    return embeddings


def measure_parity(embed: Embed, inputs: F32, expected: F32) -> Parity:
    """Run an exported network at batch 1 and 7 and compare it with the original.

    Args:
        embed: The exported network.
        inputs: `(N, 3, H, W) float32`.
        expected: `(N, D) float32`, the original's embeddings of them.

    Returns:
        The largest differences; an embedding that is not finite counts as cosine 0.

    Raises:
        ModelError: The network does not run at a batch, or gives another shape.
    """
    results = []
    start = 0
    while start < len(inputs):
        for size in BATCHES:
            results.append(_embed_batch(embed, inputs[start : start + size], expected.shape[1]))
            start += size
    result = np.concatenate(results)
    with np.errstate(all="ignore"):
        difference = float(np.abs(result - expected).max())
    return Parity(difference, float(cosines(result, expected).min()))


def check_parity(
    embed: Embed, inputs: F32, expected: F32, *, min_cosine: float = MIN_COSINE
) -> Parity:
    """Do as `measure_parity`, with a limit.

    Args:
        embed: The exported network.
        inputs: `(N, 3, H, W) float32`.
        expected: `(N, D) float32`, the original's embeddings of them.
        min_cosine: The lowest cosine that is accepted.

    Returns:
        The largest differences.

    Raises:
        ModelError: A cosine is below the limit, or the network does not run.
    """
    parity = measure_parity(embed, inputs, expected)
    if not parity.min_cosine >= min_cosine:
        raise ModelError(
            f"the exported network is not the original: cosine {parity.min_cosine:.6f},"
            f" expected {min_cosine} or more (largest difference"
            f" {parity.max_abs_difference:.3g})",
            "this is a fault of the conversion; please report the model",
        )
    return parity


def _embed_batch(embed: Embed, batch: F32, dim: int) -> F32:
    hint = "its graph fixes the batch; export it again with a dynamic batch dimension"
    try:
        embeddings = embed(batch)
    except ModelError as error:
        raise ModelError(
            f"the exported network does not take {len(batch)} face(s): {error.message}", hint
        ) from error
    if embeddings.shape != (len(batch), dim):
        raise ModelError(
            f"the exported network gives {embeddings.shape} for {len(batch)} face(s); expected"
            f" ({len(batch)}, {dim})",
            hint,
        )
    return embeddings


def first_difference(before: ModelProto, after: ModelProto, inputs: F32) -> str:
    """Name the first node from which two versions of a network differ.

    Steps of export keep the names of the tensors that they do not remove: equal names are compared.

    Args:
        before: A version of the network.
        after: Another.
        inputs: `(N, 3, H, W) float32`.

    Returns:
        `NAME (OPERATOR)` of a node of `after`; "" if none differs or one version does not run.
    """
    try:
        exact, other = activations(before, inputs), activations(after, inputs)
    except ModelError:
        return ""
    for node in after.graph.node:
        for name in node.output:
            if name not in exact or name not in other or other[name].dtype.kind != "f":
                continue
            a, b = exact[name].astype(np.float64), other[name].astype(np.float64)
            if a.shape != b.shape or not _is_close(a, b):
                return f"{node.name or name} ({node.op_type})"
    return ""


def _is_close(a: F64, b: F64) -> bool:
    with np.errstate(all="ignore"):
        gap = float(np.linalg.norm(a - b))
        return gap <= NODE_TOLERANCE * float(np.linalg.norm(a)) + 1e-12
