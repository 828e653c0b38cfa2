"""What is wrong, in words: known mistakes are tried one by one until one explains what was seen.

A wrong input contract is the most frequent cause of "the engine is inaccurate"; here it gets a name.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ...faces.contract import PRESETS, InputSpec, preprocess
from ..accuracy.metrics import cosines, normalise
from ..engines.cpu import CpuSession
from .policy import PROOF

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

_EXPLAINED = 0.98
_BETTER = 0.01
_SYSTEMATIC = 0.5


def explain_all(
    suspects: Mapping[str, F32], faces: U8, fp32: CpuSession, spec: InputSpec
) -> list[str]:
    """A sentence for each of `suspects`, name -> embeddings of `faces`, that is not `fp32`'s."""
    expected = fp32.embed(preprocess(faces, spec))
    return [
        f"{name}: {explain(found, expected, faces, fp32, spec)}"
        for name, found in suspects.items()
        if float(cosines(found, expected).min()) < PROOF
    ]


def explain(suspect: F32, expected: F32, faces: U8, fp32: CpuSession, spec: InputSpec) -> str:
    """Why `suspect (N, D)` is not `expected (N, D)`, embeddings of `faces (N, 112, 112, 3)`.

    A mistake in the input is named when `fp32`, fed with it, gives the suspect's embeddings; else
    the error is described.
    """
    plain = float(np.median(cosines(suspect, expected)))
    best, cause = plain + _BETTER, ""
    for name, inputs in _mistakes(faces, spec):
        found = float(np.median(cosines(suspect, fp32.embed(inputs))))
        if found > best:
            best, cause = found, name
    if cause and best >= _EXPLAINED:
        return f"it answers as model.onnx does when {cause} (cosine {best:.4f} with that)"
    if mixed := _mixed_up(suspect, expected):
        return f"{mixed} of {len(suspect)} embeddings are another face's: keys or rows are mixed up"
    return _describe(suspect, expected, plain)


def label_doubts(embeddings: F32, labels: npt.NDArray[np.int64], keys: Sequence[str]) -> str:
    """A sentence when many faces look more like another person than like their own; else empty."""
    person = np.unique(labels, return_inverse=True)[1]
    count = np.bincount(person)
    several = np.flatnonzero(count[person] > 1)
    if not len(several) or len(count) < 2:
        return ""
    unit = normalise(embeddings)
    sums = np.zeros((len(count), unit.shape[1]), np.float32)
    np.add.at(sums, person, unit)
    means = normalise(sums)
    doubtful = []
    for start in range(0, len(several), 1024):
        part = several[start : start + 1024]
        others = unit[part] @ means.T
        others[np.arange(len(part)), person[part]] = -2
        own = cosines(unit[part], sums[person[part]] - unit[part])
        doubtful.extend(part[others.max(axis=1) > own])
    share = len(doubtful) / len(several)
    if share < 0.3:
        return ""
    return (
        f"labels: {share:.0%} of the faces look more like another person than like their own "
        f"(the first is {keys[doubtful[0]]}): labels are mixed up, or the reference network does "
        "not know these people"
    )


def _mistakes(faces: U8, spec: InputSpec) -> Iterator[tuple[str, F32]]:
    other = "BGR" if spec.channels == "RGB" else "RGB"
    yield (
        f"channels are {other}, not {spec.channels}",
        preprocess(faces, replace(spec, channels=other)),
    )
    tried = {(spec.mean, spec.std)}
    for name, preset in PRESETS.items():
        if (preset.mean, preset.std) not in tried:
            tried.add((preset.mean, preset.std))
            wrong = replace(spec, mean=preset.mean, std=preset.std)
            yield (
                f"mean and std are those of {name!r}: {wrong.describe()}",
                preprocess(faces, wrong),
            )
    yield "faces are mirrored", preprocess(np.ascontiguousarray(faces[:, :, ::-1]), spec)
    yield "faces are upside down", preprocess(np.ascontiguousarray(faces[:, ::-1]), spec)


def _mixed_up(suspect: F32, expected: F32) -> int:
    """How many rows are nearly the embedding of another row's face, and not of their own."""
    alike = normalise(suspect) @ normalise(expected).T
    own = np.diag(alike).copy()
    np.fill_diagonal(alike, -2)
    return int(((alike.max(axis=1) > _EXPLAINED) & (own < alike.max(axis=1) - _BETTER)).sum())


def _describe(suspect: F32, expected: F32, cosine: float) -> str:
    """Noise or a shift that all faces share, and how large."""
    error = normalise(suspect) - normalise(expected)
    size = float(np.sqrt((error**2).sum(axis=1).mean()))
    shared = float(np.linalg.norm(error.mean(axis=0)))
    # The mean of N independent errors has length size / sqrt(N).
    kind = "a shift that all faces share" if shared > _SYSTEMATIC * size else "noise"
    return f"the error is {kind}, {size:.1%} of an embedding's length (median cosine {cosine:.4f})"
