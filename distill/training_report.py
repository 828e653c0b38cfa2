"""How a training went, whether a bundle holds the one that is asked for, and what no training can do."""

import importlib.util
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..bundle.bundle import Transaction, open_bundle
from ..bundle.derived import stale_reports
from ..bundle.manifest import MANIFEST, Bundle
from ..documents import encode_json, read_json, to_builtins
from ..errors import DataError, MachineError, UsageError
from ..faces.sources import Faces, portable_name
from ..files import sha256, write_atomic
from .dataset import IdentitySplit
from .fake_quant import split_scales
from .recipe import Recipe
from .student import STUDENT_SPEC
from .student_verification import VerificationSet, best_point, sets_digest
from .teacher import Teacher
from .train_step import TrainState, student_weights
from .weights import save_network

_REPORT = "reports/training.json"
_COMPLETE = "complete.json"  # file of a checkpoint: the sha256 of the model.pt that it led to
# Recipe keys that change no step: they may differ between a training and its resumption. What `exclude`
# leaves is in the data's digest.
_MAY_CHANGE = (
    "exclude",
    "compile",
    "cache",
    "tensorboard",
    "csv",
    "data_report",
    "workers",
    "memory_mb",
    "checkpoint_s",
    "bad_images",
)


@dataclass(frozen=True)
class TrainingReport:
    """How a training went: `reports/training.json`.

    Attributes:
        recipe: Its options.
        faces: The source of faces.
        device: torch's name of the device.
        ranks: Number of processes.
        precision: Of the student: float32, bfloat16 or float16.
        images: Number of images trained on.
        identities: Number of people trained on.
        steps: Number of optimizer steps.
        seconds: Training time.
        images_per_s: Training speed.
        accuracy: Of the weights that are kept, on pairs of other people, a fraction; None where there
            were none.
        untrained_accuracy: The same before the first step.
        teacher_accuracy: The teacher's on the same pairs.
        best: The best verification; by the recipe's `best`, else by accuracy.
        curve: Step, learning rate, and the means of loss and head's statistics since the last point.
        verification: Step and figures of each verification, as `student_verification` names them.
    """

    recipe: Recipe
    faces: str
    device: str
    ranks: int
    precision: str
    images: int
    identities: int
    steps: int
    seconds: float
    images_per_s: float
    accuracy: float | None
    untrained_accuracy: float | None
    teacher_accuracy: float | None
    best: Mapping[str, float] | None
    curve: list[dict[str, float]]
    verification: list[dict[str, float]]


def training_key(
    recipe: Recipe, teacher: Teacher | None, data: str, sets: Mapping[str, VerificationSet]
) -> dict[str, Any]:
    """What two trainings have in common when one is the continuation of the other.

    Args:
        recipe: The training's options; those that do not change the result are left out.
        teacher: The teacher, where the recipe needs one.
        data: What `teacher_cache.data_digest` gives.
        sets: What the recipe verifies on.
    """
    init = Path(recipe.init)
    init = init / "model.pt" if init.is_dir() else init
    contents = {  # of what the recipe names by paths
        "init": sha256(init) if recipe.init and init.is_file() else "",
        "verify_pairs": sets_digest(sets) if recipe.verify_pairs else "",
    }
    return {
        **{key: value for key, value in asdict(recipe).items() if key not in _MAY_CHANGE},
        "teacher": teacher.sha256 if teacher else "",
        "data": data,
        "contents": contents,
    }


def history_options(
    recipe: Recipe, faces: Faces, teacher: Teacher | None, data: str
) -> dict[str, Any]:
    """What the bundle's history records of a training: no path of this machine.

    Args:
        recipe: The training's options.
        faces: The source of training faces.
        teacher: The teacher, where the recipe needs one.
        data: What `teacher_cache.data_digest` gives.
    """
    where = None if teacher is None else Path(teacher.where).name
    return {
        "recipe": to_builtins(_portable(recipe)),
        "faces": portable_name(faces.where),
        "teacher": None if teacher is None else {"file": where, "sha256": teacher.sha256},
        "data": data,
    }


