"""Checkpoints of a training: each is written atomically, so the last complete one always loads.

`last.pt` holds everything but the centres, which may be large and shared among ranks: each rank
writes its own classes to `TERM-TENSOR-STEP-FIRST.npy`. `last.pt` is written after them and names the
step.
"""

import logging
import math
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..arrays import F32, map_npy
from ..documents import convert
from ..errors import DataError, GateFailed, MachineError, ModelError, UsageError
from ..files import replace_atomic
from .distributed import Ranks
from .losses.adadistill import AdaDistill
from .losses.combined_loss import CombinedLoss
from .recipe import Recipe
from .student import average_statistics
from .train_step import TrainState
from .weights import load_tensors

logger = logging.getLogger(__name__)

CHECKPOINT_NAME = "last.pt"

_NFS_S = 90.0  # a node sees what another has written after its attribute cache's 60 s at the latest
_FROM_NOW_ON = ("lr", "warmup", "patience", "verify_every")  # what a resumed training may change

_SHARE = "give an --out in a folder that all nodes share; an earlier checkpoint stays as it was"

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
    """Write a checkpoint of finite weights; the previous one stays until this one is complete.

    Args:
        folder: Of the checkpoint; made if it does not exist.
        state: The training.
        key: Options, teacher and data, which a resumed training must have too.

    Raises:
        GateFailed: Weights or running statistics are not finite.
        DataError: Rank 0 does not see the other ranks' shards.
        MachineError: It cannot be written.
    """
    step, shards, ranks = state.step, state.loss.class_shards(), state.ranks
    average_statistics(state.network, ranks, state.averaged)
    check_finite_weights(state)
    folder.mkdir(parents=True, exist_ok=True)
    for term, (first, _, tensors) in shards.items():
        for tensor, values in tensors.items():
            rows = values.cpu().numpy()
            _write(folder / f"{term}-{tensor}-{step}-{first}.npy", partial(_save_rows, rows))
    ranks.barrier()
    firsts = [Ranks(rank, ranks.size).shard(state.classes)[0] for rank in range(ranks.size)]
    names = [f"{term}-{tensor}-{step}" for term in shards for tensor in shards[term][2]]
    files = [folder / f"{name}-{first}.npy" for name in names for first in firsts]
    lacks = ranks.rank == 0 and not _appear(files)
    if _ranks_where(lacks, ranks):
        raise DataError(
            f"rank 0 does not see the other ranks' shards of step {step} in {folder}", _SHARE
        )
    if ranks.rank == 0:
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
    ranks.barrier()


def check_finite_weights(state: TrainState) -> None:
    """Check that no rank has weights, centres or running statistics that are not finite.

    Args:
        state: The training; every rank makes this call.

    Raises:
        GateFailed: One has.
    """
    every = (state.student.state_dict(), state.loss.state_dict(), state.averaged)
    values = [v for each in every for v in each.values() if v.is_floating_point() and v.numel()]
    limits = torch.stack([torch.stack(v.detach().aminmax()).double() for v in values])  # NaN passes
    if _ranks_where(not bool(limits.isfinite().all()), state.ranks):
        raise GateFailed(
            f"after step {state.step} weights or BatchNorm's statistics are not finite",
            "lower lr or lengthen warmup; the same command with that goes on from the checkpoint before",
        )


def check_shared(folder: Path, ranks: Ranks) -> None:
    """Check that all ranks see one folder: its checkpoints would else be of no use.

    Args:
        folder: Of the checkpoint; made if it does not exist.
        ranks: The processes; every one makes this call.

    Raises:
        DataError: A rank does not see what rank 0 writes there.
        MachineError: Rank 0 cannot write there.
    """
    if ranks.size == 1:
        return
    drawn = torch.tensor([secrets.randbits(62)], device=ranks.device)
    token = folder / f"shared-{int(ranks.gather(drawn)[0]):016x}"
    problem = ""
    try:
        if ranks.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            token.touch(0o600)
    except OSError as error:
        problem = f": {error.strerror}"
    if _ranks_where(bool(problem), ranks):
        raise MachineError(f"{folder} cannot be written to{problem}", "give another --out")
    blind = _ranks_where(not _appear([token]), ranks)
    if ranks.rank == 0:
        token.unlink(missing_ok=True)
    if blind:
        if ranks.rank == 0:
            with suppress(OSError):  # holds a checkpoint, or what the teacher has embedded
                folder.rmdir()
        names = ", ".join(map(str, blind))
        raise DataError(f"{folder} of rank 0 is not seen by rank {names}", _SHARE)


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
    held = vars(Recipe()) | content["key"]
    try:
        _restore(state, content)
        for term, (first, last, tensors) in state.loss.class_shards().items():
            for tensor, values in tensors.items():
                _read_rows(folder, f"{term}-{tensor}-{state.step}", first, last, values)
        for module in state.loss.terms.values():
            if isinstance(module, AdaDistill):
                module.update_lengths()
        for name in _FROM_NOW_ON:
            if name in key and held[name] != key[name] and state.ranks.rank == 0:
                change = (name, held[name], state.step, key[name])
                logger.warning("%s was %s up to step %d; it is %s from there on", *change)
    except (UsageError, ModelError):
        raise
    except _DAMAGE as error:
        raise _damaged(folder, error) from error
    return True


def _ranks_where(fact: bool, ranks: Ranks) -> list[int]:
    """The ranks that report a fact, the same list on every one."""
    every = ranks.gather(torch.tensor([int(fact)], device=ranks.device))
    return [rank for rank, reported in enumerate(every.tolist()) if reported]


def _appear(files: Iterable[Path]) -> bool:
    """Whether all files are there, or come in sight of this node in time."""
    waiting, until = list(files), time.monotonic() + _NFS_S
    while waiting := [file for file in waiting if not file.exists()]:
        if time.monotonic() >= until:
            return False
        time.sleep(1)
    return True


def _read_own(folder: Path, key: Mapping[str, Any], *, force: bool) -> Mapping[str, Any] | None:
    """The content of `last.pt`; None where it has another key and `force` replaces it."""
    content: Mapping[str, Any] = load_tensors(folder / CHECKPOINT_NAME)
    try:
        held = vars(Recipe()) | content["key"]  # an earlier fr-edge has fewer options
        other = next((name for name in key if not _same(name, held, key)), None)
    except _DAMAGE as error:
        raise _damaged(folder, error) from error
    if other is None:
        return content
    if force:
        return None
    before, now = held.get(other), key[other]
    raise UsageError(
        f"{folder} holds an unfinished training with {other} = {before!r}; this one has {now!r}"
        + " of other content" * (before == now),
        "give the same recipe, faces and teacher to go on, --force to start anew, or another --out",
    )


def _same(name: str, held: Mapping[str, Any], key: Mapping[str, Any]) -> bool:
    """Whether a training may go on as for one of the names of its key."""
    chooses = key.get("best") or key.get("patience")
    if name in ("contents", *_FROM_NOW_ON) or (name == "verify_pairs" and not chooses):
        return True
    if name in held.get("contents", ()):  # an earlier fr-edge has paths alone
        return bool(held["contents"][name] == key["contents"][name])
    return bool(held.get(name) == key[name])


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
