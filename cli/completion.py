"""What a shell offers for the values of options and arguments: files, and the names that fr-edge knows."""

from collections.abc import Callable, Iterable, Sequence

import click
from click.shell_completion import CompletionItem

_FILES = {"BUNDLE", "SOURCE", "SRC", "KEY", "KEY.pub", "A", "B", "MODEL", "run.toml", "RECIPE"}
_FOLDERS = {"DIR", "PHOTOS"}


def _presets() -> Iterable[str]:
    from ..faces.contract import PRESETS

    return PRESETS


def _recipes() -> Iterable[str]:
    from ..distill.recipe import shipped_recipes

    return shipped_recipes()


def _targets() -> Iterable[str]:
    from ..runtime.compatibility import TARGETS

    for name, board in TARGETS.items():
        yield name
        yield from (f"{name}@jetpack{release}" for release in board.jetpack)


def _backends() -> Iterable[str]:
    from ..runtime.machine.backends import BACKENDS

    return ["auto", *BACKENDS]


_NAMES: dict[str, Callable[[], Iterable[str]]] = {
    "preset": _presets,
    "recipe": _recipes,
    "target": _targets,
    "backend": _backends,
}
"""Parameter -> the names that it takes; they are loaded when a shell asks."""


class CompletedText(click.types.StringParamType):
    """A text for which a shell offers names, files or folders."""

    def __init__(self, names: Callable[[], Iterable[str]] | None, paths: str) -> None:
        self.names, self.paths = names, paths

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        names = sorted(n for n in (self.names() if self.names else ()) if n.startswith(incomplete))
        items = [CompletionItem(name) for name in names]
        return items or ([CompletionItem(incomplete, type=self.paths)] if self.paths else [])


def complete_values(parameters: Sequence[click.Parameter]) -> None:
    """Let shells complete the texts that a command takes, by the parameter's name and metavar.

    Args:
        parameters: Of a command; texts that have no completion of their own get one.
    """
    for parameter in parameters:
        if type(parameter.type) is not click.types.StringParamType:
            continue
        first = (parameter.metavar or "").strip("[]").split("|")[0]
        paths = "dir" if first in _FOLDERS else ""
        if first in _FILES or first.startswith("FILE"):
            paths = "file"
        names = _NAMES.get(parameter.name or "")
        if names or paths:
            parameter.type = CompletedText(names, paths)
