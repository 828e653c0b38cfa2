"""Time several things side by side, in turns: a busy machine is busy for all of them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from ..graph.cpu_int8 import cpu_model, integer_layers

TimedCall = Callable[[npt.NDArray[np.float32]], Any]

_ROUNDS, _IN_A_ROW = (2, 25), 4
"""At least and at most so many turns of each; runs in a turn, since the threads of whoever ran
before spin on for a while."""


def interleaved_min_times(
    runs: Sequence[TimedCall], faces: npt.NDArray[np.float32], seconds: float
) -> list[float]:
    """Seconds of each one's fastest run on the same faces; takes about `seconds` in all."""
    best = [np.inf] * len(runs)
    least, most = _ROUNDS
    end = time.perf_counter() + seconds
    for turn in range(most):
        if turn >= least and time.perf_counter() > end:
            break
        for index, run in enumerate(runs):
            for _ in range(_IN_A_ROW):
                start = time.perf_counter()
                run(faces)
                best[index] = min(best[index], time.perf_counter() - start)
    return best


# Which INT8 layers pay on this CPU? Answered by running them, as TensorRT answers it on a GPU.
#
# An integer product is faster than the float layer, and the changes of type and layout around it cost
# time: what wins depends on the layer and on the machine. The gain grows with the multiplications per
# number that goes in or out, so only sets of layers above some such intensity are tried, all in turns.
# All-float is a candidate too: INT8 is never slower than what it replaces.

_MOST = 6
"""Sets that are tried at most, all-float aside."""

_SECONDS = 5.0
"""Per batch size, about."""


@dataclass(frozen=True)
class KernelSelection:
    """`layers` are outputs of INT8 layers in integer kernels; `relative` is the time beside
    all-float, below 1 where INT8 is faster, of each batch size."""

    layers: tuple[str, ...]
    relative: tuple[float, ...]


def select_kernels(
    model: ModelProto, load: Callable[[bytes], TimedCall], batches: Sequence[int]
) -> list[KernelSelection]:
    """All that was tried, the best first: the one whose slowest batch size is fastest.

    `load` opens a flavour for running it. Takes some seconds, and all flavours at once in memory.
    """
    found = integer_layers(model)
    cuts = _cuts(list(found.values()))
    sets = [(), *(tuple(n for n, intensity in found.items() if intensity >= cut) for cut in cuts)]
    if not cuts:
        return [KernelSelection((), (1.0,) * len(batches))]
    runs = [load(cpu_model(model, layers).SerializeToString()) for layers in sets]
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    random = np.random.default_rng(0)
    inputs = [random.uniform(-1, 1, (size, *shape)).astype(np.float32) for size in batches]
    times = [interleaved_min_times(runs, faces, _SECONDS) for faces in inputs]
    relative = [tuple(of[i] / of[0] for of in times) for i in range(len(sets))]
    tried = [KernelSelection(layers, ratios) for layers, ratios in zip(sets, relative, strict=True)]
    return sorted(tried, key=lambda one: max(one.relative))


def _cuts(intensities: list[float]) -> list[float]:
    """The intensities to cut at, evenly chosen where there are many."""
    distinct = sorted(set(intensities), reverse=True)
    if len(distinct) <= _MOST:
        return distinct
    return [distinct[i] for i in np.linspace(0, len(distinct) - 1, _MOST).round().astype(int)]
