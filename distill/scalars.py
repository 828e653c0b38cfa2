"""Scalars for TensorBoard, where the recipe names a folder for them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from ..errors import MachineError
from .ranks import Ranks
from .recipe import Recipe

Scalars = Callable[[int, Mapping[str, float]], None]
"""Called with a step and values by name."""


@contextmanager
def open_scalars(recipe: Recipe, ranks: Ranks, step: int) -> Iterator[Scalars]:
    """Where the values go: event files on rank 0, or nowhere. Of an earlier, killed run what lies
    past `step` is hidden. Raises MachineError without tensorboard."""
    if not recipe.tensorboard or ranks.rank != 0:
        yield lambda _step, _values: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MachineError(
            "scalars need tensorboard", "pip install tensorboard, or --set tensorboard="
        ) from error
    with SummaryWriter(recipe.tensorboard, purge_step=step) as writer:

        def write(at: int, values: Mapping[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, at)

        yield write
