"""The log file of `--log-file` and FR_EDGE_LOG: what a command was given, what it logged, how it ended.

It can be sent to others: paths, quoted texts and what an error says about faces, in which people's names
may stand, are left out.
"""

import logging
import os
import platform
import re
import stat
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from .._version import __version__
from ..errors import FacesError, FrEdgeError, UsageError
from ..files import is_own_file
from ..interruption import find_interruption, interrupted
from .output import echo, one_line

_PACKAGE = Path(__file__).parents[1]
_IMAGE = r"\.(?:jpe?g|png|webp|avif|bmp|gif|tiff?|p[gpbn]m)\b"
_PATH = re.compile(rf"(?:^|[\s(=])(?:[^\s(=]*/[^\s]*|[^\s(=]*{_IMAGE}[^\s]*)", re.IGNORECASE)
# Files of a bundle, units and the field's words, which hold a slash and are no path of this machine.
_HARMLESS = re.compile(
    r"(?:^|[\s(=])(?:(?:reports|engines|docs)/[\w.-]*|\w+/s|Q/DQ|N/A|I/O|and/or|\d+/\d+)[.,;:)]*(?=\s|$)"
)
_ABOUT_PEOPLE = ("fr_edge.faces", "fr_edge.runtime.recognition")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


def hide_names(text: str, whole: bool = False) -> str:
    """A message without what may name people: paths, images and quoted texts.

    Args:
        text: A line that was logged or the message of an error.
        whole: Leave out what stands before a path in the same part of a sentence too: a relative
            path may begin with words of a folder's name.
    """
    kept = []
    for part in re.split(r"(: |; |\n)", _QUOTED.sub("'...'", text)):
        paths = [*_PATH.finditer(_HARMLESS.sub(lambda m: " " * len(m[0]), part))]
        if paths:
            before = "" if whole or not paths[0].start() else part[: paths[0].start() + 1]
            part = f"{before}<path>{part[paths[-1].end() :]}"
        kept.append(part)
    return one_line("".join(kept))


class LogFile(logging.Handler):
    """Appends lines with time, process, level and module to a file that this user alone can read.

    Args:
        path: A file, which may exist; it gets mode 0600.

    Raises:
        UsageError: It is a link, or no regular file.
        OSError: It cannot be opened.
    """

    def __init__(self, path: str) -> None:
        super().__init__(logging.DEBUG)
        self.path = path
        if os.path.lexists(path) and not is_own_file(Path(path)):
            raise UsageError(
                f"the log file {path} is a folder, a link or a device, expected a file of its own",
                "name another one by --log-file or FR_EDGE_LOG",
            )
        safely = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | safely, 0o600)
        if stat.S_IMODE(os.fstat(self._handle).st_mode) != 0o600:
            with suppress(OSError):  # another user's file, or a file system without modes
                os.fchmod(self._handle, 0o600)

    def emit(self, record: logging.LogRecord) -> None:
        about_people = record.name.startswith(_ABOUT_PEOPLE)
        self.line(record.levelname, record.name, hide_names(record.getMessage(), about_people))

    def line(self, level: str, source: str, text: str) -> None:
        """Append a line; a file that cannot be written any more is said once and does not stop the work."""
        if self._handle < 0:
            return
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        try:
            os.write(self._handle, f"{moment} {os.getpid()} {level} {source}: {text}\n".encode())
        except OSError as error:
            echo(f"warning: {self.path} cannot be written: {error.strerror}", err=True)
            self.close()

    def close(self) -> None:
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)
        super().close()


@contextmanager
def logging_to(path: str) -> Iterator[LogFile]:
    """Log the command that runs to a file: its options, and at the end its exit code.

    Args:
        path: The file.

    Yields:
        The handler, for the package's logger.

    Raises:
        UsageError: The file cannot be one.
    """
    if not path.strip():
        raise click.UsageError("--log-file is empty")
    log, context, start = LogFile(path), click.get_current_context(), time.monotonic()
    source, code = context.command_path.replace(" ", "."), 1
    system = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    log.line("START", source, f"fr-edge {__version__}, {system}{_given(context)}")
    try:
        yield log
        code = 0
    except click.exceptions.Exit as end:
        code = end.exit_code
        raise
    except BaseException as error:
        code = _log_error(log, source, error)
        raise
    finally:
        log.line("END", source, f"exit code {code} after {time.monotonic() - start:.1f} s")
        log.close()


def _log_error(log: LogFile, source: str, error: BaseException) -> int:
    """The error's kind, its message without names and where it came from; the exit code."""
    stop = find_interruption(error)
    if stop is not None:
        log.line("ERROR", source, "interrupted")
        return interrupted(stop).exit_code
    about = "a message about faces" if isinstance(error, FacesError) else hide_names(str(error))
    log.line("ERROR", source, f"{type(error).__name__}: {about}")
    for frame in traceback.extract_tb(error.__traceback__):
        file = Path(frame.filename)
        inside = (
            file.relative_to(_PACKAGE) if file.is_relative_to(_PACKAGE) else Path(*file.parts[-2:])
        )
        log.line("TRACE", source, f"{inside}:{frame.lineno} {frame.name}")
    if isinstance(error, click.ClickException | FrEdgeError):
        return error.exit_code
    return 1


def _given(context: click.Context) -> str:
    """The options that were given; their values where they are numbers or one of a list."""
    given = []
    for parameter in context.command.params:
        name = parameter.name or ""
        if context.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        value = context.params.get(name)
        named = isinstance(value, bool | int | float) or isinstance(parameter.type, click.Choice)
        given.append(f"{name}={value if named else '...'}")
    return "; given: " + " ".join(given) if given else ""
