"""Time several things side by side, in turns: a busy machine is busy for all of them."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Run = Callable[[npt.NDArray[np.float32]], Any]
_ROUNDS, _IN_A_ROW = (2, 25), 4
"""At least and at most so many turns of each; runs in a turn, since the threads of whoever ran
before spin on for a while."""


def fastest(runs: Sequence[Run], faces: npt.NDArray[np.float32], seconds: float) -> list[float]:
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
