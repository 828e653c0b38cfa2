"""Memory that stays with the process while it trains.

The C library returns large blocks to the system at once; every activation of every step then
costs page faults anew. Keeping them took a third off a quarter-width MobileFaceNet step
(2026-11-24, AMD EPYC, one thread). Does nothing where there is no glibc.
"""

import ctypes
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..errors import GateFailed, MachineError, UsageError
from ..faces.contract import InputSpec, preprocess
from .adadistill import AdaDistill
from .distributed import Ranks
from .fake_quant import add_scales, init_scales, steady_scales
from .heads import build_head
from .networks import build_network
from .recipe import Recipe

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h

_USUAL = {_TRIM_THRESHOLD: 128 << 10, _MMAP_MAX: 65536}

_KEEP = {_TRIM_THRESHOLD: (1 << 31) - 1, _MMAP_MAX: 0}


@contextmanager
def kept_memory() -> Iterator[None]:
    """Within it freed blocks are used again rather than returned; after it they are returned."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError):
        yield
        return
    for name, value in _KEEP.items():
        mallopt(name, value)
    try:
        yield
    finally:
        for name, value in _USUAL.items():
            mallopt(name, value)
        trim(0)


# The learning rate of a step.


def learning_rate(recipe: Recipe, step: int, steps: int, per_epoch: int) -> float:
    """Of step 0..steps-1: a straight climb over the warm-up, then the recipe's schedule.

    "step" multiplies by gamma at each milestone epoch (0-based), "polynomial" is
    (1 - progress)^power, "cosine" half a cosine, both to zero after the last step.
    """
    warmup = round(recipe.warmup * steps)
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    if recipe.schedule == "step":
        passed = sum(step // per_epoch >= milestone for milestone in recipe.milestones)
        return recipe.lr * recipe.gamma**passed
    progress = (step - warmup) / max(1, steps - warmup)
    if recipe.schedule == "polynomial":
        return float(recipe.lr * (1.0 - progress) ** recipe.power)
    if recipe.schedule == "cosine":
        return recipe.lr * 0.5 * (1.0 + math.cos(math.pi * progress))
    return recipe.lr


# One training in memory: network, head, optimiser and where it stands; and a step of it.
#
# Knows nothing of files.

SPEC = InputSpec()
"""The students' contract."""


@dataclass
class TrainState:
    """What a step reads and writes. `forward` is the network, compiled if the recipe says so;
    `averaged` holds the averaged weights where there are any."""

    recipe: Recipe
    ranks: Ranks
    dim: int
    amp: torch.dtype | None
    network: nn.Module
    forward: Callable[[Tensor], Tensor]
    head: nn.Module
    optimiser: torch.optim.SGD
    scaler: torch.amp.GradScaler
    averaged: dict[str, Tensor]
    step: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    verification: list[dict[str, float]] = field(default_factory=list)


