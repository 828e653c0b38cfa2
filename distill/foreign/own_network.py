"""A person's own network: built by a function of a Python file that they name.

Naming the file is the consent: its code is run here, with the user's rights. Nothing else in fr-edge
runs code that a file holds.
"""

import contextlib
import importlib
import importlib.util
import inspect
import logging
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ...errors import ModelError, UsageError
from ...files import real_path

logger = logging.getLogger(__name__)


def names_code(arch: str | None) -> bool:
    """Tell whether an architecture is given as code, `FILE.py:FUNCTION` or `MODULE:FUNCTION`.

    Args:
        arch: What `--arch` was given.
    """
    return arch is not None and ":" in arch


def build_own_network(arch: str) -> nn.Module:
    """Run somebody's code that builds their network.

    What the code prints goes to stderr: stdout is for results. Compiled bytecode is not written.

    Args:
        arch: `FILE.py:FUNCTION` or `MODULE:FUNCTION`. The function takes no arguments, or only such
            with defaults; a class is called likewise, and an `nn.Module` is taken as it is. Files
            beside the file can be imported.

    Returns:
        The network.

    Raises:
        UsageError: There is no such file, module or function.
        ModelError: The code raises, exits, or gives no `nn.Module`.
    """
    where, _, name = arch.rpartition(":")
    if not where or not name.isidentifier():
        raise UsageError(
            f"--arch {arch} is not FILE.py:FUNCTION", "for example --arch my_network.py:build"
        )
    logger.info("--arch %s: this file's code is run, with your rights", arch)
    with _imports_beside(where), contained(f"--arch {arch}"):
        module = _load(where)
        target = _function(module, where, name)
        network = target if isinstance(target, nn.Module) else target()
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"--arch {arch} gives {_kind(network)}, expected a torch.nn.Module",
            "let the function return the network, without weights or with any",
        )
    return network


@contextlib.contextmanager
def contained(
    what: str, hint: str = "the code is yours: run it alone to see more"
) -> Iterator[None]:
    """Run code of somebody else: what it prints goes to stderr, what it raises becomes an error.

    Args:
        what: What errors call the code.
        hint: What they suggest where it raises.

    Raises:
        ModelError: The code raised, or left the program.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (UsageError, ModelError, KeyboardInterrupt):
        raise
    except SystemExit as error:
        raise ModelError(
            f"{what} left the program ({error.code!r}) instead of giving a network",
            "remove sys.exit, and what runs outside of functions",
        ) from error
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"{what} raised {type(error).__name__}{f': {text}' if text else ''}"
            f" ({Path(place.filename).name}, line {place.lineno})",
            hint,
        ) from error


@contextlib.contextmanager
def _imports_beside(where: str) -> Iterator[None]:
    """Files beside the one that is named can be imported, as `python FILE` allows it."""
    folder = real_path(where).parent if where.endswith(".py") else Path.cwd()
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


def _load(where: str) -> ModuleType:
    if not where.endswith(".py"):
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{where}.".startswith(f"{error.name}."):
                raise  # an import inside it
            raise UsageError(
                f"--arch: there is no module {where}", "give a file: --arch FILE.py:FUNCTION"
            ) from error
    path = Path(where)
    if not path.is_file():
        raise UsageError(f"--arch: there is no file {where}", "give FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(f"fr_edge_own_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look their module up
    spec.loader.exec_module(module)
    return module


def _function(module: ModuleType, where: str, name: str) -> Any:
    target = getattr(module, name, None)
    if target is None or not callable(target):
        own = [
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", "") == module.__name__
        ]
        raise UsageError(
            f"--arch: {where} has no function {name}", f"it has {', '.join(own) or 'none'}"
        )
    if isinstance(target, nn.Module):
        return target
    needed = [
        parameter.name
        for parameter in inspect.signature(target).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise UsageError(
            f"--arch: {name} of {where} needs {', '.join(needed)}",
            "write a function without arguments that calls it",
        )
    return target


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
