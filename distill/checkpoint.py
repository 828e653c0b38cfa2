"""Checkpoints of a training: each is written atomically, so the last complete one always loads.

`last.pt` holds everything but the centres, which may be large and shared among ranks: each rank
writes its own classes to `centres-STEP-FIRST.npy`. `last.pt` is written after them and names the step.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..arrays import map_npy
from ..documents import convert
from ..errors import DataError, MachineError, ModelError, UsageError
from ..files import replace_atomic
from .adadistill import AdaDistill
from .train_step import TrainState
from .weights import load_tensors

CHECKPOINT_NAME = "last.pt"

# What torch and Python raise for values that no training has written.
_DAMAGE = (LookupError, TypeError, AttributeError, ValueError, RuntimeError, DataError)


@dataclass(frozen=True)
class _Verification:
    step: int
    accuracy: float


@dataclass(frozen=True)
class _Progress:
    """The plain values of a checkpoint."""

    step: int
    seconds: float
    curve: list[dict[str, int | float]]
    verification: list[_Verification]
    sums: dict[str, float] = field(
        default_factory=dict
    )  # an earlier fr-edge saved where it is empty


def save_checkpoint(folder: Path, state: TrainState, key: Mapping[str, Any]) -> None:
    """Write a checkpoint; the previous one stays until this one is complete.

    Args:
        folder: Of the checkpoint; made if it does not exist.
        state: The training.
        key: Options, teacher and data, which a resumed training must have too.

    Raises:
        MachineError: It cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    head, step = state.head, state.step
    if isinstance(head, AdaDistill):
        rows = head.raw.cpu().numpy()
        _write(folder / f"centres-{step}-{head.first}.npy", lambda file: np.save(file, rows))
    state.ranks.barrier()
    if state.ranks.rank == 0:
        content = {
            "key": dict(key),
            "network": state.network.state_dict(),
            "head": {k: v for k, v in head.state_dict().items() if k != "raw"},
            "optimizer": state.optimizer.state_dict(),
            "scaler": state.scaler.state_dict(),
            "averaged": state.averaged,
            "rng": torch.get_rng_state(),
            "step": step,
            "seconds": state.seconds,
            "sums": state.sums,
            "curve": state.curve,
            "verification": state.verification,
        }
        _write(folder / CHECKPOINT_NAME, lambda file: torch.save(content, file))
        for old in folder.glob("centres-*.npy"):
            if not old.name.startswith(f"centres-{step}-"):
                old.unlink()
    state.ranks.barrier()


def restore_checkpoint(
    folder: Path, state: TrainState, key: Mapping[str, Any], *, force: bool = False
) -> bool:
    """Continue where the last checkpoint stands; the number of ranks may have changed.

    Args:
        folder: Of the checkpoint.
        state: A training at step 0; it is overwritten.
        key: Options, teacher and data.
        force: Start anew where the checkpoint has another key; the next one replaces it.

    Returns:
        Whether there was a checkpoint to continue from.

    Raises:
        UsageError: The checkpoint has another key.
        ModelError: It cannot be read.
    """
    if not (folder / CHECKPOINT_NAME).exists():
        return False
    content = load_tensors(folder / CHECKPOINT_NAME)
    try:
        for name, value in key.items():
            if content["key"].get(name) != value:
                if force:
                    return False
                raise UsageError(
                    f"{folder} holds an unfinished training with {name} ="
                    f" {content['key'].get(name)!r}; this one has {value!r}",
                    "give the same recipe, faces and teacher to go on, --force to start anew, or"
                    " another --out",
                )
        _restore(state, content)
        if isinstance(state.head, AdaDistill):
            _read_centres(folder, state.head, state.step)
    except (UsageError, ModelError):
        raise
    except _DAMAGE as error:
        raise ModelError(
            f"{folder} holds a checkpoint that is damaged or of another version of fr-edge: {error}",
            f"remove {folder} and start again",
        ) from error
    return True


def _restore(state: TrainState, content: Mapping[str, Any]) -> None:
    """Take up what a file holds; raises one of `_DAMAGE` for what no training has written."""
    names = {field.name for field in fields(_Progress)}
    plain = {name: value for name, value in content.items() if name in names}
    progress = convert(plain, _Progress, CHECKPOINT_NAME)
    if not (progress.step >= 0 and 0 <= progress.seconds < math.inf):
        raise ValueError(f"step {progress.step} after {progress.seconds} s")
    state.network.load_state_dict(content["network"])
    state.head.load_state_dict(content["head"], strict=False)
    # The groups' options are the recipe's; the learning rate is set at every step.
    groups = state.optimizer.state_dict()["param_groups"]
    buffers = _momentum(state, dict(content["optimizer"])["state"])
    state.optimizer.load_state_dict({"state": buffers, "param_groups": groups})
    state.scaler.load_state_dict(convert(content["scaler"], dict[str, float | int], "scaler"))
    weights, averaged = state.network.state_dict(), content["averaged"]
    if averaged and set(averaged) != set(weights):
        raise ValueError("averaged weights of another network")
    for name, tensor in averaged.items():
        _check_tensor(tensor, weights[name])
    state.averaged = {k: v.to(state.ranks.device) for k, v in averaged.items()}
    torch.set_rng_state(content["rng"])
    state.step, state.seconds, state.sums = progress.step, progress.seconds, progress.sums
    state.curve = progress.curve
    state.verification = [asdict(point) for point in progress.verification]


def _momentum(state: TrainState, saved: Mapping[int, Any]) -> dict[int, dict[str, Tensor]]:
    """The optimizer's buffers, each of its parameter's shape."""
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    for number, buffers in saved.items():
        for name, tensor in buffers.items():
            if name != "momentum_buffer":
                raise ValueError(f"{name!r} is not of this optimizer")
            parameter = parameters[number]
            if tensor is not None:
                _check_tensor(tensor, parameter)
    return dict(saved)


def _check_tensor(tensor: Tensor, expected: Tensor) -> None:
    form = tensor.shape, tensor.dtype, tensor.layout
    if form != (expected.shape, expected.dtype, expected.layout) or tensor.is_meta:
        raise ValueError(f"a tensor of {form}")


def _read_centres(folder: Path, head: AdaDistill, step: int) -> None:
    """This rank's classes, from whichever files hold them."""
    filled = 0
    for path in folder.glob(f"centres-{step}-*.npy"):
        rows = map_npy(path, ModelError)
        start = int(path.stem.rsplit("-", 1)[1])
        low, high = max(head.first, start), min(head.last, start + len(rows))
        if low < high:
            part = torch.from_numpy(np.array(rows[low - start : high - start]))
            head.raw[low - head.first : high - head.first] = part.to(head.raw.device)
            filled += high - low
    if filled != head.last - head.first:
        raise ModelError(f"{folder} lacks centres of step {step}", "remove it and start again")
    head.update_lengths()


def _write(target: Path, write: Callable[[BinaryIO], object]) -> None:
    """Atomically, without holding the content in memory."""
    try:
        with replace_atomic(target, private=True) as stream:
            write(stream)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a failed write
        raise MachineError(
            f"the checkpoint {target} cannot be written: {error}",
            "make room, then run the same command again: it goes on from the one before",
        ) from error
