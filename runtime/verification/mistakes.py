"""Mistakes in how a face becomes the input, tried one by one until one explains what was seen.

A wrong input contract is the most frequent cause of "the engine is inaccurate".
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ...faces.contract import PRESETS, InputSpec, Triple, preprocess
from ..accuracy.metrics import cosines
from ..engines.cpu import CpuSession

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
Trial = tuple[str, F32]
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


def find_mistake(suspect: F32, expected: F32, faces: U8, fp32: CpuSession, spec: InputSpec) -> str:
    """The mistake that makes `fp32` give `suspect (N, D)` for `faces (N, 112, 112, 3)`, and how
    well it explains it; empty when none does. `expected (N, D)` is without any."""
    picks = np.unique(np.linspace(0, len(faces) - 1, _TRIED).astype(int))
    suspect, expected, faces = suspect[picks], expected[picks], faces[picks]
    wrong = 1 - float(np.median(cosines(suspect, expected)))
    floor = max(EXPLAINED, 1 - _LEFT * wrong)
    if floor >= _SAME:  # too little is wrong for a mistake
        return ""

    def alike(inputs: F32) -> float:
        return float(np.median(cosines(suspect, fp32.embed(inputs))))

    best = (0.0, "")
    for trials in (_plain(faces, spec), _swapped(faces, spec)):
        best = max(best, *((alike(inputs), name) for name, inputs in trials))
        if best[0] >= _SAME:
            break
    else:
        best = max(best, _mean_off(faces, spec, alike), _scale_off(faces, spec, alike))
    return f"{best[1]} (cosine {best[0]:.4f} with that)" if best[0] >= floor else ""


def _plain(faces: U8, spec: InputSpec) -> Iterator[Trial]:
    """One mistake alone."""
    swap = _other(spec)
    yield f"channels are {swap.channels}, not {spec.channels}", preprocess(faces, swap)
    yield from _numbers(faces, spec)
    yield "faces are mirrored", preprocess(np.ascontiguousarray(faces[:, :, ::-1]), spec)
    yield "faces are upside down", preprocess(np.ascontiguousarray(faces[:, ::-1]), spec)


def _swapped(faces: U8, spec: InputSpec) -> Iterator[Trial]:
    """The channels, and the numbers too."""
    swap = _other(spec)
    for name, inputs in _numbers(faces, swap):
        yield f"channels are {swap.channels}, not {spec.channels}, and {name}", inputs


def _other(spec: InputSpec) -> InputSpec:
    return replace(spec, channels="BGR" if spec.channels == "RGB" else "RGB")


def _numbers(faces: U8, spec: InputSpec) -> Iterator[Trial]:
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
