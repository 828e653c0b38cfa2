"""`fr-edge`: finds a command, runs it, and turns an error into a message and an exit code.

Exit codes: 0 done, 1 a gate failed, 2 usage, 3 this machine lacks something, 4 the data or a file is
bad, 130 interrupted (SIGTERM 143, SIGHUP 129).
"""

import errno
import json
import sys
import traceback
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from typing import NoReturn

import click

from .._version import __version__
from ..errors import FrEdgeError, MachineError, UsageError
from ..interruption import find_interruption, interrupted
from .output import echo, reader_left, silence

COMMANDS = (
    "demo",
    "run",
    "align",
    "pairs",
    "distill",
    "export",
    "find-preprocessing",
    "calibrate",
    "build-engine",
    "embed",
    "verify",
    "evaluate",
    "benchmark",
    "compare",
    "report",
    "inspect",
    "pack",
    "unpack",
    "package",
    "keygen",
    "targets",
    "check",
    "accept",
    "fleet",
    "doctor",
)

ALIASES = {"plan": "targets", "check-engine": "check"}
"""Deprecated name -> the present one; a deprecated name works and says so (docs/releasing.md)."""


class LazyCommands(click.Group):
    """The commands in the order of the work, each imported when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        cmd_name = ALIASES.get(cmd_name, cmd_name)
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f".{cmd_name.replace('-', '_')}", __package__)
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        near = get_close_matches(args[0], COMMANDS, 1)
        if near and args[0] not in (*COMMANDS, *ALIASES):
            raise click.UsageError(f"no command {args[0]!r}, did you mean {near[0]}?", ctx)
        if args[0] in ALIASES and not ctx.resilient_parsing and not {"-q", "--quiet"} & set(args):
            echo(f"warning: `{args[0]}` is deprecated: use `{ALIASES[args[0]]}`", err=True)
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyCommands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="fr-edge")
def root() -> None:
    """Face recognition on the edge: teacher -> student -> ONNX -> INT8 engine -> verification.

    A bundle (a folder with a manifest) goes from stage to stage:

    \b
      fr-edge distill RECIPE --faces SRC --teacher FILE --out BUNDLE
      fr-edge export SOURCE --out BUNDLE
      fr-edge calibrate BUNDLE --faces SRC
      fr-edge build-engine BUNDLE --int8
      fr-edge verify BUNDLE --engine int8

    `fr-edge demo` runs them all on synthetic faces; it needs no data, no network and no GPU.
    """


def main() -> NoReturn:
    """Run `fr-edge` or `python -m fr_edge`, and exit."""
    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError as error:
            silence(stream)
            if stream is sys.stdout and error.errno != errno.EPIPE:
                code = code or MachineError.exit_code
    sys.exit(code)


def run(args: list[str]) -> int:
    """Run one command line.

    Args:
        args: The command and its arguments.

    Returns:
        The exit code.

    Raises:
        Exception: A bug, with its traceback.
    """
    try:
        result = root.main(args, prog_name="fr-edge", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        return _fail(args, error.format_message(), _usage_hint(error), 2)
    except (KeyboardInterrupt, click.Abort) as error:
        return _stopped(args, error)
    except (BrokenPipeError, SystemExit) as error:  # of Click, which prints pages of its own
        if find_interruption(error) is not None:
            return _stopped(args, error)
        if not reader_left(sys.stdout):
            raise
        silence(sys.stdout)
        return 0
    except FrEdgeError as error:
        return _fail(args, error.message, error.hint, error.exit_code, error)
    except MemoryError:
        return _fail(args, "out of memory", "close other programs, or use fewer faces", 3)
    except OSError as error:
        if (refusal := _refusal(error)) is None:
            raise
        return _fail(args, refusal.message, refusal.hint, refusal.exit_code, error)
    except Exception as error:
        if find_interruption(error) is None:
            raise
        return _stopped(args, error)
    return result if isinstance(result, int) else 0


def _stopped(args: list[str], error: BaseException) -> int:
    """Say in one line what is kept of interrupted work and how to go on."""
    stop = interrupted(find_interruption(error) or KeyboardInterrupt())
    kept = stop.kept or "nothing is kept"
    return _fail(args, f"interrupted: {kept}; run the same command again", "", stop.exit_code)


def _refusal(error: OSError) -> MachineError | UsageError | None:
    """The error as a lack of this machine or a path that cannot be, or None for a bug."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return MachineError(
            f"the disk is full{where}", "free some space, then run the same command again"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return MachineError(f"no permission{where}: {error.strerror}", "check the folder's owner")
    paths = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP)
    if error.errno in paths and where:
        return UsageError(f"{error.filename} cannot be used: {error.strerror}", "give another path")
    if error.errno in (errno.EMFILE, errno.ENOMEM, errno.EIO, errno.ENAMETOOLONG):
        return MachineError(f"the operating system refuses{where}: {error.strerror}")
    return None


def _usage_hint(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path} --help" if context else "fr-edge --help"


def _fail(
    args: list[str], message: str, hint: str, code: int, cause: BaseException | None = None
) -> int:
    """Print the message on stderr, and with `--json` a JSON document on stdout."""
    if "--json" in args:
        with suppress(MachineError):  # stdout is full: stderr and the exit code tell
            echo(json.dumps({"error": message, "hint": hint, "exit_code": code}), plain=True)
    # Lines of a quoted text are indented, so that none of them looks like fr-edge's own.
    echo("fr-edge: " + message.replace("\n", "\n         "), err=True)
    if hint:
        echo("         " + hint.replace("\n", "\n         "), err=True)
    if cause is not None and ("-v" in args or "--verbose" in args):
        echo("".join(traceback.format_exception(cause)), err=True, plain=True)
    return code
