"""What commands print: results on stdout; progress, notes and errors on stderr."""

import errno
import json
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
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
_VERDICTS = re.compile(rf"\b({'|'.join(_COLOURS)})\b".replace(" ", r"\s+"))
_PIECES = re.compile(r"\s*(?:`[^`]*`\S*|\S+)")  # a command in backticks is not broken
_BETWEEN_ROWS = "\0"  # no cell holds one: `one_line` escapes it
# rich's box: a rule below the header, and a line by which the rows are told apart.
_BOX = "\n".join(["    "] * 2 + [" -  "] + ["    ", 4 * _BETWEEN_ROWS] + ["    "] * 3)
_COMPARED = 100  # rows up to which both layouts of a table that is too wide are tried


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

    def colour(verdict: re.Match[str]) -> str:
        return click.style(verdict[0], fg=_COLOURS[" ".join(verdict[0].split())], bold=True)

    return _VERDICTS.sub(colour, text)


def _terminal_width(stream: Any) -> int | None:
    """The columns of the terminal that a stream writes to; None where it is no terminal."""
    if not (stream and stream.isatty()):
        return None
    with suppress(KeyError, ValueError):
        if (columns := int(os.environ["COLUMNS"])) > 0:
            return columns
    with suppress(OSError, ValueError, AttributeError):
        return os.get_terminal_size(stream.fileno()).columns or None
    return None


def _fitted(text: str, width: int | None) -> str:
    """Text whose lines are broken between words where they are wider than the terminal.

    A word, such as a path, and a command in backticks stay whole: they can be selected and pasted.
    """
    if width is None:
        return text
    from rich.cells import cell_len

    lines: list[str] = []
    for line in text.split("\n"):
        start = len(lines)
        indent = " " * (len(line) - len(line.lstrip(" ")) + 2)
        pieces = _PIECES.findall(line) if cell_len(line) > width else [line]
        for piece in pieces:
            if len(lines) > start and cell_len(lines[-1] + piece) <= width:
                lines[-1] += piece
            else:
                lines.append(indent + piece.lstrip() if len(lines) > start else piece)
    return "\n".join(lines)


def echo(text: str, *, err: bool = False, plain: bool = False) -> None:
    """Print text; what is printed passes here, once.

    A reader of the pipe that has left is no reason to stop: the command ends as it would have.

    Args:
        text: The text; it is made `printable`.
        err: On stderr, whose failures are ignored, instead of stdout.
        plain: Without colours and with its lines as they are, as for a document that programs read.

    Raises:
        MachineError: stdout cannot be written, for example because its disk is full.
    """
    stream = sys.stderr if err else sys.stdout
    text = printable(text)
    try:
        click.echo(text if plain else _coloured(_fitted(text, _terminal_width(stream))), err=err)
    except OSError as error:
        silence(stream)
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

    Where they are too wide for the page, cells are wrapped between words, never inside one, or the
    first cell of each row stands above its others: whichever takes fewer lines.

    Args:
        rows: Cells of each row.
        header: Titles of the columns, underlined with dashes.
        width: Columns of the page; a page narrower than a word is exceeded. By default the
            terminal's, and no limit where stdout is no terminal, so that a line stays a line in a
            pipe. Cells of more than 1,000 characters are neither wrapped nor do others align with
            them.
    """
    if not rows:
        return ""
    from rich.cells import cell_len

    rows = [[one_line(cell) for cell in row] for row in rows]
    columns = list(zip(*([header] if header else []), *rows, strict=True))
    widths = [max(map(cell_len, column)) + 1 for column in columns]
    if width is None:
        width = _terminal_width(sys.stdout)
    if width is not None and sum(widths) + len(columns) - 1 > width and max(widths) <= _WIDEST:
        return "\n".join(line for row in _narrow_rows(rows, header, width) for line in row)
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


def _narrow_rows(
    rows: Sequence[Sequence[str]], header: Sequence[str], width: int
) -> list[list[str]]:
    """The lines of the header and of each row on a page that is narrower than the table."""
    wrapped = _wrapped_rows(rows, header, width)
    fits = max(len(line) for row in wrapped for line in row) <= width
    if len(rows[0]) == 1 or (fits and len(rows) > _COMPARED):
        return wrapped
    others = _narrow_rows([row[1:] for row in rows], header[1:], width - 2)
    names = [*([header[0]] if header else []), *(row[0] for row in rows)]
    stacked = [
        [name, *(f"  {line}" for line in lines)] for name, lines in zip(names, others, strict=True)
    ]
    return wrapped if fits and sum(map(len, wrapped)) <= sum(map(len, stacked)) else stacked


def _wrapped_rows(
    rows: Sequence[Sequence[str]], header: Sequence[str], width: int
) -> list[list[str]]:
    """Cells wrapped by rich, which takes half a millisecond for a row."""
    from io import StringIO

    from rich.box import Box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns = list(zip(*([header] if header else []), *rows, strict=True))
    longest_words = [
        max((len(word) for cell in column for word in cell.split()), default=0)
        for column in columns
    ]
    grid = Table(
        box=Box(_BOX), show_edge=False, show_header=bool(header), show_lines=True,
        padding=(0, 1, 0, 0),
    )  # fmt: skip
    for cells, longest in zip(columns, longest_words, strict=True):
        one_word = longest == max(map(len, cells))
        grid.add_column(Text(cells[0] if header else ""), min_width=longest, no_wrap=one_word)
    for row in rows:
        grid.add_row(*map(Text, row))
    width = max(width, sum(longest_words) + 2 * len(columns))
    page = StringIO()
    console = Console(file=page, width=width, color_system=None, legacy_windows=False)
    console.print(grid, crop=False, no_wrap=True, overflow="ignore")
    parts: list[list[str]] = [[]]
    for line in page.getvalue().rstrip("\n").split("\n"):
        if line.startswith(_BETWEEN_ROWS):
            parts.append([])
        else:
            parts[-1].append(line.rstrip())
    if header:  # it and the first row have no line between them, but the rule
        rule = next(i for i, line in enumerate(parts[0]) if set(line) <= {"-", " "} and line)
        parts[:1] = [parts[0][: rule + 1], parts[0][rule + 1 :]]
    return parts


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
