"""Train a student, or a teacher, by a recipe: from faces to a bundle with `model.pt`.

A training can be killed at any moment: the checkpoint holds all that the next step depends on, and on
a CPU the resumed training ends with the same bits.
"""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..bundle.bundle import open_bundle, transaction
from ..bundle.manifest import CHECKPOINTS, MANIFEST, Bundle
from ..errors import GateFailed, ModelError, UsageError
from ..faces.sources import Faces
from ..files import replace_atomic
from ..interruption import Interrupted, StopRequest, deferred_signals, interruptible, keeping
from ..progress import Track, silent
from .checkpoint import (
    CHECKPOINT_NAME,
    check_finite_weights,
    check_place,
    check_shared,
    restore_checkpoint,
    save_checkpoint,
)
from .data_report import leave_out_unreadable, read_exclusions, report_data
from .dataset import Batch, IdentitySplit, Pixels, batches, split_identities
from .distributed import Ranks, join_ranks
from .losses.adadistill import AdaDistill
from .losses.combined_loss import BankLoss
from .networks import check_network
from .recipe import FROM_SCRATCH, Recipe
from .student import DeviceBatch, copied_ahead
from .student_verification import (
    VerificationSet,
    WriteCurves,
    curve_writer,
    open_verification_sets,
    stops_early,
    teacher_accuracy,
    verify_student,
)
from .teacher import Teacher
from .teacher_cache import choose_teacher, data_digest, open_teacher_embeddings
from .teacher_targets import TeacherEmbeddings, class_means, teacher_bank
from .train_step import (
    TrainState,
    check_finite_steps,
    enable_fake_quant,
    learning_rate,
    reuse_freed_memory,
    start_training,
    train_step,
)
from .training_report import (
    TrainingReport,
    check_norm_batch,
    check_outputs,
    finished_training,
    history_options,
    make_training_report,
    remove_complete,
    training_key,
    write_student,
)

logger = logging.getLogger(__name__)

