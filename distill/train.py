"""`distill`: the training loop, from a recipe and faces to a bundle with `model.pt`.

It can be killed at any moment: the checkpoint holds all that the next step depends on, and on a
CPU the resumed run ends with the same bits.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..bundle import Bundle, change, open_bundle
from ..errors import GateFailed, UsageError
from ..faces.contract import InputSpec, preprocess
from ..faces.sources import Faces
from ..progress import Track, silent
from .cache import cached_embeddings, data_digest
from .checkpoint import load_checkpoint, save_checkpoint
from .data import Batch, Pixels, Split, batches, split
from .heads import build_head
from .losses import AdaDistill
from .networks import build_network
from .recipe import Recipe, recipe_to_json
from .schedule import rate
from .teacher import Teacher, check_teacher, open_teacher
from .validate import pair_accuracy
from .weights import save_network

SPEC = InputSpec()
"""The students' contract."""
_CHUNK = 128
_POINTS = 200
"""About so many points has a loss curve."""
_PLACES = ("cache", "workers", "memory_mb", "checkpoint_s", "bad_images")
"""Recipe keys that may change between a run and its resumption."""


@dataclass
class _Run:
    """What a step reads and writes."""

    recipe: Recipe
    device: torch.device
    amp: torch.dtype | None
    network: nn.Module
    head: nn.Module
    optimiser: torch.optim.SGD
    scaler: torch.amp.GradScaler
    averaged: dict[str, Tensor]
    step: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    verification: list[dict[str, float]] = field(default_factory=list)