def _portable(recipe: Recipe) -> Recipe:
    """The recipe without folders of this machine."""
    pairs = tuple(Path(name).name for name in recipe.verify_pairs)
    init, exclude = (Path(text).name if text else "" for text in (recipe.init, recipe.exclude))
    return replace(
        recipe,
        cache="",
        tensorboard="",
        csv="",
        data_report="",
        exclude=exclude,
        verify_pairs=pairs,
        init=init,
    )


def finished_training(out: Path, options: Mapping[str, Any]) -> TrainingReport | None:
    """The report of the training that a bundle holds already, if it is the one that is asked for.

    Args:
        out: The bundle's folder; it may not exist.
        options: What `history_options` gives for the training that is asked for.

    Returns:
        None where the folder holds no network yet.

    Raises:
        UsageError: The bundle holds another training's network, or one that was not trained here.
    """
    if not (out / MANIFEST).exists():
        return None
    bundle = open_bundle(out)
    networks = [name for name in ("model.pt", "model.onnx") if name in bundle]
    if not networks:
        return None
    entry: Mapping[str, Any] = next(
        (e for e in reversed(bundle.history) if e.get("stage") == "distill"), {}
    )
    known = _REPORT in bundle and "model.pt" in bundle and _REPORT not in stale_reports(bundle)
    if not known or not entry:
        raise UsageError(
            f"{out} holds a network that no training in this bundle made ({networks[0]})",
            "--force replaces it, or choose another --out",
        )
    if difference := _difference(entry.get("options", {}), options):
        raise UsageError(
            f"{out} holds a finished training with {difference}",
            "--force trains anew, or choose another --out",
        )
    bundle.file("model.pt")  # its bytes are what was trained
    path = bundle.file(_REPORT)
    return read_json(path, TrainingReport)


def _difference(recorded: Any, asked: Mapping[str, Any]) -> str:
    """The first of the options that decide the result in which two trainings differ, in words."""
    before, now = _decisive(recorded), _decisive(asked)
    for name, value in now.items():
        if name in before and before[name] != value:
            return f"{name} = {before[name]!r}; this one has {value!r}"
    return ""


def _decisive(options: Any) -> dict[str, Any]:
    """Options as written, by name; an earlier fr-edge recorded less."""
    if not isinstance(options, Mapping):
        return {}
    recipe, teacher = options.get("recipe"), options.get("teacher")
    values = dict(recipe) if isinstance(recipe, Mapping) else {}
    pairs = values.get("verify_pairs") or []
    pairs = [pairs] if isinstance(pairs, str) else pairs
    values["verify_pairs"] = [Path(str(name)).name for name in pairs]
    values = {name: value for name, value in values.items() if name not in _MAY_CHANGE}
    if "teacher" in options:
        values["teacher"] = teacher.get("sha256") if isinstance(teacher, Mapping) else None
    if "data" in options:
        values["data"] = options["data"]
    return values


def remove_complete(folder: Path, bundle: Bundle | None) -> None:
    """Remove a checkpoint whose training is in the bundle: it was killed while it cleaned up.

    Args:
        folder: Of the checkpoint; it may not exist.
        bundle: The bundle, if there is one.
    """
    try:
        trained = read_json(folder / _COMPLETE, str)
    except DataError:
        return
    model = None if bundle is None else bundle.files.get("model.pt")
    if model is not None and model.sha256 == trained:
        shutil.rmtree(folder, ignore_errors=True)


