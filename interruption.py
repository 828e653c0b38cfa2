"""Signals that stop a command, and what it keeps when one comes.

SIGINT, SIGTERM and SIGHUP raise `Interrupted`. Work that must not stop halfway, such as a training
step or a commit, defers them. A signal that was ignored when the process started, as SIGINT is in a
shell's background job and SIGHUP under nohup, stays ignored.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE_S = 5.0  # torchrun repeats a signal at once; a later one is a user who will not wait


class Interrupted(KeyboardInterrupt):
    """A signal stopped the work.

    Attributes:
        number: The signal's number.
        kept: What of the work is saved and where, in words; "" where nothing is.
    """

    def __init__(self, number: int = signal.SIGINT, kept: str = "") -> None:
        super().__init__(number, kept)
        self.number = number
        self.kept = kept

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it."""
        return 128 + self.number


@dataclass
class StopRequest:
    """A signal that came.

    Attributes:
        number: The signal's number; 0 while none has come.
    """

    number: int = 0


@contextmanager
def interruptible() -> Iterator[StopRequest]:
    """Raise `Interrupted` for each signal that stops a command and is not ignored.

    Yields:
        Which signal came last.
    """
    request = StopRequest()

    def stop(number: int, frame: FrameType | None) -> None:
        request.number = number
        raise Interrupted(number)

    with _handlers(stop):
        yield request


@contextmanager
def deferred_signals() -> Iterator[StopRequest]:
    """Note signals instead of raising; who has work to save looks at the request and raises.

    `Interrupted` is raised at the end where nothing else was, and in the place of an error that the
    signal may have caused. A further signal, more than five seconds later, is raised at once.

    Yields:
        The request. Outside the main thread, which alone gets signals, nothing is ever requested.
    """
    request, first_s = StopRequest(), 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first_s
        now = time.monotonic()
        if request.number and now - first_s > _PATIENCE_S:
            raise Interrupted(number)
        if not request.number:
            request.number, first_s = number, now

    try:
        with _handlers(note):
            yield request
    except Exception as error:
        if request.number:
            raise Interrupted(request.number) from error
        raise
    if request.number:
        raise Interrupted(request.number)


@contextmanager
def keeping(kept: Callable[[], str]) -> Iterator[None]:
    """Say what is saved when the work inside is interrupted.

    Args:
        kept: Gives it in words, "" where nothing is; called when the interruption comes. It follows
            what the work inside says.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        raise interrupted(stop, kept()) from stop


def interrupted(stop: KeyboardInterrupt, kept: str = "") -> Interrupted:
    """An interruption that says what is saved.

    Args:
        stop: What was raised.
        kept: What is saved, in words, or "". It follows what `stop` says already.

    Returns:
        An `Interrupted` of the same signal; of SIGINT for Python's own.
    """
    cause = find_interruption(stop)
    if not isinstance(cause, Interrupted):
        return Interrupted(signal.SIGINT, kept)
    return Interrupted(cause.number, "; ".join(filter(None, (cause.kept, kept))))


def find_interruption(error: BaseException | None) -> KeyboardInterrupt | None:
    """The interruption behind an error: one that comes while a library loads is an ImportError.

    Args:
        error: What was raised.

    Returns:
        The first `Interrupted` in its chain of causes, else the first KeyboardInterrupt, else None.
    """
    first: KeyboardInterrupt | None = None
    while error is not None:
        if isinstance(error, Interrupted):
            return error
        if first is None and isinstance(error, KeyboardInterrupt):
            first = error
        error = error.__cause__ or error.__context__
    return first


@contextmanager
def _handlers(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle the signals that are not ignored; does nothing outside the main thread."""
    before = {}
    try:
        for number in _SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, handler)
    except ValueError:  # not the main thread
        before = {}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