def distill(
    recipe: Recipe,
    faces: Faces,
    out: str | Path,
    *,
    teacher: str | Path | None = None,
    resume: bool = False,
    track: Track = silent,
    notify: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Train the recipe's network on `faces` and write it into the bundle `out`.

    `teacher` is a bundle, an ONNX file or a checkpoint; the margin methods train without one.
    `resume` goes on from OUT/checkpoint if there is one. Raises UsageError where recipe, faces and
    teacher do not fit, ModelError for a teacher that cannot be used, FacesError past `bad_images`,
    GateFailed when the loss is no number, MachineError when a checkpoint cannot be written.
    """
    out = Path(out)
    folder = out / "checkpoint"
    if recipe.needs_teacher and teacher is None:
        raise UsageError(f"method {recipe.method} needs a teacher", "give --teacher FILE")
    if (folder / "last.pt").exists() and not resume:
        raise UsageError(
            f"{out} holds an unfinished training", f"add --resume, or remove {folder}"
        )
    parts = split(faces, recipe.verify_identities)
    pixels = Pixels(faces, parts.train, recipe.memory_mb)
    if len(pixels) < recipe.batch:
        raise UsageError(
            f"{len(pixels)} images to train on, fewer than a batch of {recipe.batch}",
            "give more images or --set batch=N",
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    guide = None
    if recipe.needs_teacher and teacher is not None:
        guide = open_teacher(
            teacher,
            preset=recipe.teacher_preset,
            arch=recipe.teacher_arch,
            device=device.type,
        )
        check_teacher(guide, _strangers(pixels, parts))
    dim = _dimension(recipe, guide)
    options = {
        "recipe": recipe_to_json(recipe),
        "faces": faces.where,
        "teacher": None if guide is None else {"file": guide.where, "sha256": guide.sha256},
    }
    with change(out, "distill", options) as draft:
        run = _start(recipe, parts.classes, dim, device)
        key = _key(recipe, guide, pixels)
        state = load_checkpoint(folder, key)
        vectors = _teacher_vectors(recipe, guide, pixels, folder, track, notify)
        if state is not None:
            _restore(run, state)
            notify(f"going on at step {run.step}")
        elif recipe.method == "centres" and guide is not None:
            run.head.load_centres(_class_means(vectors, guide, pixels, parts))  # type: ignore[operator]
        _train(run, pixels, parts, vectors, guide, folder, key, track)
        report = _report(run, parts, faces, guide, device)
        draft.spec, draft.embedding_dim = SPEC, dim
        draft.summary = {k: report[k] for k in ("images", "identities", "accuracy", "seconds")}
        draft.drop("")
        save_network(draft.path("model.pt", "weights"), _weights(run), recipe.network, dim)
        draft.path("reports/training.json", "report").write_text(json.dumps(report, indent=2))
    shutil.rmtree(folder, ignore_errors=True)
    return open_bundle(out)


def _dimension(recipe: Recipe, guide: Teacher | None) -> int:
    if guide is not None and recipe.dim not in (0, guide.dim):
        raise UsageError(
            f"the teacher's embeddings have {guide.dim} numbers, the recipe's dim is {recipe.dim}",
            f"--set dim={guide.dim}",
        )
    return guide.dim if guide is not None else recipe.dim or 512


def _strangers(pixels: Pixels, parts: Split) -> Any:
    """First images of up to eight people."""
    firsts = np.unique(parts.labels, return_index=True)[1][:8]
    return np.stack([pixels.read_near(int(index))[1] for index in firsts])


def _key(recipe: Recipe, guide: Teacher | None, pixels: Pixels) -> dict[str, Any]:
    """What a checkpoint must agree on before a run goes on from it."""
    return {
        **{k: v for k, v in recipe_to_json(recipe).items() if k not in _PLACES},
        "teacher": guide.sha256 if guide else "",
        "data": data_digest(pixels),
    }


def _start(recipe: Recipe, classes: int, dim: int, device: torch.device) -> _Run:
    torch.manual_seed(recipe.seed)
    network = build_network(recipe.network, dim).to(device, memory_format=torch.channels_last)
    head = build_head(recipe, classes, dim).to(device)
    optimiser = torch.optim.SGD(
        [*network.parameters(), *head.parameters()],
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    amp = precision(recipe.amp, device)
    scaler = torch.amp.GradScaler(device.type, enabled=amp is torch.float16)
    averaged = {k: v.clone() for k, v in network.state_dict().items()} if recipe.ema else {}
    return _Run(recipe, device, amp, network, head, optimiser, scaler, averaged)


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


def _teacher_vectors(
    recipe: Recipe,
    guide: Teacher | None,
    pixels: Pixels,
    folder: Path,
    track: Track,
    notify: Callable[[str], None],
) -> Any:
    """The cache `(N, 2, D) float16`, or None where the teacher must see every batch itself."""
    if guide is None:
        return None
    if not recipe.only_flips:
        notify("shift and light make every image new: the teacher runs on each batch, uncached")
        return None
    place = Path(recipe.cache) if recipe.cache else folder / "teacher"
    return cached_embeddings(place, guide, pixels, track)


def _class_means(vectors: Any, guide: Teacher, pixels: Pixels, parts: Split) -> Tensor:
    """Mean teacher embedding of each class `(C, D) float32`, unit length."""
    sums = torch.zeros(parts.classes, guide.dim)
    for start in range(0, len(pixels), _CHUNK):
        stop = min(start + _CHUNK, len(pixels))
        if vectors is not None:
            found = np.asarray(vectors[start:stop], np.float32).mean(1)
        else:
            found = guide.embed(pixels.block(start, stop)[1])
        sums.index_add_(0, torch.from_numpy(parts.labels[start:stop]), torch.from_numpy(found))
    return nn.functional.normalize(sums)


def _train(
    run: _Run,
    pixels: Pixels,
    parts: Split,
    vectors: Any,
    guide: Teacher | None,
    folder: Path,
    key: Mapping[str, Any],
    track: Track,
) -> None:
    recipe = run.recipe
    per_epoch = len(pixels) // recipe.batch
    steps = recipe.epochs * per_epoch
    every = max(1, steps // _POINTS)
    if run.step == 0:
        _verify(run, pixels.faces, parts)
    sums: dict[str, float] = {}
    begun = saved = time.monotonic()
    feed = batches(pixels, recipe, recipe.batch, run.step, steps)
    for batch in track(feed, "training", steps - run.step):
        lr = rate(recipe, run.step, steps, per_epoch)
        for name, value in _step(run, batch, parts, vectors, guide, lr, folder).items():
            sums[name] = sums.get(name, 0.0) + value / every
        run.step += 1
        now = time.monotonic()
        if run.step % every == 0:
            run.curve.append({"step": run.step, "lr": lr, **sums})
            sums = {}
        if run.step % (per_epoch * recipe.verify_every) == 0 or run.step == steps:
            _verify(run, pixels.faces, parts)
        if run.step % every == 0 and now - saved >= recipe.checkpoint_s:
            run.seconds, begun, saved = run.seconds + now - begun, now, now
            save_checkpoint(folder, _state(run, key))
    run.seconds += time.monotonic() - begun


def _step(
    run: _Run,
    batch: Batch,
    parts: Split,
    vectors: Any,
    guide: Teacher | None,
    lr: float,
    folder: Path,
) -> dict[str, float]:
    """One update of the weights; gives loss and notes."""
    recipe, notes = run.recipe, {"loss": 0.0}
    run.network.train()
    run.head.train()
    for group in run.optimiser.param_groups:
        group["lr"] = lr
    run.optimiser.zero_grad(set_to_none=True)
    for part in np.split(np.arange(len(batch.index)), recipe.accumulate):
        inputs = torch.from_numpy(preprocess(batch.pixels[part], SPEC)).to(
            run.device, memory_format=torch.channels_last
        )
        labels = torch.from_numpy(parts.labels[batch.index[part]]).to(run.device)
        target = None
        if vectors is not None:
            found = vectors[batch.index[part], batch.flipped[part].astype(np.int64)]
            target = torch.from_numpy(found.astype(np.float32)).to(run.device)
        elif guide is not None:
            target = torch.from_numpy(guide.embed(batch.pixels[part])).to(run.device)
        with torch.autocast(run.device.type, run.amp, enabled=run.amp is not None):
            embeddings = run.network(inputs)
        loss = run.head(embeddings.float(), target, labels) / recipe.accumulate
        run.scaler.scale(loss).backward()
        notes["loss"] += float(loss.detach())
        for name, value in run.head.notes.items():  # type: ignore[union-attr]
            notes[name] = notes.get(name, 0.0) + float(value) / recipe.accumulate
    run.scaler.unscale_(run.optimiser)
    norm = nn.utils.clip_grad_norm_(run.network.parameters(), recipe.clip or float("inf"))
    if not np.isfinite(notes["loss"]) or not (bool(norm.isfinite()) or run.scaler.is_enabled()):
        bad = folder / "bad-batch.npz"
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(bad, pixels=batch.pixels, labels=parts.labels[batch.index])
        raise GateFailed(
            f"the loss is {notes['loss']}, its gradient's norm {float(norm)}, at step {run.step}",
            f"lower lr ({lr:g}) or lengthen warmup; the batch is kept in {bad}",
        )
    run.scaler.step(run.optimiser)
    run.scaler.update()
    if recipe.ema:
        for name, value in run.network.state_dict().items():
            kept = run.averaged[name]
            if kept.is_floating_point():
                kept.lerp_(value, 1.0 - recipe.ema)
            else:
                kept.copy_(value)
    return notes


def _weights(run: _Run) -> dict[str, Tensor]:
    """The state dict that is saved and verified, on the CPU."""
    state = run.averaged or run.network.state_dict()
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def _verify(run: _Run, faces: Faces, parts: Split) -> None:
    """Accuracy on the people kept apart; nothing where there are none."""
    if len(parts.held) == 0:
        return
    network = run.network
    if run.averaged:
        network = build_network(run.recipe.network, run.network.norm.num_features)  # type: ignore
        network.load_state_dict(run.averaged)
        network.to(run.device)
    network.eval()
    found = []
    with torch.no_grad():
        for part in faces.batches(_CHUNK, parts.held.tolist()):
            inputs = torch.from_numpy(preprocess(part, SPEC)).to(
                run.device, memory_format=torch.channels_last
            )
            with torch.autocast(run.device.type, run.amp, enabled=run.amp is not None):
                found.append(network(inputs).float().cpu().numpy())
    accuracy = pair_accuracy(np.concatenate(found), parts.held_labels.tolist())
    if accuracy is not None:
        run.verification.append({"step": run.step, "accuracy": accuracy})


def _state(run: _Run, key: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "recipe": dict(key),
        "network": run.network.state_dict(),
        "head": run.head.state_dict(),
        "optimiser": run.optimiser.state_dict(),
        "scaler": run.scaler.state_dict(),
        "averaged": run.averaged,
        "rng": torch.get_rng_state(),
        "step": run.step,
        "seconds": run.seconds,
        "curve": run.curve,
        "verification": run.verification,
    }


def _restore(run: _Run, state: Mapping[str, Any]) -> None:
    run.network.load_state_dict(state["network"])
    run.head.load_state_dict(state["head"])
    run.optimiser.load_state_dict(state["optimiser"])
    run.scaler.load_state_dict(state["scaler"])
    run.averaged = dict(state["averaged"])
    torch.set_rng_state(state["rng"])
    run.step, run.seconds = state["step"], state["seconds"]
    run.curve, run.verification = state["curve"], state["verification"]


def _report(
    run: _Run, parts: Split, faces: Faces, guide: Teacher | None, device: torch.device
) -> dict[str, Any]:
    best = max(run.verification, key=lambda v: v["accuracy"], default=None)
    teacher_accuracy = None
    if guide is not None and len(parts.held):
        found = [guide.embed(part) for part in faces.batches(_CHUNK, parts.held.tolist())]
        teacher_accuracy = pair_accuracy(np.concatenate(found), parts.held_labels.tolist())
    return {
        "recipe": recipe_to_json(run.recipe),
        "device": str(device),
        "precision": str(run.amp or torch.float32).removeprefix("torch."),
        "images": len(parts.train),
        "identities": parts.classes,
        "steps": run.step,
        "seconds": round(run.seconds, 2),
        "images_per_s": round(run.step * run.recipe.batch / max(run.seconds, 1e-9), 1),
        "accuracy": run.verification[-1]["accuracy"] if run.verification else None,
        "untrained_accuracy": run.verification[0]["accuracy"] if run.verification else None,
        "teacher_accuracy": teacher_accuracy,
        "best": best,
        "curve": run.curve,
        "verification": run.verification,
    }
