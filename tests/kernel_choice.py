"""Which kernels of a CPU's INT8 engine win the race differs from machine to machine. Here it is fixed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from fr_edge.runtime.build import interleaved_min_times

RACE = "fr_edge.runtime.cpu_kernel_selection.interleaved_min_times"
REAL_RACE = interleaved_min_times


def one_on_integers(runs: Sequence[Callable[..., Any]], batch: Any, seconds: float) -> list[float]:
    """The first cut wins: few layers on integer kernels, the others in float."""
    return [2.0, 1.0, *(3.0 for _ in runs[2:])]


@contextmanager
def all_in_float() -> Iterator[None]:
    """Engines that are built in it compute all INT8 layers in float."""
    with patch(RACE, lambda runs, batch, seconds: [1.0, *(2.0 for _ in runs[1:])]):
        yield
