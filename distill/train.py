"""Train a student, or a teacher, by a recipe: from faces to a bundle with `model.pt`.

A training can be killed at any moment: the checkpoint holds all that the next step depends on, and on
a CPU the resumed training ends with the same bits.
"""

import copy
import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..arrays import I64
from ..bundle.bundle import open_bundle, transaction
from ..bundle.manifest import CHECKPOINTS, MANIFEST, Bundle
from ..errors import FacesError, GateFailed, MachineError, ModelError, UsageError
from ..faces.pairs import Pairs, read_pairs
from ..faces.sources import Faces
from ..files import replace_atomic
from ..interruption import Interrupted, StopRequest, deferred_signals, interruptible, keeping
from ..metrics.accuracy import pair_accuracy
from ..metrics.protocols import draw_pairs
from ..progress import Track, silent
from .adadistill import AdaDistill
from .checkpoint import CHECKPOINT_NAME, restore_checkpoint, save_checkpoint
from .dataset import Batch, IdentitySplit, Pixels, batches, split_identities
from .distributed import Ranks, join_ranks
from .networks import check_network
from .recipe import Recipe
from .teacher import Teacher
from .teacher_cache import (
    TeacherEmbeddings,
    choose_teacher,
    class_means,
    data_digest,
    open_teacher_embeddings,
)
from .train_step import (
    TrainState,
    embed_pixels,
    enable_fake_quant,
    learning_rate,
    reuse_freed_memory,
    start_training,
    train_step,
)
from .training_report import (
    TrainingReport,
    finished_training,
    history_options,
    make_training_report,
    remove_complete,
    training_key,
    write_student,
)

logger = logging.getLogger(__name__)

_VERIFICATION_BATCH = 128  # faces
_CURVE_POINTS = 200  # of the training curve, about
_DEFAULT_DIM = 512  # of a student without a teacher

_WriteScalars = Callable[[int, Mapping[str, float]], None]  # called with a step and values by name


@dataclass(frozen=True)
class DistillResult:
    """What `distill_student` returns.

    Attributes:
        bundle: The bundle with the trained network.
        trained: Whether it was trained now; False where the bundle held the finished training.
        report: How the training went. With several ranks, accuracies are measured on rank 0; None
            elsewhere.
    """

    bundle: Bundle
    report: TrainingReport
    trained: bool = True


@dataclass(frozen=True)
class _Data:
    """What a training reads: images, their classes, the teacher's embeddings, and pairs to verify."""

    pixels: Pixels
    split: IdentitySplit
    embeddings: TeacherEmbeddings | None
    pairs: Pairs | None


@dataclass(frozen=True)
class _CheckpointPlace:
    """Where checkpoints go, and what a resumed training must have in common with them."""

    folder: Path
    key: Mapping[str, Any]


