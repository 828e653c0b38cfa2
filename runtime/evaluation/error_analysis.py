"""Why an engine's embeddings are wrong: the input, mixed-up faces, noise and its size.

A wrong input contract is the most frequent cause. The ways to preprocess a face are tried one by one
on the original network until one gives the embeddings in question.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ...arrays import F32, F64, U8
from ...faces.contract import ContractVariant, InputSpec, contract_variants, preprocess
from ...metrics.rates import CosineDrift
from ...metrics.strata import Stratum
from ...metrics.verification import cosines, normalise
from ..session import Session
from .judgement import MIN_REFERENCE_COSINE

_EXPLAINED = 0.98  # cosine from which a mistake explains what was seen
_SAME = 0.9999  # cosine from which it is the same arithmetic: no further mistake is tried
_UNEXPLAINED = 0.2  # share of the error that a mistake may leave unexplained
_TRIED = 8  # faces that every mistake is tried on

_CLOSER = 0.01  # by which another face's embedding must be closer than the face's own
_SHARED = 0.5  # share of the error's length from which it is a shift that all faces share
_UNRELATED = 0.2  # cosine below which embeddings have nothing in common
_ODD = 10.0  # faces whose error is so many times the median's are not the tail of noise

_FAR_MORE = 4.0  # times the other faces' error that is remarkable
_MIN_ERROR = 0.01  # 1 - cosine, from which an error is remarkable


def explain_all(
    suspects: Mapping[str, F32], faces: U8, reference: Session, spec: InputSpec
) -> list[str]:
    """Explain every network that does not give the reference's embeddings.

    Args:
        suspects: Name -> embeddings `(N, D) float32` of the faces.
        faces: `(N, 112, 112, 3) uint8`, RGB.
        reference: model.onnx in FP32.
        spec: The bundle's input contract.

    Returns:
        A sentence for each suspect that is not the reference.
    """
    expected = reference.embed(faces)
    return [
        f"{name}: {explain(rows, expected, faces, reference, spec)}"
        for name, rows in suspects.items()
        if float(cosines(rows, expected).min()) < MIN_REFERENCE_COSINE
    ]


def explain(suspect: F32, expected: F32, faces: U8, reference: Session, spec: InputSpec) -> str:
    """Why embeddings are not the expected ones.

    Args:
        suspect: `(N, D) float32`.
        expected: The reference's, `(N, D) float32`.
        faces: `(N, 112, 112, 3) uint8`, RGB.
        reference: model.onnx in FP32.
        spec: The bundle's input contract.

    Returns:
        A sentence: a mistake in the input that makes the reference give the same, faces that are
        mixed up, or a description of the error.
    """
    if mistake := _input_mistake(suspect, expected, faces, reference, spec):
        return f"it answers as model.onnx does when {mistake}"
    if mixed := _mixed_up(suspect, expected):
        return f"{mixed} of {len(suspect)} embeddings are another face's: keys or rows are mixed up"
    return _describe_error(suspect, expected)


def strata_doubts(strata: Sequence[Stratum], drift: CosineDrift) -> tuple[str, Stratum | None]:
    """Whether one kind of face moved far more than the others.

    Args:
        strata: Kinds of faces with their cosines.
        drift: The cosines of all faces.

    Returns:
        A sentence about the worst kind, and that kind; empty and None where none stands out.
    """
    doubts: list[tuple[float, Stratum]] = []
    for stratum in strata:
        error, others = 1 - stratum.cosine.mean, drift.faces - stratum.faces
        if others:
            rest = ((1 - drift.mean) * drift.faces - error * stratum.faces) / others
            if error > max(_FAR_MORE * rest, _MIN_ERROR):
                doubts.append((error / max(rest, 1e-9), stratum))
    if not doubts:
        return "", None
    times, worst = max(doubts, key=lambda pair: pair[0])
    text = (
        f"{worst.name} faces alone go wrong: mean cosine {worst.cosine.mean:.4f}, "
        f"their error is {min(times, 999):.0f} times that of the other faces"
    )
    return text, worst


def _input_mistake(
    suspect: F32, expected: F32, faces: U8, reference: Session, spec: InputSpec
) -> str:
    """The mistake that makes the reference give `suspect`, and how well it explains it; or ""."""
    picks = np.unique(np.linspace(0, len(faces) - 1, _TRIED).astype(int))
    suspect, expected, faces = suspect[picks], expected[picks], faces[picks]
    error = 1 - float(np.median(cosines(suspect, expected)))
    floor = max(_EXPLAINED, 1 - _UNEXPLAINED * error)
    if floor >= _SAME:  # the error is too small for a mistake
        return ""

    def alike(inputs: F32) -> float:
        return float(np.median(cosines(suspect, reference.embed_tensor(inputs))))

    best = (0.0, "")
    for mistakes in _mistakes(spec):
        trials = ((alike(variant.inputs(faces)), name) for variant, name in mistakes)
        best = max(best, *trials)
        if best[0] >= _SAME:
            break
    else:
        best = max(best, _mean_offset(faces, spec, alike), _std_factor(faces, spec, alike))
    return f"{best[1]} (cosine {best[0]:.4f} with that)" if best[0] >= floor else ""


def _mistakes(spec: InputSpec) -> tuple[list[tuple[ContractVariant, str]], ...]:
    """Other ways to preprocess with their names: those with one mistake, then those with two."""
    single: list[tuple[ContractVariant, str]] = []
    double: list[tuple[ContractVariant, str]] = []
    for variant in contract_variants(spec):
        names = []
        if variant.spec.channels != spec.channels:
            names.append(f"channels are {variant.spec.channels}, not {spec.channels}")
        if (variant.spec.mean, variant.spec.std) != (spec.mean, spec.std):
            names.append(f"mean and std are those of {variant.name!r}: {variant.spec.describe()}")
        if variant.view != "upright":
            names.append(f"faces are {variant.view}")
        if names:
            (single if len(names) == 1 else double).append((variant, ", and ".join(names)))
    return single, double


def _mean_offset(faces: U8, spec: InputSpec, alike: Callable[[F32], float]) -> tuple[float, str]:
    """The shift of the mean that explains most: (cosine, name)."""

    def shifted(levels: float) -> F32:
        red, green, blue = (value + levels for value in spec.mean)
        return preprocess(faces, replace(spec, mean=(red, green, blue)))

    cosine, levels = _climb(lambda x: alike(shifted(x)), np.arange(-120.0, 121.0, 20.0), 10.0)
    return cosine, f"the mean is off by {levels:+.1f} levels"


def _std_factor(faces: U8, spec: InputSpec, alike: Callable[[F32], float]) -> tuple[float, str]:
    """The factor of the std that explains most: (cosine, name)."""

    def scaled(octaves: float) -> F32:
        red, green, blue = (float(value * 2.0**octaves) for value in spec.std)
        return preprocess(faces, replace(spec, std=(red, green, blue)))

    cosine, octaves = _climb(lambda x: alike(scaled(x)), np.arange(-8.0, 8.5, 2.0), 1.0)
    return cosine, f"the std is {2**octaves:.3g} times the contract's"


def _climb(height: Callable[[float], float], places: F64, step: float) -> tuple[float, float]:
    """The highest place of a grid, then of its neighbours in ever smaller steps: (height, place)."""
    best = max((height(float(place)), float(place)) for place in places)
    for _ in range(4):
        best = max(best, *((height(best[1] + s), best[1] + s) for s in (-step, step)))
        step /= 2
    return best


def _mixed_up(suspect: F32, expected: F32) -> int:
    """How many rows are nearly the embedding of another row's face, and not of their own."""
    alike = normalise(suspect) @ normalise(expected).T
    own = np.diag(alike).copy()
    np.fill_diagonal(alike, -2)
    best = alike.max(axis=1)
    return int(((best > _EXPLAINED) & (own < best - _CLOSER)).sum())


def _describe_error(suspect: F32, expected: F32) -> str:
    """Noise, or a shift that all faces share, and how large."""
    each = cosines(suspect, expected)
    cosine = float(np.median(each))
    odd = int(((each < _EXPLAINED) & (1 - each > _ODD * (1 - cosine))).sum())
    if 0 < odd < len(each) / 2:
        return f"{odd} of {len(each)} faces go wrong, the others keep a median cosine {cosine:.4f}"
    if cosine < _UNRELATED:
        return f"the embeddings have nothing in common (median cosine {cosine:.4f})"
    # The part at a right angle to the original, relative to the part along it.
    size = float(np.sqrt(max(0.0, 1 / cosine**2 - 1)))
    error = normalise(suspect) - normalise(expected)
    length = float(np.sqrt((error**2).sum(axis=1).mean()))
    shared = float(np.linalg.norm(error.mean(axis=0)))
    # The mean of N independent errors has length `length / sqrt(N)`.
    kind = "a shift that all faces share" if shared > _SHARED * length else "noise"
    return f"the error is {kind}, {size:.1%} of an embedding's length (median cosine {cosine:.4f})"
