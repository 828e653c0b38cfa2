"""What commands say: results on stdout, progress and notes on stderr.

With `--json` stdout is one JSON document. Knows nothing of stages.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, NoReturn, TypeVar

import click

T = TypeVar("T")

_EVERY_S = 10.0
"""Where stderr is no terminal, how often a line says where the work stands."""


@dataclass(frozen=True)
class Output:
    """How this run speaks; commands get one as their first argument."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False

    def note(self, text: str) -> None:
        if not self.quiet:
            click.echo(text, err=True)

    def result(self, document: Mapping[str, Any], text: str) -> None:
        """The result, for programs or for people."""
        click.echo(json.dumps(document, indent=2) if self.json else text)

    def fail_gate(self, text: str) -> NoReturn:
        """End the command with exit code 1, its result already said."""
        click.echo(f"fr-edge: {text}", err=True)
        click.get_current_context().exit(1)

    def track(self, items: Iterable[T], label: str, total: int) -> Iterable[T]:
        """A `progress.Track`: bars with ETA on a terminal, a line now and then elsewhere."""
        if self.quiet:
            return items
        return _bar(items, label, total) if sys.stderr.isatty() else _lines(items, label, total)


def command(name: str, **settings: Any) -> Callable[[Callable[..., None]], click.Command]:
    """A Click command with `--json`, `-v` and `-q`; its function gets an `Output` first."""

    def wrap(function: Callable[..., None]) -> click.Command:
        @wraps(function)
        def body(as_json: bool, quiet: bool, verbose: bool, **arguments: Any) -> None:
            function(Output(as_json, quiet, verbose), **arguments)

        wrapped: Callable[..., None] = body
        # Click shows them in this order, after the command's own.
        for flags, text in (
            (("--json", "as_json"), "Print one JSON document on stdout."),
            (("-v", "--verbose"), "Say where an error came from."),
            (("-q", "--quiet"), "No progress, no notes."),
        ):
            wrapped = click.option(*flags, is_flag=True, help=text)(wrapped)
        build: Callable[[Callable[..., None]], click.Command] = click.command(name, **settings)
        return build(wrapped)

    return wrap


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Columns aligned with spaces: plain text that survives a pipe."""
    lines = [list(header), *map(list, rows)] if header else [list(row) for row in rows]
    if not lines:
        return ""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
    if header:
        text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in text)


def size_text(size: int) -> str:
    """Bytes as people read them: `4.1 MB`."""
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def _bar(items: Iterable[T], label: str, total: int) -> Iterable[T]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(items, total=total, description=label)


def _lines(items: Iterable[T], label: str, total: int) -> Iterable[T]:
    start = last = time.monotonic()
    for count, item in enumerate(items):
        now = time.monotonic()
        if now - last >= _EVERY_S and count:
            left = (now - start) / count * (total - count)
            share = 100 * count // max(1, total)
            click.echo(f"{label}: {count} of {total} ({share} %), {left:.0f} s left", err=True)
            last = now
        yield item
    if time.monotonic() - start >= _EVERY_S:
        click.echo(f"{label}: done in {time.monotonic() - start:.0f} s", err=True)