def start_training(recipe: Recipe, classes: int, dim: int, ranks: Ranks) -> TrainState:
    """A run at step 0; the same on every rank."""
    amp = precision(recipe.amp, ranks.device)
    torch.manual_seed(recipe.seed)
    network = build_network(recipe.network, dim)
    steps = add_scales(network) if recipe.qat else []
    network.to(ranks.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if ranks.size > 1 and ranks.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    head = build_head(recipe, classes, dim, ranks).to(ranks.device)
    learned = [p for p in (*network.parameters(), *head.parameters()) if p.ndim]
    groups: list[dict[str, Any]] = [{"params": learned}]
    if steps:  # decay would shrink a range that should stay
        groups.append({"params": steps, "weight_decay": 0.0})
    optimiser = torch.optim.SGD(
        groups,
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    scaler = torch.amp.GradScaler(ranks.device.type, enabled=amp is torch.float16)
    averaged = {k: v.clone() for k, v in network.state_dict().items()} if recipe.ema else {}
    forward = _compiled(network, ranks.device) if recipe.compile else network
    return TrainState(recipe, ranks, dim, amp, network, forward, head, optimiser, scaler, averaged)


def _compiled(network: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise MachineError("compile on a CPU needs a C++ compiler", "--set compile=false")
    out: Callable[[Tensor], Tensor] = torch.compile(network)
    return out


def precision(amp: str, device: torch.device) -> torch.dtype | None:
    """The autocast type; "auto" is bfloat16 where the device computes in it, else none.

    Raises UsageError for fp16 on a CPU.
    """
    if amp == "fp16":
        if device.type == "cpu":
            raise UsageError("amp fp16 needs a GPU", "--set amp=bf16, or auto")
        return torch.float16
    if amp == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
        try:
            flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
        except OSError:
            return None
        return torch.bfloat16 if {"avx512_bf16", "amx_bf16"} & set(flags) else None
    return torch.bfloat16 if amp == "bf16" else None


def embed_pixels(
    run: TrainState, network: Callable[[Tensor], Tensor], pixels: npt.NDArray[np.uint8]
) -> Tensor:
    """Faces `(B, 112, 112, 3) uint8` through a network in the run's precision: `(B, D) float32`."""
    inputs = torch.from_numpy(preprocess(pixels, SPEC)).to(run.ranks.device)
    with torch.autocast(run.ranks.device.type, run.amp, enabled=run.amp is not None):
        return network(inputs.contiguous(memory_format=torch.channels_last)).float()


def enable_fake_quant(run: TrainState, pixels: npt.NDArray[np.uint8]) -> None:
    """Let the network round as INT8 does from now on, with first steps from this batch."""
    with init_scales(run.network, run.ranks.largest):
        embed_pixels(run, run.network, pixels[: max(1, len(pixels) // run.recipe.accumulate)])
    found = {n: v.clone() for n, v in run.network.state_dict().items() if n.endswith(".step")}
    if run.averaged:
        run.averaged.update(found)


def train_step(
    run: TrainState,
    pixels: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    teacher: npt.NDArray[np.float32] | None,
    lr: float,
) -> dict[str, float]:
    """One step on this rank's part of the batch; gives the loss and the head's notes.

    `pixels (B, 112, 112, 3)`, `labels (B,)`, `teacher (B, D)`. Raises GateFailed, before any
    weight has changed, when the loss or its gradient is not finite.
    """
    recipe, device = run.recipe, run.ranks.device
    # AdaDistill's loss is that of all ranks together; the others know their own rows alone.
    parts = recipe.accumulate * (1 if isinstance(run.head, AdaDistill) else run.ranks.size)
    run.network.train()
    run.head.train()
    for group in run.optimiser.param_groups:
        group["lr"] = lr
    run.optimiser.zero_grad(set_to_none=True)
    notes = {"loss": torch.zeros((), device=device)}
    for part in np.split(np.arange(len(labels)), recipe.accumulate):
        found = embed_pixels(run, run.forward, pixels[part])
        target = None if teacher is None else torch.from_numpy(teacher[part]).to(device)
        loss = run.head(found, target, torch.from_numpy(labels[part]).to(device)) / parts
        run.scaler.scale(loss).backward()
        seen: dict[str, Any] = {"loss": loss.detach() * (parts / recipe.accumulate)}
        seen |= {k: v / recipe.accumulate for k, v in run.head.notes.items()}  # type: ignore[union-attr, operator]
        notes = {k: notes.get(k, 0.0) + v for k, v in seen.items()}
    _add_up_gradients(run)
    run.scaler.unscale_(run.optimiser)
    norm = nn.utils.clip_grad_norm_(run.network.parameters(), recipe.clip or float("inf"))
    values = {name: float(value) for name, value in notes.items()}
    # A loss scaler finds its own way out of gradients that are too large.
    if not np.isfinite(values["loss"]) or not (run.scaler.is_enabled() or bool(norm.isfinite())):
        raise GateFailed(
            f"at step {run.step} the loss is {values['loss']}, the norm of its gradient {float(norm)}",
            f"lower lr (now {lr:g}) or lengthen warmup",
        )
    with steady_scales(run.network):
        run.scaler.step(run.optimiser)
    run.scaler.update()
    if recipe.ema:
        _average(run)
    return values


def student_weights(run: TrainState) -> dict[str, Tensor]:
    """The state dict that is verified and saved, on the CPU, in the usual memory layout."""
    state = run.averaged or run.network.state_dict()
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def _add_up_gradients(run: TrainState) -> None:
    """Over the ranks, in one message. Centres have none."""
    if run.ranks.size == 1:
        return
    grads = [p.grad for group in run.optimiser.param_groups for p in group["params"]]
    grads = [grad for grad in grads if grad is not None]
    flat = run.ranks.sum(torch.cat([grad.reshape(-1) for grad in grads]))
    for grad, whole in zip(grads, torch.split(flat, [g.numel() for g in grads]), strict=True):
        grad.copy_(whole.view_as(grad))


def _average(run: TrainState) -> None:
    for name, value in run.network.state_dict().items():
        if value.is_floating_point():
            run.averaged[name].lerp_(value, 1.0 - run.recipe.ema)
        else:
            run.averaged[name].copy_(value)
