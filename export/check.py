"""Proves by number that the exported network computes what the original does.

Drawn faces and uniform noise go through both, one at a time and seven at a time. Knows nothing of
how either was made.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import ModelError
from ..faces.contract import FRAME, InputSpec, preprocess
from ..faces.synthetic import draw_face
from .reference import Embed, Floats

MIN_COSINE = 0.99999
BATCHES = (1, 7)
_SEED = 17
_CONSTANT = 1e-6


@dataclass(frozen=True)
class Agreement:
    """How far an exported network is from the original over all checked inputs."""

    max_abs_difference: float
    min_cosine: float


def probe_inputs(spec: InputSpec) -> Floats:
    """Drawn faces, then as much uniform noise: `(16, 3, H, W) float32` as the contract says."""
    count = sum(BATCHES)
    faces = np.stack([draw_face(identity, 0, _SEED) for identity in range(count)])
    noise = np.random.default_rng(_SEED).integers(0, 256, (count, FRAME, FRAME, 3), np.uint8)
    return preprocess(np.concatenate([faces, noise]), spec)


def reference_embeddings(embed: Embed, inputs: Floats) -> Floats:
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


def compare(
    embed: Embed, inputs: Floats, expected: Floats, *, min_cosine: float = MIN_COSINE
) -> Agreement:
    """`measure`, with a floor: raises ModelError when a cosine is under `min_cosine`."""
    agreement = measure(embed, inputs, expected)
    if not agreement.min_cosine >= min_cosine:
        raise ModelError(
            f"the exported network is not the original: cosine {agreement.min_cosine:.6f},"
            f" expected {min_cosine} or more (largest difference"
            f" {agreement.max_abs_difference:.3g})",
            "this is a fault of the conversion; please report the model",
        )
    return agreement


def measure(embed: Embed, inputs: Floats, expected: Floats) -> Agreement:
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
    return Agreement(difference, float(cosines(result, expected).min()))


def cosines(a: Floats, b: Floats) -> npt.NDArray[np.float64]:
    """Cosine of each row of a with that of b, `(N,) float64`; 0 where one has length 0 or no
    finite one."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        dots: npt.NDArray[np.float64] = (x * y).sum(axis=1)
        usable = (lengths > 0) & np.isfinite(dots) & np.isfinite(lengths)
        found: npt.NDArray[np.float64] = np.zeros_like(dots)
        np.divide(dots, lengths, out=found, where=usable)
    return found


def _embed_batch(embed: Embed, batch: Floats, dim: int) -> Floats:
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
