"""Mistakes in how a face becomes the input, tried one by one until one explains what was seen.

A wrong input contract is the most frequent cause of "the engine is inaccurate".
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ...arrays import F32, U8
from ...faces.contract import PRESETS, InputSpec, Triple, preprocess
from ...metrics.rates import CosineDrift
from ...metrics.strata import Stratum
from ...metrics.verification import cosines, normalise
from ..session import Session
from .gates import PROOF

MistakeTrial = tuple[str, F32]
"""What the mistake is called, and the faces as the network sees them with it."""

EXPLAINED = 0.98

BETTER = 0.01

_SAME = 0.9999
"""From here on it is the same network's arithmetic: no further mistake is tried."""

_LEFT = 0.2
"""What of the error a mistake may leave unexplained."""

_TRIED = 8
"""Faces that every mistake is tried on."""

_COMMON: tuple[tuple[Triple, Triple], ...] = (
    ((127.5,) * 3, (128.0,) * 3),
    ((127.5,) * 3, (1.0,) * 3),
    ((0.0,) * 3, (255.0,) * 3),
    (PRESETS["imagenet"].mean, (1.0,) * 3),
)
"""Mean and std that networks are fed with, beside the presets'."""


def find_mistake(suspect: F32, expected: F32, faces: U8, fp32: Session, spec: InputSpec) -> str:
    """The mistake that makes `fp32` give `suspect (N, D)` for `faces (N, 112, 112, 3)`, and how
    well it explains it; empty when none does. `expected (N, D)` is without any."""
    picks = np.unique(np.linspace(0, len(faces) - 1, _TRIED).astype(int))
    suspect, expected, faces = suspect[picks], expected[picks], faces[picks]
    wrong = 1 - float(np.median(cosines(suspect, expected)))
    floor = max(EXPLAINED, 1 - _LEFT * wrong)
    if floor >= _SAME:  # too little is wrong for a mistake
        return ""

    def alike(inputs: F32) -> float:
        return float(np.median(cosines(suspect, fp32.embed_tensor(inputs))))

    best = (0.0, "")
    for trials in (_plain(faces, spec), _swapped(faces, spec)):
        best = max(best, *((alike(inputs), name) for name, inputs in trials))
        if best[0] >= _SAME:
            break
    else:
        best = max(best, _mean_off(faces, spec, alike), _scale_off(faces, spec, alike))
    return f"{best[1]} (cosine {best[0]:.4f} with that)" if best[0] >= floor else ""


def _plain(faces: U8, spec: InputSpec) -> Iterator[MistakeTrial]:
    """One mistake alone."""
    swap = _other(spec)
    yield f"channels are {swap.channels}, not {spec.channels}", preprocess(faces, swap)
    yield from _numbers(faces, spec)
    yield "faces are mirrored", preprocess(np.ascontiguousarray(faces[:, :, ::-1]), spec)
    yield "faces are upside down", preprocess(np.ascontiguousarray(faces[:, ::-1]), spec)


def _swapped(faces: U8, spec: InputSpec) -> Iterator[MistakeTrial]:
    """The channels, and the numbers too."""
    swap = _other(spec)
    for name, inputs in _numbers(faces, swap):
        yield f"channels are {swap.channels}, not {spec.channels}, and {name}", inputs


def _other(spec: InputSpec) -> InputSpec:
    return replace(spec, channels="BGR" if spec.channels == "RGB" else "RGB")


def _numbers(faces: U8, spec: InputSpec) -> Iterator[MistakeTrial]:
    names = {(preset.mean, preset.std): name for name, preset in reversed(PRESETS.items())}
    for mean, std in dict.fromkeys((*names, *_COMMON)):
        if (mean, std) != (spec.mean, spec.std):
            wrong = replace(spec, mean=mean, std=std)
            of = f"those of {names[mean, std]!r}: " if (mean, std) in names else ""
            yield f"mean and std are {of}{wrong.describe()}", preprocess(faces, wrong)


def _mean_off(faces: U8, spec: InputSpec, alike: Callable[[F32], float]) -> tuple[float, str]:
    """A mean that nobody wrote down: which one explains most?"""

    def trial(levels: float) -> F32:
        red, green, blue = (value + levels for value in spec.mean)
        return preprocess(faces, replace(spec, mean=(red, green, blue)))

    cosine, levels = _climb(lambda x: alike(trial(x)), np.arange(-120.0, 121.0, 20.0), 10.0)
    return cosine, f"the mean is off by {levels:+.1f} levels"


def _scale_off(faces: U8, spec: InputSpec, alike: Callable[[F32], float]) -> tuple[float, str]:
    def trial(octaves: float) -> F32:
        red, green, blue = (float(value * 2.0**octaves) for value in spec.std)
        return preprocess(faces, replace(spec, std=(red, green, blue)))

    cosine, octaves = _climb(lambda x: alike(trial(x)), np.arange(-8.0, 8.5, 2.0), 1.0)
    return cosine, f"the std is {2**octaves:.3g} times the contract's"


def _climb(
    height: Callable[[float], float], places: npt.NDArray[np.float64], step: float
) -> tuple[float, float]:
    """The highest place of a row, then of its neighbours in ever smaller steps: (height, place)."""
    best = max((height(float(place)), float(place)) for place in places)
    for _ in range(4):
        best = max(best, *((height(best[1] + s), best[1] + s) for s in (-step, step)))
        step /= 2
    return best


# What is wrong, in words: a mistake in the input, faces mixed up, noise and its size, labels.

_SYSTEMATIC = 0.5

_UNLIKE = 0.2

_MANY = 0.3

