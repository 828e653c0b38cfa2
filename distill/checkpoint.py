"""The training's state on disk: written whole or not at all, the last good one always loads."""

import os
from pathlib import Path
from typing import Any

import torch

from ..errors import MachineError, UsageError
from .weights import load_tensors

NAME = "last.pt"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values; the old checkpoint stays until the new one is complete.

    Raises MachineError when the disk is full or cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / NAME
    temporary = folder / f".{NAME}.{os.getpid()}"
    try:
        with temporary.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    except (OSError, RuntimeError) as error:  # torch wraps a failed write into a RuntimeError
        raise MachineError(
            f"the checkpoint {target} cannot be written: {error}",
            "make room, then go on with --resume from the one before",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(folder: Path, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """The last state, or None; raises UsageError when it is of another recipe, ModelError when it
    cannot be read."""
    if not (folder / NAME).exists():
        return None
    state: dict[str, Any] = load_tensors(folder / NAME)
    for key, value in recipe.items():
        if state["recipe"].get(key) != value:
            raise UsageError(
                f"{folder} holds a training with {key} = {state['recipe'].get(key)!r};"
                f" this one has {value!r}",
                "resume with the same recipe, faces and teacher, or choose another --out",
            )
    return state