def distill_student(
    recipe: Recipe,
    faces: Faces,
    out: str | Path,
    *,
    teacher: str | Path | None = None,
    force: bool = False,
    track: Track = silent,
) -> DistillResult:
    """Train the recipe's network on faces and write it into a bundle.

    A training that was interrupted continues from OUT/checkpoint. One that is finished is not
    repeated. Under torchrun every process makes this call with the same arguments.

    Args:
        recipe: The training's options.
        faces: The source of training faces, with identities.
        out: The bundle's folder; made if it does not exist.
        teacher: A bundle, an ONNX file or a checkpoint; the margin methods need none.
        force: Replace another training's network or checkpoint in OUT, and repeat a finished one.
        track: Progress.

    Raises:
        UsageError: Recipe, faces and teacher do not fit, or OUT holds another training.
        ModelError: The teacher cannot be used.
        FacesError: More than `bad_images` images cannot be read.
        DataError: Ranks read different data.
        GateFailed: The loss became NaN or infinite.
        MachineError: A checkpoint cannot be written.
        Interrupted: A signal came; the training so far is in OUT/checkpoint.
    """
    out = Path(out)
    folder = out / CHECKPOINTS
    check_network(recipe.network)
    if recipe.needs_teacher and teacher is None:
        raise UsageError(f"method {recipe.method} needs a teacher", "give --teacher FILE")
    with deferred_signals() as stop, join_ranks() as ranks:
        if ranks.rank > 0:
            track = silent
        opened = None
        with interruptible():
            split, pixels = _training_images(recipe, faces, ranks)
            if recipe.needs_teacher and teacher is not None:
                opened = choose_teacher(recipe, teacher, pixels, split.labels)
            data = data_digest(pixels)
        options = history_options(recipe, faces, opened, data)
        finished = None if force else finished_training(out, options)
        place = _CheckpointPlace(folder, training_key(recipe, opened, data))
        digest = hashlib.sha256(repr((place.key, finished is None)).encode()).hexdigest()
        ranks.check_equal("recipe, data, teacher or bundle", digest)
        if ranks.rank == 0:
            remove_complete(folder, open_bundle(out) if (out / MANIFEST).exists() else None)
        ranks.barrier()
        if finished is not None:
            return DistillResult(open_bundle(out), finished, trained=False)
        with (
            keeping(partial(_kept_text, folder)),
            transaction(out, "distill", options) if ranks.rank == 0 else nullcontext() as change,
        ):
            embeddings = None
            if opened is not None:
                cache = Path(recipe.cache) if recipe.cache else folder / "teacher"
                with interruptible():
                    embeddings = open_teacher_embeddings(
                        recipe, opened, pixels, cache, ranks, track, force=force
                    )
            dim = opened.dim if opened else recipe.dim or _DEFAULT_DIM
            state = start_training(recipe, split.classes, dim, ranks)
            if restore_checkpoint(folder, state, place.key, force=force):
                if ranks.rank == 0:
                    logger.info("resumed at step %d", state.step)
            elif recipe.method == "centres" and embeddings and isinstance(state.head, AdaDistill):
                state.head.load_centres(class_means(embeddings, pixels, split))
            pairs = _verification_pairs(recipe, faces, split.verification)
            training = _Data(pixels, split, embeddings, pairs)
            with reuse_freed_memory(), _scalar_writer(recipe, ranks, state.step) as scalars:
                _train(state, training, place, scalars, track, stop)
            accuracy = _teacher_accuracy(opened, pairs) if ranks.rank == 0 else None
            report = make_training_report(state, faces, split, accuracy)
            if change is not None:
                write_student(change, state, report, folder)
        if ranks.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        ranks.barrier()
    return DistillResult(open_bundle(out), report)


def _training_images(recipe: Recipe, faces: Faces, ranks: Ranks) -> tuple[IdentitySplit, Pixels]:
    split = split_identities(faces, 0 if recipe.verify_pairs else recipe.verify_identities)
    pixels = Pixels(faces, split.train, recipe.memory_mb)
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
    return split, pixels


def _verification_pairs(recipe: Recipe, faces: Faces, verification: I64) -> Pairs | None:
    if recipe.verify_pairs:
        return read_pairs(recipe.verify_pairs)
    others = faces.subset(verification)
    try:
        return Pairs(others, **vars(draw_pairs(others.labels)))
    except FacesError:  # too few people or images
        return None


@contextmanager
def _scalar_writer(recipe: Recipe, ranks: Ranks, step: int) -> Iterator[_WriteScalars]:
    """TensorBoard's event files on rank 0, where the recipe names a folder for them.

    Values that an earlier, killed training wrote after `step` are hidden.
    """
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