def make_training_report(
    state: TrainState, faces: Faces, split: IdentitySplit, teacher_accuracy: float | None
) -> TrainingReport:
    """The report of a training that has ended.

    Args:
        state: The training.
        faces: The source of training faces.
        split: Which of them were trained on.
        teacher_accuracy: The teacher's on the pairs of the verification; None without.
    """
    points, best = state.verification, best_point(state)
    kept = best if state.best else points[-1] if points else None
    return TrainingReport(
        recipe=_portable(state.recipe),
        faces=portable_name(faces.where),
        device=str(state.ranks.device),
        ranks=state.ranks.size,
        precision=str(state.amp or torch.float32).removeprefix("torch."),
        images=len(split.kept),
        identities=split.classes,
        steps=state.step,
        seconds=state.seconds,
        images_per_s=state.step * state.recipe.batch / max(state.seconds, 1e-9),
        accuracy=None if kept is None else kept.get("accuracy"),
        untrained_accuracy=points[0].get("accuracy") if points else None,
        teacher_accuracy=teacher_accuracy,
        best=best,
        curve=state.curve,
        verification=points,
    )


def write_student(
    change: Transaction, state: TrainState, report: TrainingReport, checkpoint: Path
) -> None:
    """Stage the trained network and its report, and mark the checkpoint that led to it.

    Args:
        change: The change of the bundle.
        state: The training.
        report: How it went.
        checkpoint: The checkpoint's folder; it may not exist.
    """
    change.spec, change.embedding_dim = STUDENT_SPEC, state.dim
    names = ("images", "identities", "accuracy", "teacher_accuracy", "seconds")
    change.summary = {name: getattr(report, name) for name in names}
    change.remove("model.onnx")
    weights, ranges = split_scales(state.best or student_weights(state))
    path = change.path("model.pt", "weights")
    save_network(path, weights, state.network_name, state.dim, ranges)
    change.path(_REPORT, "report").write_bytes(encode_json(report))
    if checkpoint.is_dir():
        write_atomic(checkpoint / _COMPLETE, encode_json(sha256(path)))


def check_norm_batch(part: int, norm_batch: int) -> None:
    """Refuse parts of unequal size, and of one image, which BatchNorm cannot train on.

    Args:
        part: Images that a rank has at a time.
        norm_batch: Of the recipe.

    Raises:
        UsageError: The parts are such.
    """
    if part < 2:
        raise UsageError(
            "a rank has 1 image at a time, and BatchNorm needs 2",
            "--set batch=N with more images, or fewer ranks or accumulated parts",
        )
    if norm_batch == 1 or (0 < norm_batch < part and part % norm_batch):
        sizes = [size for size in range(2, min(norm_batch, part) + 1) if part % size == 0]
        other = f"norm_batch={max(sizes)}" if sizes else "norm_batch=0"
        raise UsageError(
            f"the {part} images that a rank has at a time do not split into equal parts of 2 or more"
            f" for norm_batch {norm_batch}",
            f"--set {other}, or another batch",
        )


def check_outputs(recipe: Recipe) -> None:
    """Refuse files and folders that could not be written, before the hours in which they would be.

    Args:
        recipe: Its `csv`, `tensorboard`, `cache` and `data_report`.

    Raises:
        UsageError: One lies where it cannot.
        MachineError: One cannot be written to, or tensorboard is not installed.
    """
    if recipe.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise MachineError(
            "scalars need tensorboard", "pip install tensorboard, or --set tensorboard="
        )
    if recipe.csv and not Path(recipe.csv).parent.is_dir():
        raise UsageError(
            f"csv: there is no folder {Path(recipe.csv).parent}", "make it, or --set csv=FILE"
        )
    if recipe.csv and Path(recipe.csv).is_dir():
        raise UsageError(f"csv: {recipe.csv} is a folder", "--set csv=FILE")
    for key in ("cache", "data_report", "tensorboard"):
        if text := getattr(recipe, key):
            _check_folder(key, Path(text))


def _check_folder(key: str, folder: Path) -> None:
    """Refuse a folder that cannot be made or written to."""
    try:
        place = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    except OSError as error:
        raise UsageError(f"{key}: {error.strerror}: {folder}", f"--set {key}=FOLDER") from error
    if not place.is_dir():
        raise UsageError(f"{key}: {place} is not a folder", f"--set {key}=FOLDER")
    if not os.access(place, os.W_OK | os.X_OK):
        raise MachineError(f"{key}: {place} cannot be written to", f"--set {key}=FOLDER")
