"""What commands print: results on stdout; progress, notes and errors on stderr."""

import errno
import json
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from shutil import get_terminal_size
from typing import Any, NoReturn, TypeVar

import click

from ..errors import MachineError, NotStored
from ..reading import printable

T = TypeVar("T")

_EVERY_S = 10.0  # between lines of progress where stderr is no terminal
_WIDEST = 1000  # a table's column is filled up to this; one long name must not widen every row
_COLOURS = {
    "PASSED": "green", "VALID": "green", "FAILED": "red", "INVALID": "red",
    "CANNOT JUDGE": "yellow", "NOT BUILT": "yellow",
}  # fmt: skip
_VERDICTS = re.compile(rf"\b({'|'.join(_COLOURS)})\b")
_DASHES = "\n".join(["    "] * 2 + [" -  "] + ["    "] * 5)  # rich's box: a rule below the header


@dataclass(frozen=True)
class Output:
    """How a command prints; it gets one as its first argument.

    Attributes:
        json: Print the result as one JSON document.
        quiet: Print no progress and no notes.
        verbose: Print details.
    """

    json: bool = False
    quiet: bool = False
    verbose: bool = False

    def note(self, text: str) -> None:
        """Print a line on stderr, unless the command is quiet."""
        if not self.quiet:
            echo(text, err=True)

    def result(self, document: Mapping[str, Any], text: str) -> None:
        """Print the result: the document with `--json`, else the text."""
        echo(json.dumps(document, indent=2) if self.json else text, plain=self.json)

    def fail_gate(self, text: str) -> NoReturn:
        """End the command, whose result is printed, with exit code 1."""
        echo(f"fr-edge: {text}", err=True)
        click.get_current_context().exit(1)

    def check_stored(self, unstored: NotStored | None) -> None:
        """End the command, whose result is printed, if the result could not be stored."""
        if unstored is not None:
            echo(f"fr-edge: {unstored.message}", err=True)
            if unstored.hint:
                echo(f"         {unstored.hint}", err=True)
            click.get_current_context().exit(unstored.exit_code)

    def track(self, items: Iterable[T], label: str, total: int) -> Iterable[T]:
        """Show progress, as a `progress.Track`: a bar on a terminal, else a line every ten seconds."""
        if self.quiet:
            return items
        return (
            _bar(items, label, total)
            if sys.stderr and sys.stderr.isatty()
            else _lines(items, label, total)
        )


def one_line(text: object) -> str:
    """A name or message from a file as part of a line: line ends are escaped too.

    Args:
        text: What is shown as `str` shows it.
    """
    return printable(str(text)).replace("\n", "\\n").replace("\t", "\\t")


def _coloured(text: str) -> str:
    """Verdicts in colour, for terminals; click leaves colours out elsewhere (https://no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return _VERDICTS.sub(lambda word: click.style(word[0], fg=_COLOURS[word[0]], bold=True), text)


def echo(text: str, *, err: bool = False, plain: bool = False) -> None:
    """Print text; what is printed passes here, once.

    A reader of the pipe that has left is no reason to stop: the command ends as it would have.

    Args:
        text: The text; it is made `printable`.
        err: On stderr, whose failures are ignored, instead of stdout.
        plain: Without colours, as for a document that programs read.

    Raises:
        MachineError: stdout cannot be written, for example because its disk is full.
    """
    try:
        click.echo(printable(text) if plain else _coloured(printable(text)), err=err)
    except OSError as error:
        silence(sys.stderr if err else sys.stdout)
        if not err and error.errno != errno.EPIPE:
            raise MachineError(f"stdout cannot be written: {error.strerror}") from error


def silence(stream: Any) -> None:
    """Let what is still to be written to a broken stream vanish, at the end of Python too.

    Args:
        stream: `sys.stdout` or `sys.stderr`.
    """
    try:
        target = os.open(os.devnull, os.O_WRONLY)
        os.dup2(target, stream.fileno())
        os.close(target)
    except (OSError, ValueError, AttributeError):  # closed, or none of the system's
        pass


def reader_left(stream: Any) -> bool:
    """Whether a stream is a pipe or socket whose reader is gone.

    Args:
        stream: `sys.stdout` or `sys.stderr`.
    """
    asked = select.poll()
    try:
        asked.register(stream.fileno(), 0)
    except (OSError, ValueError, AttributeError):  # closed, or none of the system's
        return False
    return any(events & select.POLLERR for _, events in asked.poll(0))


def stored_or_not(work: Callable[[], T]) -> tuple[T, NotStored | None]:
    """What a stage measured, and why it is not in the bundle, where it could not be written.

    Args:
        work: Calls the stage.
    """
    try:
        return work(), None
    except NotStored as error:
        return error.result, error


def table(
    rows: Sequence[Sequence[str]], header: Sequence[str] = (), width: int | None = None
) -> str:
    """Aligned columns of plain text.

    Args:
        rows: Cells of each row.
        header: Titles of the columns, underlined with dashes.
        width: Columns of the page. Cells that do not fit are wrapped between words, never inside
            one; a page narrower than the words is exceeded. By default the terminal's, and no
            limit where stdout is no terminal, so that a line stays a line in a pipe. Cells of more
            than 1,000 characters are neither wrapped nor do others align with them.
    """
    if not rows:
        return ""
    from rich.cells import cell_len

    rows = [[one_line(cell) for cell in row] for row in rows]
    columns = list(zip(*([header] if header else []), *rows, strict=True))
    widths = [max(map(cell_len, column)) + 1 for column in columns]
    if width is None and sys.stdout and sys.stdout.isatty():
        width = get_terminal_size().columns
    if width is not None and sum(widths) + len(columns) - 1 > width and max(widths) <= _WIDEST:
        return _wrapped_table(rows, header, columns, width)
    widths = [min(size, _WIDEST) for size in widths]
    dashes = ["-" * size for size in widths]
    lines = [list(header), dashes, *rows] if header else rows
    return "\n".join(
        " ".join(
            f"{cell}{' ' * (size - cell_len(cell))}"
            for cell, size in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def _wrapped_table(
    rows: Sequence[Sequence[str]],
    header: Sequence[str],
    columns: Sequence[Sequence[str]],
    width: int,
) -> str:
    """A table whose cells are wrapped by rich, which takes half a millisecond for a row."""
    from io import StringIO

    from rich.box import Box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    longest_words = [
        max((len(word) for cell in column for word in cell.split()), default=0)
        for column in columns
    ]
    grid = Table(
        box=Box(_DASHES),
        show_edge=False,
        show_header=bool(header),
        padding=(0, 1, 0, 0),
    )
    for cells, longest in zip(columns, longest_words, strict=True):
        one_word = longest == max(map(len, cells))
        grid.add_column(Text(cells[0] if header else ""), min_width=longest, no_wrap=one_word)
    for row in rows:
        grid.add_row(*map(Text, row))
    width = max(width, sum(longest_words) + 2 * len(columns))
    page = StringIO()
    console = Console(file=page, width=width, color_system=None, legacy_windows=False)
    console.print(grid, crop=False, no_wrap=True, overflow="ignore")
    return "\n".join(line.rstrip() for line in page.getvalue().rstrip("\n").split("\n"))


def size_text(size: int) -> str:
    """A number of bytes as text: `4.1 MB`."""
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
            echo(f"{label}: {count} of {total} ({share} %), {left:.0f} s left", err=True)
            last = now
        yield item
    if time.monotonic() - start >= _EVERY_S:
        echo(f"{label}: done in {time.monotonic() - start:.0f} s", err=True)
