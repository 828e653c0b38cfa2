"""Everything fr-edge raises on purpose::

    FrEdgeError
    +-- UsageError     2   the command or call does not make sense
    +-- GateFailed     1   it ran, and the result is not good enough
    +-- MachineError   3   this machine lacks what it takes
        +-- RankLost       another process of the same work failed or is gone; its code
    +-- NotStored          it ran, and its result could not be written; the cause's code
    +-- DataError      4   a file or the data is bad
        +-- BundleError    the bundle is damaged, too new, or lacks a file
        +-- FacesError     images, folders or pair lists that cannot be used
        +-- ModelError     a network file that cannot be used

A message says what was found and what was expected; the hint says what to do next. Anything else
that escapes is a bug and shows its traceback.
"""

import re
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any


class FrEdgeError(Exception):
    """Base of all; `exit_code` is what the command line returns."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint and hasattr(self, "add_note"):  # since Python 3.11: shown below the traceback
            self.add_note(hint)


class UsageError(FrEdgeError):
    exit_code = 2


class GateFailed(FrEdgeError):
    exit_code = 1


class MachineError(FrEdgeError):
    exit_code = 3


class RankLost(MachineError):
    def __init__(
        self, message: str, hint: str = "", exit_code: int = MachineError.exit_code
    ) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code


class NotStored(FrEdgeError):
    """Measured, but not stored: what was measured is `result`, `cause` is why it is not in the bundle.

    The result's `report` is empty. `exit_code` is the cause's.
    """

    def __init__(self, result: Any, cause: FrEdgeError | OSError) -> None:
        if isinstance(cause, OSError):
            cause = MachineError(str(cause))
        super().__init__(f"the report was not stored: {cause.message}", cause.hint)
        self.result = result
        self.exit_code = cause.exit_code


class DataError(FrEdgeError):
    exit_code = 4


class BundleError(DataError):
    pass


class FacesError(DataError):
    pass


class ModelError(DataError):
    pass


def install_hint(extra: str, package: str = "") -> str:
    """The command that installs what an extra of this package still lacks here.

    It names the packages themselves, so it is right for a checkout and for a wheel.

    Args:
        extra: A key of optional-dependencies in pyproject.toml, such as "train".
        package: The one of its packages that is needed; "" for all.

    Returns:
        `pip install 'torch>=2.4' ...`, or the extra of a checkout if this package was not installed, or
        as an earlier version that had no such extra.
    """
    try:
        wanted = sorted(
            requirement
            for requirement in _requirements(extra)
            if not package or re.split(r"[^\w.-]", requirement)[0] == package
        )
    except PackageNotFoundError:
        wanted = []
    if not wanted:
        return f"pip install -e '.[{extra}]' in the checkout"
    missing = [requirement for requirement in wanted if not _is_installed(requirement)]
    return "pip install " + " ".join(f"'{requirement}'" for requirement in missing or wanted)


def _requirements(extra: str) -> set[str]:
    """The requirements of an extra; those that are extras themselves are taken apart."""
    listed = set()
    for line in requires("fr-edge") or []:
        requirement, _, marker = line.partition(";")
        if f'extra == "{extra}"' not in marker.replace("'", '"'):
            continue
        inner = re.fullmatch(r"fr-edge\[([\w,-]+)\]", requirement.strip())
        parts = [_requirements(name) for name in inner[1].split(",")] if inner else []
        listed |= set().union(*parts) if inner else {requirement.strip()}
    return listed


def _is_installed(requirement: str) -> bool:
    try:
        version(re.split(r"[^\w.-]", requirement)[0])
    except PackageNotFoundError:
        return False
    return True