_FEW_ODD = 10.0
"""Faces whose error is so many times the median's are not noise's tail."""

_FAR_MORE, _MOVED = 4.0, 0.01
"""How many times the others' error is remarkable, and from which error on (1 - cosine)."""


def explain_all(
    suspects: Mapping[str, F32], faces: U8, fp32: Session, spec: InputSpec
) -> list[str]:
    """A sentence for each of `suspects`, name -> embeddings of `faces`, that is not `fp32`'s."""
    expected = fp32.embed_tensor(preprocess(faces, spec))
    return [
        f"{name}: {explain(found, expected, faces, fp32, spec)}"
        for name, found in suspects.items()
        if float(cosines(found, expected).min()) < PROOF
    ]


def explain(suspect: F32, expected: F32, faces: U8, fp32: Session, spec: InputSpec) -> str:
    """Why `suspect (N, D)` is not `expected (N, D)`, embeddings of `faces (N, 112, 112, 3)`.

    A mistake in the input is named when `fp32`, fed with it, gives the suspect's embeddings; else
    the error is described.
    """
    if mistake := find_mistake(suspect, expected, faces, fp32, spec):
        return f"it answers as model.onnx does when {mistake}"
    if mixed := _mixed_up(suspect, expected):
        return f"{mixed} of {len(suspect)} embeddings are another face's: keys or rows are mixed up"
    return _describe(suspect, expected)


def kind_doubts(strata: Sequence[Stratum], drift: CosineDrift) -> str:
    """A sentence when one kind of face moved far more than all the others; else empty.

    Moved is 1 - cosine in the mean; the others' follows from everybody's.
    """
    found: list[tuple[float, Stratum]] = []
    for stratum in strata:
        moved, others = 1 - stratum.cosine.mean, drift.faces - stratum.faces
        if others:
            rest = ((1 - drift.mean) * drift.faces - moved * stratum.faces) / others
            if moved > max(_FAR_MORE * rest, _MOVED):
                found.append((moved / max(rest, 1e-9), stratum))
    if not found:
        return ""
    times, worst = max(found, key=lambda pair: pair[0])
    return (
        f"{worst.name} faces alone go wrong: mean cosine {worst.cosine.mean:.4f}, "
        f"their error is {min(times, 999):.0f} times that of the other faces"
    )


def label_doubts(embeddings: F32, labels: npt.NDArray[np.int64], keys: Sequence[str]) -> str:
    """A sentence when faces look more like another person than like their own; else empty.

    Few do by chance. A few that do by far, on a network that knows the others, lie in the wrong
    folder; with many, nobody can tell whether it is the labels or the network.
    """
    person = np.unique(labels, return_inverse=True)[1]
    count = np.bincount(person)
    several = np.flatnonzero(count[person] > 1)
    if not len(several) or len(count) < 2:
        return ""
    unit = normalise(embeddings)
    sums = np.zeros((len(count), unit.shape[1]), np.float32)
    np.add.at(sums, person, unit)
    means = normalise(sums)
    own_all, other_all = [], []
    for start in range(0, len(several), 1024):
        part = several[start : start + 1024]
        others = unit[part] @ means.T
        others[np.arange(len(part)), person[part]] = -2
        own = cosines(unit[part], sums[person[part]] - unit[part])
        own_all.append(own)
        other_all.append(others.max(axis=1))
    own, other = np.concatenate(own_all), np.concatenate(other_all)
    doubtful = several[other > own]
    share = len(doubtful) / len(several)
    gap = float(np.median(own) - np.median(other))
    sure = several[other - own > gap / 2]
    if share < _MANY and gap > 0 and len(sure) and len(sure) >= len(doubtful) / 2:
        return (
            f"labels: {len(sure)} of {len(several)} faces look like another person by far, "
            f"the first is {keys[sure[0]]}: they lie in the wrong folder"
        )
    if share < _MANY:
        return ""
    return (
        f"labels: {share:.0%} of the faces look more like another person than like their own "
        f"(the first is {keys[doubtful[0]]}): labels are mixed up, or the reference network does "
        "not know these people"
    )


def _mixed_up(suspect: F32, expected: F32) -> int:
    """How many rows are nearly the embedding of another row's face, and not of their own."""
    alike = normalise(suspect) @ normalise(expected).T
    own = np.diag(alike).copy()
    np.fill_diagonal(alike, -2)
    return int(((alike.max(axis=1) > EXPLAINED) & (own < alike.max(axis=1) - BETTER)).sum())


def _describe(suspect: F32, expected: F32) -> str:
    """Noise or a shift that all faces share, and how large."""
    each = cosines(suspect, expected)
    cosine = float(np.median(each))
    odd = int(((each < EXPLAINED) & (1 - each > _FEW_ODD * (1 - cosine))).sum())
    if 0 < odd < len(each) / 2:
        return f"{odd} of {len(each)} faces go wrong, the others keep a median cosine {cosine:.4f}"
    if cosine < _UNLIKE:
        return f"the embeddings have nothing in common (median cosine {cosine:.4f})"
    # What stands at a right angle to the original, against what is left of it.
    size = float(np.sqrt(max(0.0, 1 / cosine**2 - 1)))
    error = normalise(suspect) - normalise(expected)
    length = float(np.sqrt((error**2).sum(axis=1).mean()))
    shared = float(np.linalg.norm(error.mean(axis=0)))
    # The mean of N independent errors has length `length / sqrt(N)`.
    kind = "a shift that all faces share" if shared > _SYSTEMATIC * length else "noise"
    return f"the error is {kind}, {size:.1%} of an embedding's length (median cosine {cosine:.4f})"
