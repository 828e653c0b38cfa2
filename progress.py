"""How long work says where it stands: functions take a `track` and wrap their loops in it.

The library's default says nothing; the command line passes one that draws bars or prints lines.
"""

from collections.abc import Iterable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Track(Protocol):
    """`for item in track(items, "calibrating", total)` reports progress over `total` items."""

    def __call__(self, items: Iterable[T], label: str, total: int) -> Iterable[T]: ...


def silent(items: Iterable[T], label: str, total: int) -> Iterable[T]:
    """A `Track` that says nothing."""
    return items
