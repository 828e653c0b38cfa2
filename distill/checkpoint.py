"""A run on disk: written whole or not at all, so the last good one always loads.

`last.pt` holds everything but the centres, which may be large and shared among ranks: each rank
writes its own classes to `centres-STEP-FIRST.npy`. `last.pt` comes after them and names the step.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ..errors import MachineError, ModelError, UsageError
from .adadistill import AdaDistill
from .train_step import TrainState
from .weights import load_tensors

CHECKPOINT_NAME = "last.pt"


def save_run(folder: Path, run: TrainState, key: Mapping[str, Any]) -> None:
    """Write the run; the old checkpoint stays until the new one is complete.

    `key` is what a resumed run must agree on. Raises MachineError when it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    head, step = run.head, run.step
    if isinstance(head, AdaDistill):
        rows = head.raw.cpu().numpy()
        _write(folder / f"centres-{step}-{head.first}.npy", lambda file: np.save(file, rows))
    run.ranks.wait()
    if run.ranks.rank == 0:
        state = {
            "key": dict(key),
            "network": run.network.state_dict(),
            "head": _small(head),
            "optimiser": run.optimiser.state_dict(),
            "scaler": run.scaler.state_dict(),
            "averaged": run.averaged,
            "rng": torch.get_rng_state(),
            "step": step,
            "seconds": run.seconds,
            "curve": run.curve,
            "verification": run.verification,
        }
        _write(folder / CHECKPOINT_NAME, lambda file: torch.save(state, file))
        for old in folder.glob("centres-*.npy"):
            if not old.name.startswith(f"centres-{step}-"):
                old.unlink()
    run.ranks.wait()


def restore_run(folder: Path, run: TrainState, key: Mapping[str, Any]) -> bool:
    """Go on where the last checkpoint stands; False when there is none.

    The number of ranks may differ from then. Raises UsageError when the checkpoint is of another
    recipe, teacher or data, ModelError when it cannot be read.
    """
    if not (folder / CHECKPOINT_NAME).exists():
        return False
    state = load_tensors(folder / CHECKPOINT_NAME)
    for name, value in key.items():
        if state["key"].get(name) != value:
            raise UsageError(
                f"{folder} holds a training with {name} = {state['key'].get(name)!r};"
                f" this one has {value!r}",
                "resume with the same recipe, faces and teacher, or choose another --out",
            )
    run.network.load_state_dict(state["network"])
    run.head.load_state_dict(state["head"], strict=False)
    run.optimiser.load_state_dict(state["optimiser"])
    run.scaler.load_state_dict(state["scaler"])
    run.averaged = {k: v.to(run.ranks.device) for k, v in state["averaged"].items()}
    torch.set_rng_state(state["rng"])
    run.step, run.seconds = state["step"], state["seconds"]
    run.curve, run.verification = state["curve"], state["verification"]
    if isinstance(run.head, AdaDistill):
        _read_centres(folder, run.head, run.step)
    return True


def _small(head: torch.nn.Module) -> dict[str, Any]:
    return {k: v for k, v in head.state_dict().items() if k != "raw"}


def _read_centres(folder: Path, head: AdaDistill, step: int) -> None:
    """This rank's classes, from whichever files hold them."""
    filled = 0
    for path in folder.glob(f"centres-{step}-*.npy"):
        rows = np.load(path, mmap_mode="r")
        start = int(path.stem.rsplit("-", 1)[1])
        low, high = max(head.first, start), min(head.last, start + len(rows))
        if low < high:
            part = torch.from_numpy(np.array(rows[low - start : high - start]))
            head.raw[low - head.first : high - head.first] = part.to(head.raw.device)
            filled += high - low
    if filled != head.last - head.first:
        raise ModelError(f"{folder} lacks centres of step {step}", "remove it and start again")
    head.renew()


def _write(target: Path, write: Callable[[BinaryIO], object]) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            write(stream)
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
