"""A training in memory: student, head and optimizer, and one step of them. No files."""

import ctypes
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import GateFailed, MachineError, UsageError
from .distributed import Ranks, computes_bf16, data_parallel
from .fake_quant import add_scales, init_scales, limit_scale_change, start_fake_quant
from .losses.combined_loss import CombinedLoss, build_loss
from .muon import Muon, matrices_of
from .recipe import Recipe
from .student import DeviceBatch, Student, build_student

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_MALLOC_DEFAULTS = {_M_TRIM_THRESHOLD: 128 << 10, _M_MMAP_MAX: 65536}
_MALLOC_REUSE = {_M_TRIM_THRESHOLD: (1 << 31) - 1, _M_MMAP_MAX: 0}
_SCALE_FACTOR = 0.05  # of Muon's rate, usually .02, for INT8's scales: AdamW's usual rate of .001


@dataclass
class TrainState:
    """What a training step reads and writes.

    Attributes:
        recipe: The training's options.
        ranks: The processes.
        dim: Embedding size.
        amp: Autocast type; None computes in float32.
        student: The student, without wrappers.
        network_name: Of its network.
        loss: The loss.
        forward: The student for training: data parallel and compiled where asked for.
        optimizer: Over the student; learned centres have their own.
        scaler: Loss scaler; does nothing unless `amp` is float16.
        averaged: Exponential moving average of the student's state; empty without one.
        classes: Number of identities.
        failed: Number of the first step whose loss or gradient was not finite, on the device, -1 before;
            read by `check_finite_steps`.
        step: Finished steps.
        seconds: Training time up to the last checkpoint.
        sums: Means of the loss and the head's statistics since the curve's last point.
        curve: Training curve: step, learning rate, loss and the head's statistics.
        verification: Figures on faces of other people after some steps.
        best: State of the student at the best verification; empty where the last is kept.
    """

    recipe: Recipe
    ranks: Ranks
    dim: int
    amp: torch.dtype | None
    student: Student
    network_name: str
    loss: CombinedLoss
    forward: Callable[[Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    averaged: dict[str, Tensor]
    classes: int
    failed: Tensor
    step: int = 0
    seconds: float = 0.0
    sums: dict[str, float | Tensor] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    verification: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    @property
    def network(self) -> nn.Module:
        """The student's network: what is verified and saved."""
        return self.student.network


def start_training(
    recipe: Recipe,
    classes: int,
    dim: int,
    ranks: Ranks,
    *,
    compared: int = 0,
) -> TrainState:
    """A training at step 0, the same on every rank.

    Args:
        recipe: The training's options; its seed decides the initial weights.
        classes: Number of identities in the training data.
        dim: Embedding size.
        ranks: The processes.
        compared: Size of the embeddings that the loss compares; by default `dim`.

    Raises:
        UsageError: The recipe names an unknown network, or float16 on a CPU.
        MachineError: The recipe compiles on a CPU and there is no C++ compiler.
    """
    amp = _autocast_type(recipe.amp, ranks.device)
    torch.backends.cudnn.allow_tf32 = recipe.amp != "off"  # which is float32 then, on Ampere too
    torch.manual_seed(recipe.seed)
    student, name = build_student(recipe, dim, compared or dim, ranks)
    scales = add_scales(student.network) if recipe.qat else []
    student.to(ranks.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    loss = build_loss(recipe, classes, compared or dim, ranks).to(ranks.device)
    groups = _parameter_groups(recipe, student, scales)
    scaler = torch.amp.GradScaler(ranks.device.type, enabled=amp is torch.float16)
    values = student.network.state_dict()
    averaged = {k: v.clone() for k, v in values.items()} if recipe.ema else {}
    state = TrainState(
        recipe,
        ranks,
        dim,
        amp,
        student,
        name,
        loss,
        student,
        _optimizer(recipe, groups, ranks.device),
        scaler,
        averaged,
        classes,
        torch.tensor(-1, device=ranks.device),
    )
    _wrap_student(state)
    return state


def embed_pixels(state: TrainState, student: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    """Embed faces in the training's precision.

    Args:
        state: The training.
        student: Its student, in one of its forms.
        pixels: Aligned RGB faces on the device, `(B, 112, 112, 3) uint8`.

    Returns:
        `(B, D) float32`, not normalised.
    """
    kind = state.ranks.device.type
    with torch.autocast(kind, state.amp, enabled=state.amp is not None):
        return student(pixels).float()


def learning_rate(recipe: Recipe, step: int, steps: int, per_epoch: int) -> float:
    """The learning rate of a step: linear warm-up, then the recipe's schedule.

    "step" multiplies by gamma at each milestone epoch (from 0), "polynomial" is
    (1 - progress)^power, "cosine" half a cosine (SGDR, arXiv 1608.03983); the last two end at 0.

    Args:
        recipe: The training's options.
        step: From 0 to `steps` - 1.
        steps: Steps of the whole training.
        per_epoch: Steps of an epoch.
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


def train_step(state: TrainState, batch: DeviceBatch, lr: float) -> dict[str, Tensor]:
    """One step of the optimizer on this rank's part of the batch.

    On a GPU no value is read, so the host goes on while the GPU computes: a loss that is not finite is
    noted on the device and found by `check_finite_steps`. float16 does wait, for the scale of its loss.

    Args:
        state: The training; its weights and centres change.
        batch: Images, classes and targets on the device.
        lr: Learning rate.

    Returns:
        "loss" and the head's statistics, means over the batch, on the device.

    Raises:
        GateFailed: On a CPU: the loss or its gradient is not finite; no weight has changed.
    """
    recipe, device = state.recipe, state.ranks.device
    state.student.train()
    state.loss.train()
    for group in state.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)
    state.optimizer.zero_grad(set_to_none=True)
    sums = {"loss": torch.zeros((), device=device)}
    parts = batch.split(recipe.accumulate)
    for number, part in enumerate(parts, 1):
        with _gradient_sync(state, enabled=number == len(parts)):
            embeddings = embed_pixels(state, state.forward, part.pixels)
            loss = state.loss(embeddings, part.teacher, part.labels) / recipe.accumulate
            state.scaler.scale(loss).backward()
        stats = {name: value / recipe.accumulate for name, value in state.loss.stats.items()}
        for name, value in {"loss": loss.detach(), **stats}.items():
            sums[name] = sums.get(name, 0.0) + value
    state.scaler.unscale_(state.optimizer)
    norm = nn.utils.clip_grad_norm_(state.student.parameters(), recipe.clip or float("inf"))
    finite = sums["loss"].isfinite()
    if not state.scaler.is_enabled():  # which recovers from gradients that overflow
        finite = finite & norm.isfinite()
    state.failed = torch.where((state.failed < 0) & ~finite, state.step, state.failed)
    if device.type == "cpu":
        check_finite_steps(state, lr)
    scale = state.scaler.get_scale()
    with limit_scale_change(state.network):
        state.scaler.step(state.optimizer)
    for head in state.loss.learned_heads():
        head.update(lr, recipe.momentum, recipe.weight_decay, scale)
    state.scaler.update()
    if recipe.ema:
        _update_average(state)
    return sums


def check_finite_steps(state: TrainState, lr: float) -> None:
    """Check that the loss and its gradient were finite in all steps; on a GPU this waits for it.

    Args:
        state: The training.
        lr: Learning rate, for the hint.

    Raises:
        GateFailed: They were not; on a GPU weights have changed since, and no checkpoint has them.
    """
    step = int(state.failed)
    if step >= 0:
        raise GateFailed(
            f"at step {step} the loss or its gradient is not finite",
            f"lower lr (now {lr:g}) or lengthen warmup",
        )


def enable_fake_quant(state: TrainState, pixels: Tensor | None = None) -> None:
    """Train on INT8's rounding from now on.

    Args:
        state: The training.
        pixels: This rank's batch on the device, `(B, 112, 112, 3) uint8`, from which the layers take
            their first scales; None where the scales are there already, as after a resumption.
    """
    if pixels is not None:
        part = pixels[: max(1, len(pixels) // state.recipe.accumulate)]
        with init_scales(state.network, state.ranks.all_max):
            embed_pixels(state, state.student, part)
        if state.averaged:
            values = state.network.state_dict()
            scales = {name: v.clone() for name, v in values.items() if name.endswith(".scale")}
            state.averaged.update(scales)
    start_fake_quant(state.network)
    _wrap_student(state)  # the scales are learned from now on


def student_weights(state: TrainState) -> dict[str, Tensor]:
    """The state dict that is verified and saved: averaged weights where the recipe averages.

    Args:
        state: The training.

    Returns:
        Name -> tensor on the CPU, contiguous.
    """
    values = state.averaged or state.network.state_dict()
    return {name: value.detach().cpu().contiguous() for name, value in values.items()}


@contextmanager
def reuse_freed_memory() -> Iterator[None]:
    """Keep freed memory in the process while it trains, and return it to the system at the end.

    glibc returns large blocks at once, so the activations of every step cost page faults anew.
    Reusing them took a third off a step of a quarter-width MobileFaceNet (2026-11-24, AMD EPYC, one
    thread). Does nothing on systems without glibc.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError):
        yield
        return
    for name, value in _MALLOC_REUSE.items():
        mallopt(name, value)
    try:
        yield
    finally:
        for name, value in _MALLOC_DEFAULTS.items():
            mallopt(name, value)
        trim(0)


def _parameter_groups(
    recipe: Recipe, student: Student, scales: Sequence[nn.Parameter]
) -> list[dict[str, Any]]:
    plain = [p for p in student.parameters() if p.ndim]
    groups: list[dict[str, Any]] = [{"params": plain}]
    if recipe.optimizer == "muon":
        matrices = matrices_of(student)
        among = set(matrices)
        groups = [
            {"params": matrices, "matrices": True},
            {"params": [p for p in plain if p not in among]},
        ]
    if scales:  # decay would shrink ranges that are to stay
        factor = _SCALE_FACTOR if recipe.optimizer == "muon" else 1.0
        groups.append({"params": scales, "weight_decay": 0.0, "lr_factor": factor})
    return groups


def _optimizer(
    recipe: Recipe, groups: list[dict[str, Any]], device: torch.device
) -> torch.optim.Optimizer:
    fused = device.type == "cuda"  # one kernel for all parameters
    decay = recipe.weight_decay
    if recipe.optimizer == "muon":
        return Muon(groups, recipe.lr, decay)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=decay, fused=fused)
    return torch.optim.SGD(
        groups, lr=recipe.lr, momentum=recipe.momentum, weight_decay=decay, fused=fused
    )


def _wrap_student(state: TrainState) -> None:
    """Set `forward` for the parameters that need gradients now."""
    forward = data_parallel(state.student, state.ranks)
    state.forward = _compiled(forward, state.ranks.device) if state.recipe.compile else forward


def _compiled(network: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise MachineError("compile on a CPU needs a C++ compiler", "--set compile=false")
    compiled: Callable[[Tensor], Tensor] = torch.compile(network)
    return compiled


@contextmanager
def _gradient_sync(state: TrainState, *, enabled: bool) -> Iterator[None]:
    """Gradients are exchanged once per step, in the backward pass of its last part."""
    forward = getattr(state.forward, "_orig_mod", state.forward)
    if enabled or not isinstance(forward, DistributedDataParallel):
        yield
        return
    with forward.no_sync():
        yield


def _autocast_type(amp: str, device: torch.device) -> torch.dtype | None:
    """The autocast type; "auto" is bfloat16 where the device computes in it, else float32."""
    if amp == "fp16":
        if device.type == "cpu":
            raise UsageError("amp fp16 needs a GPU", "--set amp=bf16, or auto")
        return torch.float16
    if amp == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if computes_bf16() else None
        try:
            flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
        except OSError:
            return None
        return torch.bfloat16 if {"avx512_bf16", "amx_bf16"} & set(flags) else None
    return torch.bfloat16 if amp == "bf16" else None


@torch.no_grad()
def _update_average(state: TrainState) -> None:
    """Move the averaged weights; their decay rises with the updates, so that few do not keep the start.

    It is min(ema, (1 + t) / (10 + t)) at update t, from 1, as in TensorFlow's ExponentialMovingAverage.
    """
    update = state.step + 1
    decay = min(state.recipe.ema, (1 + update) / (10 + update))
    values = state.network.state_dict(keep_vars=True)
    weights = [name for name, value in values.items() if value.is_floating_point()]
    counters = [name for name, value in values.items() if not value.is_floating_point()]
    for names, move in (
        (weights, partial(torch._foreach_lerp_, weight=1.0 - decay)),
        (counters, torch._foreach_copy_),
    ):
        if names:
            move([state.averaged[n] for n in names], [values[n] for n in names])