_CURVE_POINTS = 200  # of the training curve, about
_LOOK_STEPS = 10  # steps of a GPU between two looks at signals and at what is not finite
_DEFAULT_DIM = 512  # of a student without a teacher


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
    """What a training reads: images, their classes, the teacher's embeddings, and sets to verify on."""

    images: Iterable[Batch]
    split: IdentitySplit
    embeddings: TeacherEmbeddings | None
    sets: Mapping[str, VerificationSet]


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
        DataError: Ranks read different data, or do not see one OUT.
        GateFailed: The loss or a weight became NaN or infinite.
        MachineError: A checkpoint cannot be written.
        Interrupted: A signal came; the training so far is in OUT/checkpoint.
    """
    out = Path(out)
    folder = out / CHECKPOINTS
    check_network(recipe.network)
    with deferred_signals() as stop, join_ranks() as ranks:
        if ranks.rank > 0:
            track = silent
        opened = None
        with interruptible(), _logs_once(ranks):
            split, pixels = _training_images(recipe, faces, ranks)
            sets = open_verification_sets(recipe, faces, split.verification)
            if recipe.needs_teacher and teacher is None:
                names = ", ".join(name for name in recipe.losses if name not in FROM_SCRATCH)
                raise UsageError(f"{names} needs a teacher", "give --teacher FILE")
            check_outputs(recipe)
            if recipe.needs_teacher and teacher is not None:
                opened = choose_teacher(recipe, teacher)
            data = data_digest(pixels)
            if recipe.exclude:
                data = hashlib.sha256(data.encode() + split.kept.tobytes()).hexdigest()
        options = history_options(recipe, faces, opened, data)
        finished = None if force else finished_training(out, options)
        place = _CheckpointPlace(folder, training_key(recipe, opened, data, sets))
        digest = hashlib.sha256(repr((place.key, finished is None)).encode()).hexdigest()
        ranks.check_equal("recipe, data, teacher or bundle", digest)
        if ranks.rank == 0:
            remove_complete(folder, open_bundle(out) if (out / MANIFEST).exists() else None)
        ranks.barrier()
        if finished is not None:
            return DistillResult(open_bundle(out), finished, trained=False)
        state = _new_training(recipe, opened, split, ranks)
        check_place(folder, state, place.key, force=force)
        with (
            keeping(partial(_kept_text, folder)),
            transaction(out, "distill", options) if ranks.rank == 0 else nullcontext() as change,
        ):
            with interruptible():
                check_shared(folder, ranks)
            embeddings = None
            if opened is not None:
                cache = Path(recipe.cache) if recipe.cache else folder / "teacher"
                with interruptible(), _logs_once(ranks):
                    embeddings = open_teacher_embeddings(
                        recipe, opened, pixels, split.labels, cache, ranks, track, force=force
                    )
                    # Not in OUT's checkpoint, which ends with the training that excludes them.
                    file = Path(recipe.cache or out.resolve().parent) / f"{out.name}.unreadable.csv"
                    split = leave_out_unreadable(recipe, faces, split, embeddings, file, ranks)
                    _use_embeddings(state, embeddings, split)
            if recipe.data_report and ranks.rank == 0:
                with interruptible():
                    report_data(recipe, embeddings, split, faces, ranks)
            if restore_checkpoint(folder, state, place.key, force=force) and ranks.rank == 0:
                logger.info("resumed at step %d", state.step)
            digest = hashlib.sha256(repr(state.step).encode()).hexdigest()
            ranks.check_equal("checkpoint", digest, f"every process needs the same folder {folder}")
            steps = recipe.epochs * (len(split.kept) // recipe.batch)
            images = batches(pixels, split, recipe, ranks, state.step, steps)
            training = _Data(images, split, embeddings, sets)
            with closing(images), reuse_freed_memory(), curve_writer(state, steps) as write:
                _train(state, training, place, write, track, stop)
            accuracy = None if opened is None else teacher_accuracy(opened, sets, ranks)
            report = make_training_report(state, faces, split, accuracy)
            if change is not None:
                write_student(change, state, report, folder)
        if ranks.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        ranks.barrier()
    return DistillResult(open_bundle(out), report)


def _new_training(
    recipe: Recipe, teacher: Teacher | None, split: IdentitySplit, ranks: Ranks
) -> TrainState:
    """A training at step 0, which does not know the teacher's embeddings yet."""
    if teacher is None:
        return start_training(recipe, split.classes, recipe.dim or _DEFAULT_DIM, ranks)
    dim = recipe.dim or teacher.dim
    # A smaller student learns as many principal components of the teacher's embeddings.
    return start_training(recipe, split.classes, dim, ranks, compared=min(dim, teacher.dim))


def _use_embeddings(state: TrainState, embeddings: TeacherEmbeddings, split: IdentitySplit) -> None:
    """Give the loss what it needs of the teacher."""
    recipe = state.recipe
    for term in state.loss.terms.values():
        if isinstance(term, BankLoss):
            term.load_bank(teacher_bank(embeddings, split, recipe.bank_mb, recipe.seed))
        elif isinstance(term, AdaDistill) and term.alpha == "fixed":
            term.load_centres(class_means(embeddings, split))


