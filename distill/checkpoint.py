"""Checkpoints of a training: each is written atomically, so the last complete one always loads.

`last.pt` holds everything but the centres, which may be large and shared among ranks: each rank
writes its own classes to `TERM-TENSOR-STEP-FIRST.npy`. `last.pt` is written after them and names the
step.
"""

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..arrays import F32, map_npy
from ..documents import convert
from ..errors import DataError, MachineError, ModelError, UsageError
from ..files import replace_atomic
from .losses.adadistill import AdaDistill
from .losses.combined_loss import CombinedLoss
from .recipe import Recipe
from .student import average_statistics
from .train_step import TrainState
from .weights import load_tensors

CHECKPOINT_NAME = "last.pt"

# What torch and Python raise for values that no training has written.
_DAMAGE = (LookupError, TypeError, AttributeError, ValueError, RuntimeError, DataError)


@dataclass(frozen=True)
class _Progress:
    """The plain values of a checkpoint."""

    step: int
    seconds: float
    curve: list[dict[str, int | float]]
    verification: list[dict[str, int | float]]
    sums: dict[str, float]


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
    step, shards = state.step, state.loss.class_shards()
    average_statistics(state.network, state.ranks, state.averaged)
    for term, (first, _, tensors) in shards.items():
        for tensor, values in tensors.items():
            rows = values.cpu().numpy()
            _write(folder / f"{term}-{tensor}-{step}-{first}.npy", partial(_save_rows, rows))
    state.ranks.barrier()
    if state.ranks.rank == 0:
        content = {
            "key": dict(key),
            "student": state.student.state_dict(),
            "loss": _small_state(state.loss),
            "optimizer": state.optimizer.state_dict(),
            "scaler": state.scaler.state_dict(),
            "averaged": state.averaged,
            "best": state.best,
            "rng": torch.get_rng_state(),
            "step": step,
            "seconds": state.seconds,
            "sums": {name: float(value) for name, value in state.sums.items()},
            "curve": state.curve,
            "verification": state.verification,
        }
        _write(folder / CHECKPOINT_NAME, lambda file: torch.save(content, file))
        for old in folder.glob("*-*-*-*.npy"):
            if old.stem.split("-")[2] != str(step):
                old.unlink()
    state.ranks.barrier()


def check_place(
    folder: Path, state: TrainState, key: Mapping[str, Any], *, force: bool = False
) -> None:
    """Check that a checkpoint that is there is of this training, and that the disk has room for two.

    Args:
        folder: Of the checkpoint; it may not exist.
        state: The training.
        key: Options, teacher and data.
        force: Accept a checkpoint with another key.

    Raises:
        UsageError: The checkpoint has another key.
        ModelError: It cannot be read.
        MachineError: There is no room: the next checkpoint is written before the last goes.
    """
    if (folder / CHECKPOINT_NAME).exists():
        _read_own(folder, key, force=force)
    tensors = [p for group in state.optimizer.param_groups for p in group["params"]]
    buffers = 3 if isinstance(state.optimizer, torch.optim.AdamW) else 2  # with the weights
    size = buffers * sum(t.nbytes for t in tensors)
    size += sum(t.nbytes for t in (*state.averaged.values(), *state.best.values()))
    for _, _, shards in state.loss.class_shards().values():
        size += state.ranks.size * sum(t.nbytes for t in shards.values())
    disk = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(disk).free
    if free < 2 * size:
        raise MachineError(
            f"two checkpoints take {2 * size / 1e6:,.0f} MB; {disk} has {free / 1e6:,.0f} MB left",
            "make room, or give another --out",
        )


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
    content = _read_own(folder, key, force=force)
    if content is None:
        return False
    try:
        _restore(state, content)
        for term, (first, last, tensors) in state.loss.class_shards().items():
            for tensor, values in tensors.items():
                _read_rows(folder, f"{term}-{tensor}-{state.step}", first, last, values)
        for module in state.loss.terms.values():
            if isinstance(module, AdaDistill):
                module.update_lengths()
    except (UsageError, ModelError):
        raise
    except _DAMAGE as error:
        raise _damaged(folder, error) from error
    return True


def _read_own(folder: Path, key: Mapping[str, Any], *, force: bool) -> Mapping[str, Any] | None:
    """The content of `last.pt`; None where it has another key and `force` replaces it."""
    content: Mapping[str, Any] = load_tensors(folder / CHECKPOINT_NAME)
    try:
        held = vars(Recipe()) | content["key"]  # an earlier fr-edge has fewer options
    except _DAMAGE as error:
        raise _damaged(folder, error) from error
    for name, value in key.items():
        if held.get(name) == value:
            continue
        if force:
            return None
        raise UsageError(
            f"{folder} holds an unfinished training with {name} ="
            f" {held.get(name)!r}; this one has {value!r}",
            "give the same recipe, faces and teacher to go on, --force to start anew, or another --out",
        )
    return content


