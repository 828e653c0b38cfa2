"""Defines the commands: the options they all take, their help page, and where logged lines go."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from ..errors import MachineError
from ..interruption import interruptible
from .completion import complete_values
from .output import Output, echo

if TYPE_CHECKING:
    from .log_file import LogFile

OptionGroups = Mapping[str, Sequence[str]]

_SHARED = "Output and help"  # title of the group of the options that every command takes
_SHARED_FLAGS = {"--json", "-v", "-q", "-h", "--raise-limit", "--log-file"}


class HelpPage(click.Command):
    """A command whose help shows its options in groups and ends in an example.

    Attributes:
        example: Command lines, one a line; a line that ends in a backslash goes on in the next.
        option_groups: Title to option flags; the options of no group stand under "Options".
    """

    def __init__(
        self,
        *args: Any,
        example: str = "",
        option_groups: OptionGroups | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        complete_values(self.params)
        self.example = example.strip("\n")
        self.option_groups = dict(option_groups or {})
        known = {flag for parameter in self.params for flag in parameter.opts}
        if unknown := {flag for flags in self.option_groups.values() for flag in flags} - known:
            raise ValueError(f"{self.name}: no option {', '.join(sorted(unknown))}")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        titles = {flag: title for title, flags in self.option_groups.items() for flag in flags}
        last = _SHARED if titles else "Options"
        sections: dict[str, list[tuple[str, str]]] = {
            title: [] for title in ("Options", *self.option_groups, last)
        }
        shared: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None or isinstance(parameter, click.Argument):
                continue
            if _SHARED_FLAGS & set(parameter.opts):
                shared.append(record)
            else:
                title = next((titles[f] for f in parameter.opts if f in titles), "Options")
                sections[title].append(record)
        sections[last] += shared
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.example:
            lines = self.example.splitlines()
            commands = sum(line.startswith("fr-edge ") for line in lines)
            with formatter.section("Example" if commands == 1 else "Examples"):
                for line in lines:
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")
        super().format_epilog(ctx, formatter)


class HelpPageGroup(HelpPage, click.Group):
    """A command with subcommands."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


def define_command(
    name: str,
    *,
    example: str,
    option_groups: OptionGroups | None = None,
    cls: type[HelpPage] = HelpPage,
    **settings: Any,
) -> Callable[[Callable[..., None]], click.Command]:
    """A decorator that makes a function a command with the options that all commands take.

    Args:
        name: What users type behind `fr-edge`.
        example: Command lines that end the help; a test runs them.
        option_groups: Title to option flags, for a command with more than ten options.
        cls: `HelpPageGroup` for a command with subcommands.
        settings: Further arguments of `click.command`.

    Returns:
        The decorator. The function that it takes gets an `Output` and then the parameters.
    """

    def decorate(function: Callable[..., None]) -> click.Command:
        @wraps(function)
        def body(
            as_json: bool,
            quiet: bool,
            verbose: bool,
            limits: tuple[str, ...],
            log_file: str | None,
            **arguments: Any,
        ) -> None:
            if sys.platform != "linux":
                raise MachineError(
                    f"fr-edge runs on Linux only, and this is {sys.platform}",
                    "use a Linux machine, a container, or WSL 2 on Windows",
                )
            _refuse_odd_texts(arguments)
            if click.get_current_context().invoked_subcommand:
                log_file = None  # the subcommand logs itself
            with (
                interruptible(),
                _log_file(log_file) as log,
                _raise_limits(limits),
                _log_to_stderr(quiet=quiet, verbose=verbose, file=log),
            ):
                function(Output(as_json, quiet, verbose), **arguments)

        wrapped: Callable[..., None] = click.option(
            *("--raise-limit", "limits"),
            multiple=True,
            metavar="NAME=N",
            help="Raise a limit of what is read, as the message about it says.",
        )(body)
        for flags, text in (  # click shows the last one first
            (("-q", "--quiet"), "Print no progress and no notes."),
            (("-v", "--verbose"), "Print details, and where an error came from."),
            (("--json", "as_json"), "Print one JSON document on stdout."),
        ):
            wrapped = click.option(*flags, is_flag=True, help=text)(wrapped)
        wrapped = click.option(
            "--log-file",
            metavar="FILE",
            envvar="FR_EDGE_LOG",
            help="Append what the command does to this file (or to that of FR_EDGE_LOG), without names.",
        )(wrapped)
        build: Callable[[Callable[..., None]], click.Command] = click.command(
            name, cls=cls, example=example, option_groups=option_groups, **settings
        )
        return build(wrapped)

    return decorate


def _refuse_odd_texts(arguments: Mapping[str, Any]) -> None:
    """Raise UsageError for an empty text, which as a path is the current folder, and for an output's
    name that no terminal, archive or other system could show."""
    parameters = {p.name: p for p in click.get_current_context().command.params}
    for name, value in arguments.items():
        parameter = parameters[name]
        title = (
            parameter.opts[0]
            if isinstance(parameter, click.Option)
            else parameter.human_readable_name
        )
        for text in value if isinstance(value, tuple) else (value,):
            if not isinstance(text, str):
                continue
            if not text.strip():
                raise click.UsageError(f"{title} is empty")
            if name == "out" and not text.isprintable():
                raise click.UsageError(
                    f"{title} {text!r} holds characters that cannot be printed: choose another name"
                )


def _log_file(path: str | None) -> AbstractContextManager["LogFile | None"]:
    """The log file; what it needs is loaded for a command that has one."""
    if path is None:
        return nullcontext()
    from .log_file import logging_to

    return logging_to(path)


@contextmanager
def _raise_limits(limits: Sequence[str]) -> Iterator[None]:
    """Set the limits' variables for this command and the processes that it starts."""
    from ..reading import raised_limits

    raised = raised_limits(limits)
    before = {variable: os.environ.get(variable) for variable in raised}
    os.environ.update(raised)
    try:
        yield
    finally:
        for variable, value in before.items():
            if value is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = value


@contextmanager
def _log_to_stderr(*, quiet: bool, verbose: bool, file: "LogFile | None" = None) -> Iterator[None]:
    """Show what the package logs on stderr: from INFO up, from DEBUG with -v, from ERROR with -q; a
    log file gets everything.

    -q is the handler's affair: a logger's level would outlast two commands in threads of one process.
    """
    import logging

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warning = "warning: " if record.levelno == logging.WARNING else ""
            echo(warning + self.format(record), err=True)

    logger, handler = logging.getLogger("fr_edge"), Handler()
    before = logger.level
    logger.setLevel(logging.DEBUG if verbose or file else logging.INFO)
    handler.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)
    handlers = [handler, *([file] if file else [])]
    for each in handlers:
        logger.addHandler(each)
    try:
        yield
    finally:
        for each in handlers:
            logger.removeHandler(each)
        logger.setLevel(before)