def _training_images(recipe: Recipe, faces: Faces, ranks: Ranks) -> tuple[IdentitySplit, Pixels]:
    excluded = read_exclusions(Path(recipe.exclude), faces.keys) if recipe.exclude else None
    apart = 0 if recipe.verify_pairs else recipe.verify_identities
    split = split_identities(faces, apart, excluded)
    pixels = Pixels(faces, split.train, recipe.memory_mb)
    if ranks.rank == 0 and recipe.workers > (cores := os.cpu_count() or 1):
        logger.warning("workers is %d on %d cores; fewer may be faster", recipe.workers, cores)
    if len(split.kept) < recipe.batch:
        raise UsageError(
            f"{len(split.kept)} images to train on, fewer than a batch of {recipe.batch}",
            "give more images or --set batch=N"
            + (", or a smaller verify_identities" if apart else ""),
        )
    if recipe.batch % (ranks.size * recipe.accumulate):
        raise UsageError(
            f"a batch of {recipe.batch} does not split evenly over {ranks.size} ranks"
            f" x {recipe.accumulate} accumulated parts",
            "choose another --set batch=N",
        )
    check_norm_batch(recipe.batch // (ranks.size * recipe.accumulate), recipe.norm_batch)
    return split, pixels


@contextmanager
def _logs_once(ranks: Ranks) -> Iterator[None]:
    """What every rank would say alike is logged by rank 0 alone."""
    package = logging.getLogger(__name__.partition(".")[0])
    before = package.level
    if ranks.rank:
        package.setLevel(logging.ERROR)
    try:
        yield
    finally:
        package.setLevel(before)


def _train(
    state: TrainState,
    data: _Data,
    place: _CheckpointPlace,
    write_curves: WriteCurves,
    track: Track,
    stop: StopRequest,
) -> None:
    """Train from the state's step to the end."""
    recipe = state.recipe
    per_epoch = len(data.split.kept) // recipe.batch
    steps = recipe.epochs * per_epoch
    if state.step > steps:
        raise ModelError(
            f"{place.folder} holds a checkpoint of step {state.step:,}; the training has {steps:,}",
            f"remove {place.folder} and start again",
        )
    interval = max(1, steps // _CURVE_POINTS)
    look_steps = 1 if state.ranks.device.type == "cpu" else _LOOK_STEPS
    verify_steps = max(1, round(per_epoch * recipe.verify_every))
    quantized_from = steps - recipe.qat_epochs * per_epoch if recipe.qat else steps
    if state.step > quantized_from:
        enable_fake_quant(state)
    if (state.step % verify_steps == 0 or state.step == steps) and all(
        point["step"] != state.step for point in state.verification
    ):  # at the start, and where the training ended before a verification did
        verify_student(state, data.sets)
        write_curves(0.0)
    if stops_early(state):
        return
    started = saved = point_at = time.monotonic()
    targets = None if data.embeddings is None else data.embeddings.of_batch
    source = copied_ahead(data.images, data.split, targets, state.ranks.device)
    for batch in track(source, "training", steps - state.step):
        lr = learning_rate(recipe, state.step, steps, per_epoch)
        if state.step == quantized_from:
            enable_fake_quant(state, batch.pixels)
        try:
            means = train_step(state, batch, lr)
            state.step += 1
            for name, value in means.items():
                state.sums[name] = state.sums.get(name, 0.0) + value / interval
            verifies = state.step % verify_steps == 0 or state.step == steps
            at_point = state.step % interval == 0
            looks = verifies or state.step % look_steps == 0
            if at_point or looks:
                check_finite_steps(state, lr)
        except GateFailed as error:
            if state.ranks.device.type != "cpu":  # found some steps later
                raise
            raise _with_batch_saved(error, batch, place.folder, state.ranks) from error
        now = time.monotonic()
        if at_point:
            sums = {name: float(value) for name, value in state.sums.items()}
            state.curve.append({"step": state.step, "lr": lr, **sums})
            state.sums = {}
            write_curves(now - point_at)
            point_at = now
        if looks:  # before a verification, which may take longer than a signal leaves time
            due, signal = _agreed(now - saved, stop, state)
            if due or (signal and state.step < steps):
                state.seconds, started, saved = state.seconds + now - started, now, now
                save_checkpoint(place.folder, state, place.key)
                point_at += time.monotonic() - now
            if signal and state.step < steps:
                raise Interrupted(
                    signal, f"the training is kept up to step {state.step:,} of {steps:,}"
                )
        if verifies:
            now = time.monotonic()
            verify_student(state, data.sets)
            write_curves(0.0)
            point_at += time.monotonic() - now
            if stops_early(state):
                logger.info("ended early at step %d of %d", state.step, steps)
                break
    state.seconds += time.monotonic() - started
    if not state.best:
        check_finite_weights(state)


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
    error: GateFailed, batch: DeviceBatch, folder: Path, ranks: Ranks
) -> GateFailed:
    """The same error, after writing the batch that caused it to disk."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"bad-batch-{ranks.rank}.npz"
    with replace_atomic(path, private=True) as stream:
        np.savez(stream, pixels=batch.pixels.numpy(), labels=batch.labels.numpy())
    return GateFailed(error.message, f"{error.hint}; the batch is kept in {path}")