def _damaged(folder: Path, error: Exception) -> ModelError:
    return ModelError(
        f"{folder} holds a checkpoint that is damaged or of another version of fr-edge: {error}",
        f"remove {folder} and start again",
    )


def _restore(state: TrainState, content: Mapping[str, Any]) -> None:
    """Take up what a file holds; raises one of `_DAMAGE` for what no training has written."""
    names = {field.name for field in fields(_Progress)}
    plain = {name: value for name, value in content.items() if name in names}
    progress = convert(plain, _Progress, CHECKPOINT_NAME)
    if not (progress.step >= 0 and 0 <= progress.seconds < math.inf):
        raise ValueError(f"step {progress.step} after {progress.seconds} s")
    state.student.load_state_dict(content["student"])
    small = _small_state(state.loss)
    given = dict(content["loss"])
    if set(given) != set(small):
        raise ValueError("the state of another loss")
    for name, tensor in small.items():
        _check_tensor(given[name], tensor)
    state.loss.load_state_dict(given, strict=False)
    # The groups' options are the recipe's; the learning rate is set at every step.
    groups = state.optimizer.state_dict()["param_groups"]
    buffers = _momentum(state, dict(content["optimizer"])["state"])
    state.optimizer.load_state_dict({"state": buffers, "param_groups": groups})
    state.scaler.load_state_dict(convert(content["scaler"], dict[str, float | int], "scaler"))
    weights, averaged, best = state.network.state_dict(), content["averaged"], content["best"]
    for values in (averaged, best):
        if values and set(values) != set(weights):
            raise ValueError("weights of another network")
        for name, tensor in values.items():
            _check_tensor(tensor, weights[name])
    state.averaged = {k: v.to(state.ranks.device) for k, v in averaged.items()}
    state.best = dict(best)
    torch.set_rng_state(content["rng"])
    state.step, state.seconds, state.sums = progress.step, progress.seconds, {**progress.sums}
    state.curve = progress.curve
    if not all("step" in point for point in progress.verification):
        raise ValueError("a verification without its step")
    state.verification = progress.verification


def _momentum(state: TrainState, saved: Mapping[int, Any]) -> dict[int, dict[str, Tensor]]:
    """The optimizer's buffers: one number "step", the others of their parameter's shape."""
    adam = isinstance(state.optimizer, torch.optim.AdamW)
    parameters = [(g, p) for g in state.optimizer.param_groups for p in g["params"]]
    for number, buffers in saved.items():
        group, parameter = parameters[number]
        has_adam = adam and not group.get("matrices")
        names = ("step", "exp_avg", "exp_avg_sq") if has_adam else ("momentum_buffer",)
        if buffers and set(buffers) != set(names):
            raise ValueError(f"{', '.join(map(str, buffers))}: not of this optimizer")
        for name, tensor in buffers.items():
            if tensor is not None:
                _check_tensor(tensor, torch.zeros(()) if name == "step" else parameter)
    return dict(saved)


def _check_tensor(tensor: Tensor, expected: Tensor) -> None:
    form = tensor.shape, tensor.dtype, tensor.layout
    if form != (expected.shape, expected.dtype, expected.layout) or tensor.is_meta:
        raise ValueError(f"a tensor of {form}")


def _small_state(loss: CombinedLoss) -> dict[str, Tensor]:
    """The loss's state without what is shared among the ranks."""
    shared = {
        f"terms.{t}.{n}" for t, (_, _, tensors) in loss.class_shards().items() for n in tensors
    }
    return {name: value for name, value in loss.state_dict().items() if name not in shared}


def _save_rows(rows: F32, file: BinaryIO) -> None:
    np.save(file, rows)


def _read_rows(folder: Path, name: str, first: int, last: int, target: Tensor) -> None:
    """Rows `first..last` of a tensor, from whichever files hold them."""
    filled = 0
    for path in folder.glob(f"{name}-*.npy"):
        rows = map_npy(path, ModelError)
        start = int(path.stem.rsplit("-", 1)[1])
        low, high = max(first, start), min(last, start + len(rows))
        if low < high:
            part = torch.from_numpy(np.array(rows[low - start : high - start]))
            target[low - first : high - first] = part.to(target.device)
            filled += high - low
    if filled != last - first:
        raise ModelError(f"{folder} lacks a part of {name}", "remove it and start again")


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
