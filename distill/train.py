"""What a training leaves behind: `reports/training.json`."""

import copy
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..bundle.bundle import open_bundle, transaction
from ..bundle.manifest import Bundle
from ..errors import FacesError, GateFailed, MachineError, UsageError
from ..faces.pairs import Pairs, read_pairs
from ..faces.sources import Faces
from ..metrics.accuracy import pair_accuracy
from ..metrics.protocols import draw_pairs
from ..progress import Track, silent
from .adadistill import AdaDistill
from .checkpoint import CHECKPOINT_NAME, restore_run, save_run
from .dataset import Batch, IdentitySplit, Pixels, batches, split_identities
from .distributed import Ranks, join_ranks
from .fake_quant import split_scales, start_fake_quant
from .networks import check_network
from .page import training_page
from .recipe import Recipe, recipe_to_json
from .teacher import Teacher
from .teacher_cache import (
    TeacherEmbeddings,
    choose_teacher,
    class_means,
    data_digest,
    open_teacher_embeddings,
)
from .train_step import (
    SPEC,
    TrainState,
    embed_pixels,
    enable_fake_quant,
    kept_memory,
    learning_rate,
    start_training,
    student_weights,
    train_step,
)
from .weights import save_network


def training_report(
    run: TrainState, faces: Faces, parts: IdentitySplit, teacher: float | None
) -> dict[str, Any]:
    """Accuracies are fractions, `teacher` the teacher's on the same pairs; the loss, lr and head's
    means are averages over the steps since the point before."""
    first = run.verification[0]["accuracy"] if run.verification else None
    last = run.verification[-1]["accuracy"] if run.verification else None
    seen = run.step * run.recipe.batch
    return {
        "recipe": recipe_to_json(run.recipe),
        "faces": faces.where,
        "device": str(run.ranks.device),
        "ranks": run.ranks.size,
        "precision": str(run.amp or "torch.float32").removeprefix("torch."),
        "images": len(parts.train),
        "identities": parts.classes,
        "steps": run.step,
        "seconds": round(run.seconds, 2),
        "images_per_s": round(seen / max(run.seconds, 1e-9), 1),
        "accuracy": last,
        "untrained_accuracy": first,
        "teacher_accuracy": teacher,
        "best": max(run.verification, key=lambda v: v["accuracy"], default=None),
        "curve": run.curve,
        "verification": run.verification,
    }


# Scalars for TensorBoard, where the recipe names a folder for them.

Scalars = Callable[[int, Mapping[str, float]], None]
"""Called with a step and values by name."""


