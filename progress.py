"""Progress of long work: functions take a `track` and wrap their loops in it.

The library's default shows nothing; the command line passes one that draws bars or prints lines.
"""

from collections.abc import Iterable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Track(Protocol):
    """`for item in track(items, "calibrating", total)` reports progress over `total` items."""

    def __call__(self, items: Iterable[T], label: str, total: int) -> Iterable[T]: ...


def silent(items: Iterable[T], label: str, total: int) -> Iterable[T]:
    """A `Track` that shows nothing.

    Args:
        items: What the loop goes through.
        label: What the work is.
        total: Number of items.

    Returns:
        The items.
    """
    return items
