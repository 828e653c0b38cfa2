"""One training in memory: network, head, optimiser and where it stands; and a step of it.

Knows nothing of files.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..errors import GateFailed, MachineError, UsageError
from ..faces.contract import InputSpec, preprocess
from .heads import build_head
from .losses import AdaDistill
from .networks import build_network
from .ranks import Ranks
from .recipe import Recipe
from .rounding import add_steps, finding_steps, steady_steps

SPEC = InputSpec()
"""The students' contract."""


@dataclass
class Run:
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


def start_run(recipe: Recipe, classes: int, dim: int, ranks: Ranks) -> Run:
    """A run at step 0; the same on every rank."""
    amp = precision(recipe.amp, ranks.device)
    torch.manual_seed(recipe.seed)
    network = build_network(recipe.network, dim)
    steps = add_steps(network) if recipe.qat else []
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
    return Run(recipe, ranks, dim, amp, network, forward, head, optimiser, scaler, averaged)


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


def embed(run: Run, network: Callable[[Tensor], Tensor], pixels: npt.NDArray[np.uint8]) -> Tensor:
    """Faces `(B, 112, 112, 3) uint8` through a network in the run's precision: `(B, D) float32`."""
    inputs = torch.from_numpy(preprocess(pixels, SPEC)).to(run.ranks.device)
    with torch.autocast(run.ranks.device.type, run.amp, enabled=run.amp is not None):
        return network(inputs.contiguous(memory_format=torch.channels_last)).float()


def round_from_here(run: Run, pixels: npt.NDArray[np.uint8]) -> None:
    """Let the network round as INT8 does from now on, with first steps from this batch."""
    with finding_steps(run.network, run.ranks.largest):
        embed(run, run.network, pixels[: max(1, len(pixels) // run.recipe.accumulate)])
    found = {n: v.clone() for n, v in run.network.state_dict().items() if n.endswith(".step")}
    if run.averaged:
        run.averaged.update(found)


def update(
    run: Run,
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
        found = embed(run, run.forward, pixels[part])
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
    with steady_steps(run.network):
        run.scaler.step(run.optimiser)
    run.scaler.update()
    if recipe.ema:
        _average(run)
    return values


def weights(run: Run) -> dict[str, Tensor]:
    """The state dict that is verified and saved, on the CPU, in the usual memory layout."""
    state = run.averaged or run.network.state_dict()
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def _add_up_gradients(run: Run) -> None:
    """Over the ranks, in one message. Centres have none."""
    if run.ranks.size == 1:
        return
    grads = [p.grad for group in run.optimiser.param_groups for p in group["params"]]
    grads = [grad for grad in grads if grad is not None]
    flat = run.ranks.sum(torch.cat([grad.reshape(-1) for grad in grads]))
    for grad, whole in zip(grads, torch.split(flat, [g.numel() for g in grads]), strict=True):
        grad.copy_(whole.view_as(grad))


def _average(run: Run) -> None:
    for name, value in run.network.state_dict().items():
        if value.is_floating_point():
            run.averaged[name].lerp_(value, 1.0 - run.recipe.ema)
        else:
            run.averaged[name].copy_(value)