@contextmanager
def open_scalars(recipe: Recipe, ranks: Ranks, step: int) -> Iterator[Scalars]:
    """Where the values go: event files on rank 0, or nowhere. Of an earlier, killed run what lies
    past `step` is hidden. Raises MachineError without tensorboard."""
    if not recipe.tensorboard or ranks.rank != 0:
        yield lambda _step, _values: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MachineError(
            "scalars need tensorboard", "pip install tensorboard, or --set tensorboard="
        ) from error
    with SummaryWriter(recipe.tensorboard, purge_step=step) as writer:

        def write(at: int, values: Mapping[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, at)

        yield write


# `distill`: from a recipe and faces to a bundle with `model.pt`.
#
# It can be killed at any moment: the checkpoint holds all that the next step depends on, and on a
# CPU the resumed run ends with the same bits.

_CHUNK = 128

_POINTS = 200
"""About so many points has a loss curve."""

_PLACES = ("cache", "tensorboard", "workers", "memory_mb", "checkpoint_s", "bad_images")
"""Recipe keys that may change between a run and its resumption."""


def _nothing(_: str) -> None:
    pass


def distill_student(
    recipe: Recipe,
    faces: Faces,
    out: str | Path,
    *,
    teacher: str | Path | None = None,
    resume: bool = False,
    track: Track = silent,
    notify: Callable[[str], None] = _nothing,
) -> Bundle:
    """Train the recipe's network on `faces` and write it into the bundle `out`.

    `teacher` is a bundle, an ONNX file or a checkpoint; the margin methods train without one.
    `resume` goes on from OUT/checkpoint if there is one. Under torchrun every process calls this
    alike. Raises UsageError where recipe, faces and teacher do not fit, ModelError for a teacher
    that cannot be used, FacesError past `bad_images`, DataError when ranks see different data,
    GateFailed when the loss is no number, MachineError when a checkpoint cannot be written.
    """
    out = Path(out)
    folder = out / "checkpoint"
    check_network(recipe.network)
    if recipe.needs_teacher and teacher is None:
        raise UsageError(f"method {recipe.method} needs a teacher", "give --teacher FILE")
    if (folder / CHECKPOINT_NAME).exists() and not resume:
        raise UsageError(f"{out} holds an unfinished training", f"add --resume, or remove {folder}")
    with join_ranks() as ranks:
        if ranks.rank > 0:  # one voice is enough
            track, notify = silent, _nothing
        parts, pixels = _images(recipe, faces, ranks)
        opened = None
        if recipe.needs_teacher and teacher is not None:
            opened = choose_teacher(recipe, teacher, pixels, parts)
        key = _key(recipe, opened, pixels)
        ranks.agree("recipe, data or teacher", hashlib.sha256(repr(key).encode()).hexdigest())
        options = {
            "recipe": recipe_to_json(recipe),
            "faces": faces.where,
            "teacher": None if opened is None else {"file": opened.where, "sha256": opened.sha256},
        }
        with transaction(out, "distill", options) if ranks.rank == 0 else nullcontext() as draft:
            guide = None
            if opened is not None:
                place = Path(recipe.cache) if recipe.cache else folder / "teacher"
                guide = open_teacher_embeddings(recipe, opened, pixels, place, ranks, track, notify)
            dim = opened.dim if opened else recipe.dim or 512
            run = start_training(recipe, parts.classes, dim, ranks)
            if restore_run(folder, run, key):
                notify(f"going on at step {run.step}")
            elif recipe.method == "centres" and guide and isinstance(run.head, AdaDistill):
                run.head.load_centres(class_means(guide, pixels, parts))
            pairs = _pairs(recipe, faces, parts)
            with kept_memory(), open_scalars(recipe, ranks, run.step) as scalars:
                _train(run, pixels, parts, guide, pairs, folder, key, scalars, track)
            if draft is not None:
                judged = _teacher_accuracy(opened, pairs)
                report = training_report(run, faces, parts, judged)
                draft.spec, draft.embedding_dim = SPEC, dim
                names = ("images", "identities", "accuracy", "teacher_accuracy", "seconds")
                draft.summary = {name: report[name] for name in names}
                draft.remove("model.onnx")
                state, ranges = split_scales(student_weights(run))
                path = draft.path("model.pt", "weights")
                save_network(path, state, recipe.network, dim, ranges)
                for name, text in (
                    ("reports/training.json", json.dumps(report, indent=2)),
                    ("reports/training.html", training_page(report)),
                ):
                    draft.path(name, "report").write_text(text, encoding="utf-8")
        if ranks.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        ranks.wait()
    return open_bundle(out)


def _images(recipe: Recipe, faces: Faces, ranks: Ranks) -> tuple[IdentitySplit, Pixels]:
    parts = split_identities(faces, 0 if recipe.verify_pairs else recipe.verify_identities)
    pixels = Pixels(faces, parts.train, recipe.memory_mb)
    if len(pixels) < recipe.batch:
        raise UsageError(
            f"{len(pixels)} images to train on, fewer than a batch of {recipe.batch}",
            "give more images or --set batch=N",
        )
    if recipe.batch % (ranks.size * recipe.accumulate):
        raise UsageError(
            f"a batch of {recipe.batch} does not split evenly over {ranks.size} ranks"
            f" x {recipe.accumulate} accumulated parts",
            "choose another --set batch=N",
        )
    return parts, pixels


def _key(recipe: Recipe, teacher: Teacher | None, pixels: Pixels) -> dict[str, Any]:
    """What a checkpoint must agree on before a run goes on from it."""
    return {
        **{k: v for k, v in recipe_to_json(recipe).items() if k not in _PLACES},
        "teacher": teacher.sha256 if teacher else "",
        "data": data_digest(pixels),
    }


def _pairs(recipe: Recipe, faces: Faces, parts: IdentitySplit) -> Pairs | None:
    if recipe.verify_pairs:
        return read_pairs(recipe.verify_pairs)
    held_out = faces.subset(parts.held)
    try:
        return Pairs(held_out, **vars(draw_pairs(held_out.labels)))
    except FacesError:  # too few people or images to judge
        return None


def _train(
    run: TrainState,
    pixels: Pixels,
    parts: IdentitySplit,
    guide: TeacherEmbeddings | None,
    pairs: Pairs | None,
    folder: Path,
    key: Mapping[str, Any],
    scalars: Scalars,
    track: Track,
) -> None:
    recipe = run.recipe
    per_epoch = len(pixels) // recipe.batch
    steps = recipe.epochs * per_epoch
    every = max(1, steps // _POINTS)
    rounding = steps - recipe.qat_epochs * per_epoch if recipe.qat else steps
    if run.step > rounding:
        start_fake_quant(run.network)
    if run.step == 0:
        _verify(run, pairs, scalars)
    sums: dict[str, float] = {}
    begun = saved = time.monotonic()
    feed = batches(pixels, recipe, run.ranks, run.step, steps)
    for batch in track(feed, "training", steps - run.step):
        lr = learning_rate(recipe, run.step, steps, per_epoch)
        labels = parts.labels[batch.index]
        vectors = None if guide is None else guide.embeddings(batch)
        if run.step == rounding:
            enable_fake_quant(run, batch.pixels)
        try:
            found = train_step(run, batch.pixels, labels, vectors, lr)
        except GateFailed as error:
            raise _kept(error, batch, labels, folder, run.ranks) from error
        run.step += 1
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + value / every
        now = time.monotonic()
        if run.step % every == 0:
            run.curve.append({"step": run.step, "lr": lr, **sums})
            scalars(run.step, {"lr": lr, **sums})
            sums = {}
        if run.step % (per_epoch * recipe.verify_every) == 0 or run.step == steps:
            _verify(run, pairs, scalars)
        # Between two points of the curve there is nothing else to save.
        if run.step % every == 0 and _due(now - saved, run):
            run.seconds, begun, saved = run.seconds + now - begun, now, now
            save_run(folder, run, key)
    run.seconds += time.monotonic() - begun


def _due(waited_s: float, run: TrainState) -> bool:
    """Whether it is time for a checkpoint, by the clock of rank 0."""
    due = torch.tensor(float(waited_s >= run.recipe.checkpoint_s and run.ranks.rank == 0))
    return bool(run.ranks.sum(due.to(run.ranks.device)) > 0)


def _kept(
    error: GateFailed, batch: Batch, labels: np.ndarray, folder: Path, ranks: Ranks
) -> GateFailed:
    """The same error, with the batch that made it on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"bad-batch-{ranks.rank}.npz"
    np.savez(path, pixels=batch.pixels, labels=labels)
    return GateFailed(error.message, f"{error.hint}; the batch is kept in {path}")


def _verify(run: TrainState, pairs: Pairs | None, scalars: Scalars) -> None:
    """Accuracy of the weights that would be saved now; rank 0 judges while the others wait."""
    if pairs is None:
        return
    if run.ranks.rank == 0:
        network = run.network
        if run.averaged:
            network = copy.deepcopy(network)
            network.load_state_dict(run.averaged)
        network.eval()
        with torch.no_grad():
            found = [embed_pixels(run, network, part).cpu() for part in pairs.faces.batches(_CHUNK)]
        accuracy = pair_accuracy(torch.cat(found).numpy(), pairs).mean
        run.verification.append({"step": run.step, "accuracy": accuracy})
        scalars(run.step, {"verification": accuracy})
    run.ranks.wait()


def _teacher_accuracy(teacher: Teacher | None, pairs: Pairs | None) -> float | None:
    if teacher is None or pairs is None:
        return None
    found = [teacher.embed(part) for part in pairs.faces.batches(_CHUNK)]
    return pair_accuracy(np.concatenate(found), pairs).mean