def _train(
    state: TrainState,
    data: _Data,
    place: _CheckpointPlace,
    scalars: _WriteScalars,
    track: Track,
    stop: StopRequest,
) -> None:
    """Train from the state's step to the end."""
    recipe = state.recipe
    per_epoch = len(data.pixels) // recipe.batch
    steps = recipe.epochs * per_epoch
    if state.step > steps:
        raise ModelError(
            f"{place.folder} holds a checkpoint of step {state.step:,}; the training has {steps:,}",
            f"remove {place.folder} and start again",
        )
    interval = max(1, steps // _CURVE_POINTS)
    quantized_from = steps - recipe.qat_epochs * per_epoch if recipe.qat else steps
    if state.step > quantized_from:
        enable_fake_quant(state)
    if state.step == 0:
        _verify_student(state, data.pairs, scalars)
    started = saved = time.monotonic()
    source = batches(data.pixels, recipe, state.ranks, state.step, steps)
    for batch in track(source, "training", steps - state.step):
        lr = learning_rate(recipe, state.step, steps, per_epoch)
        labels = data.split.labels[batch.index]
        teacher = None if data.embeddings is None else data.embeddings.of_batch(batch)
        if state.step == quantized_from:
            enable_fake_quant(state, batch.pixels)
        try:
            means = train_step(state, batch.pixels, labels, teacher, lr)
        except GateFailed as error:
            raise _with_batch_saved(error, batch, labels, place.folder, state.ranks) from error
        state.step += 1
        for name, value in means.items():
            state.sums[name] = state.sums.get(name, 0.0) + value / interval
        now = time.monotonic()
        if state.step % interval == 0:
            state.curve.append({"step": state.step, "lr": lr, **state.sums})
            scalars(state.step, {"lr": lr, **state.sums})
            state.sums = {}
        if state.step % (per_epoch * recipe.verify_every) == 0 or state.step == steps:
            _verify_student(state, data.pairs, scalars)
        due, signal = _agreed(now - saved, stop, state)
        if due or (signal and state.step < steps):
            state.seconds, started, saved = state.seconds + now - started, now, now
            save_checkpoint(place.folder, state, place.key)
        if signal and state.step < steps:
            raise Interrupted(
                signal, f"the training up to step {state.step:,} of {steps:,} is in {place.folder}"
            )
    state.seconds += time.monotonic() - started


def _agreed(elapsed_s: float, stop: StopRequest, state: TrainState) -> tuple[bool, int]:
    """Whether a checkpoint is due, by the clock of rank 0, and the signal that any rank got."""
    due = elapsed_s >= state.recipe.checkpoint_s and state.ranks.rank == 0
    if state.ranks.size == 1:
        return due, stop.number
    own = torch.tensor([float(due), float(stop.number)], device=state.ranks.device)
    both = state.ranks.all_max(own)
    return bool(both[0]), int(both[1])


def _kept_text(folder: Path) -> str:
    """What an interruption outside the training loop leaves, in words."""
    if (folder / CHECKPOINT_NAME).exists():
        return f"the last checkpoint is in {folder}"
    return ""


def _with_batch_saved(
    error: GateFailed, batch: Batch, labels: I64, folder: Path, ranks: Ranks
) -> GateFailed:
    """The same error, after writing the batch that caused it to disk."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"bad-batch-{ranks.rank}.npz"
    with replace_atomic(path, private=True) as stream:
        np.savez(stream, pixels=batch.pixels, labels=labels)
    return GateFailed(error.message, f"{error.hint}; the batch is kept in {path}")


def _verify_student(state: TrainState, pairs: Pairs | None, scalars: _WriteScalars) -> None:
    """Accuracy of the weights that would be saved now, on rank 0 while the others wait."""
    if pairs is None:
        return
    if state.ranks.rank == 0:
        network = state.network
        if state.averaged:
            network = copy.deepcopy(network)
            network.load_state_dict(state.averaged)
        network.eval()
        parts = pairs.faces.batches(_VERIFICATION_BATCH)
        with torch.no_grad():
            rows = torch.cat([embed_pixels(state, network, part).cpu() for part in parts])
        accuracy = pair_accuracy(rows.numpy(), pairs).mean
        state.verification.append({"step": state.step, "accuracy": accuracy})
        scalars(state.step, {"verification": accuracy})
    state.ranks.barrier()


def _teacher_accuracy(teacher: Teacher | None, pairs: Pairs | None) -> float | None:
    if teacher is None or pairs is None:
        return None
    parts = pairs.faces.batches(_VERIFICATION_BATCH)
    return pair_accuracy(np.concatenate([teacher.embed(part) for part in parts]), pairs).mean
