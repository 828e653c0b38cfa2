"""Writes man pages, docs/man/fr-edge*.1, from the commands themselves: one for each command."""

import re
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from os import environ
from pathlib import Path

import click

from fr_edge import __version__
from fr_edge.cli.main import COMMANDS, root

FOLDER = Path(__file__).parent / "man"
EXIT_CODES = (
    ("0", "done"), ("1", "it ran, and a gate failed"), ("2", "the command line does not make sense"),
    ("3", "this machine lacks what it takes"), ("4", "the data or a file is bad"),
    ("130, 143, 129", "interrupted by SIGINT, SIGTERM, SIGHUP"),
)  # fmt: skip
VARIABLES = (
    ("FR_EDGE_LOG", "A file to which every command appends what it does, as --log-file."),
    ("NO_COLOR", "Verdicts are printed without colours."),
    ("FR_EDGE_MAX_...", "Limits of what is read; a message about a limit names its variable."),
)


def pages() -> dict[str, str]:
    """File name -> page in man(7)'s language."""
    context = click.Context(root, info_name="fr-edge")
    result = {"fr-edge.1": _page("fr-edge", root, [f"fr-edge-{name}" for name in COMMANDS])}
    for name in COMMANDS:
        command = root.get_command(context, name)
        assert command is not None
        result[f"fr-edge-{name}.1"] = _page(f"fr-edge {name}", command, ["fr-edge"])
    return result


def _page(title: str, command: click.Command, related: list[str]) -> str:
    """The help in man's sections: NAME, SYNOPSIS, DESCRIPTION, options in their groups, EXAMPLES."""
    seconds = int(environ.get("SOURCE_DATE_EPOCH", datetime.now(timezone.utc).timestamp()))
    day = datetime.fromtimestamp(seconds, timezone.utc).date()
    name = title.replace(" ", "-")
    lines = [
        f'.TH "{_text(name.upper())}" 1 {day} "fr-edge {__version__}" "fr-edge"',
        ".SH NAME",
        f"{_text(name)} \\- {_text(command.get_short_help_str(limit=200))}",
        *_help(title, command),
    ]
    for inner, below in getattr(command, "commands", {}).items():
        if command is not root:
            lines += [f'.SH "{_text(inner.upper())}"', *_help(f"{title} {inner}", below, part=True)]
    for heading, rows in (("EXIT STATUS", EXIT_CODES), ("ENVIRONMENT", VARIABLES)):
        lines += [f".SH {heading}"]
        for term, meaning in rows:
            lines += [".TP", f".B {_text(term)}", _text(meaning)]
    lines += [".SH SEE ALSO", ", ".join(f".BR {_text(page)} (1)" for page in related)]
    return "\n".join(_see_also(lines)) + "\n"


def _see_also(lines: list[str]) -> Iterator[str]:
    *rest, last = lines
    yield from rest
    yield from (page.strip() for page in last.split(","))


def _help(title: str, command: click.Command, part: bool = False) -> Iterator[str]:
    """Sections of the help text: what Click indents below a heading, unfilled, as a section."""
    context = click.Context(
        command, info_name=title, terminal_width=72, max_content_width=72,
        help_option_names=["-h", "--help"],
    )  # fmt: skip
    usage, _, text = command.get_help(context).partition("\n\n")
    section = "SS" if part else "SH"
    yield from (".nf", _text(" ".join(usage.removeprefix("Usage: ").split())), ".fi") if part else (
        ".SH SYNOPSIS", _text(" ".join(usage.removeprefix("Usage: ").split()))
    )  # fmt: skip
    if not part:
        yield ".SH DESCRIPTION"
    yield ".nf"
    for line in text.splitlines():
        if re.match(r"\S.*:$", line):
            heading = line[:-1] if part else line[:-1].upper()
            yield from (".fi", f'.{section} "{_text(heading)}"', ".nf")
            if heading.lower().startswith("example"):
                yield ".in 2n"  # command lines are up to 78 characters long
        else:
            yield _text(line.removeprefix("  "))
    yield ".fi"


def _text(line: str) -> str:
    """A line that roff shows as it stands."""
    line = line.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\`")
    return "\\&" + line if line.startswith((".", "\\(aq")) else line


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.1"):
        old.unlink()
    for file, text in pages().items():
        (FOLDER / file).write_text(text, encoding="utf-8")
    sys.stdout.write(f"{len(list(FOLDER.glob('*.1')))} pages in {FOLDER}\n")
