"""A student on the way: its verification, on several sets and by all ranks, and its curves.

A set is a pair list, an insightface `.bin` file or a folder of IJB. Each rank embeds its share of the
faces, and all of them compute the same figures. With several sets the plain name of a figure is its
mean over the sets that have it, and the name with "_SET" is one set's. As in published figures a face
counts by the sum of its embedding and its mirror image's:

- "accuracy": over the folds of a pair list.
- "tar@1e-3", "tar@1e-4": TAR at FAR, of sets with enough impostor pairs to show it. IJB's is that of
  the nearest point of the curve, as its published scripts take it (N1D1F1).
"""

import copy
import csv
import hashlib
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..arrays import F32, I64, U8
from ..errors import FacesError, UsageError
from ..faces.ijb import Ijb, is_ijb, pool_templates, read_ijb, template_cosines
from ..faces.pairs import Pairs, read_pairs
from ..faces.sources import Faces
from ..files import write_atomic
from ..metrics.accuracy import nearest_tar, pair_accuracy
from ..metrics.protocols import draw_pairs
from ..metrics.verification import ScoreList, allowed_impostors, cosines, far_name, tar_at_far
from .distributed import Ranks, to_device
from .recipe import Recipe
from .student import average_statistics
from .teacher import Teacher
from .train_step import TrainState, embed_pixels, student_weights

logger = logging.getLogger(__name__)

_BATCH = 128  # faces
_FARS = (1e-3, 1e-4)
_ACCURACY = "accuracy"
_LOG_LINES = 100  # of the training curve in the log, at most
_LOG_S = 10.0  # seconds of training between two of them, at least

VerificationSet = Pairs | Ijb
WriteCurves = Callable[
    [float], None
]  # for a new point, with the seconds of training since the last


def open_verification_sets(
    recipe: Recipe, faces: Faces, verification: I64
) -> dict[str, VerificationSet]:
    """The sets to verify on, by name.

    Args:
        recipe: Its `verify_pairs`, `best` and `patience`.
        faces: The source of training faces.
        verification: Indices of those that are kept apart, `(M,) int64`, for a recipe that names no
            sets.

    Returns:
        Empty where there are too few people or images.

    Raises:
        FacesError: A set cannot be read.
        UsageError: Two sets have one name, or the sets do not give the figure that `best` names.
    """
    paths = [Path(text) for text in recipe.verify_pairs]
    named = {path.name if path.is_dir() else path.stem: path for path in paths}
    if len(named) < len(paths):
        raise UsageError("two sets of verify_pairs have one name", "rename one of them")
    sets: dict[str, VerificationSet] = {
        name: read_ijb(path) if path.is_dir() and is_ijb(path) else read_pairs(path)
        for name, path in named.items()
    }
    if not recipe.verify_pairs:
        others = faces.subset(verification)
        try:
            sets = {"pairs": Pairs(others, **vars(draw_pairs(others.labels)))}
        except FacesError:
            sets = {}
    figure, names = recipe.best or (_ACCURACY if recipe.patience else ""), figure_names(sets)
    if figure and figure not in names:
        raise UsageError(
            f"recipe: best is {figure!r}, which the verification does not give",
            f"it gives {', '.join(names)}" if names else "name sets with --set verify_pairs=FILE",
        )
    return sets


def sets_digest(sets: Mapping[str, VerificationSet]) -> str:
    """sha256 of names, images' names and pairs, wherever the sets lie.

    Args:
        sets: By name.
    """
    digest = hashlib.sha256()
    for name, each in sets.items():
        digest.update(repr((name, *each.faces.keys)).encode())
        for values in vars(each).values():
            if isinstance(values, np.ndarray):
                digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def figure_names(sets: Mapping[str, VerificationSet]) -> list[str]:
    """Names of the figures that sets will give.

    Args:
        sets: By name.
    """
    own = {name: list(_figures_of(each)) for name, each in sets.items()}
    plain = list(dict.fromkeys(figure for figures in own.values() for figure in figures))
    if len(sets) < 2:
        return plain
    return plain + [f"{figure}_{name}" for name, figures in own.items() for figure in figures]


def verify_student(
    state: TrainState, sets: Mapping[str, VerificationSet]
) -> dict[str, float] | None:
    """Verify the weights that would be saved now, and keep them where they are the best.

    Args:
        state: The training; every rank makes this call, and has the mean of all ranks' running
            statistics afterwards, with sets or without. The figures become its last verification.
        sets: By name.

    Returns:
        Figure -> fraction; None without sets.
    """
    average_statistics(state.network, state.ranks, state.averaged)
    if not sets:
        return None
    student = state.student
    if state.averaged:
        student = copy.deepcopy(student)
        student.network.load_state_dict(state.averaged)
    student.eval()

    def embed(part: U8) -> F32:
        with torch.no_grad():
            pixels = to_device(part, state.ranks.device)
            rows: F32 = embed_pixels(state, student.embed, pixels).cpu().numpy()
        return rows

    figures = _combined({n: _measure(embed, s, state.dim, state.ranks) for n, s in sets.items()})
    name = state.recipe.best
    if name and all(figures[name] > point[name] for point in state.verification):
        state.best = {key: value.clone() for key, value in student_weights(state).items()}
    state.verification.append({"step": state.step, **figures})
    if state.ranks.rank == 0:
        listed = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
        logger.info("verification after step %s: %s", f"{state.step:,}", listed)
    return figures


def best_point(state: TrainState) -> dict[str, float] | None:
    """The first verification with the best figure; None without verifications.

    Args:
        state: The training; by its recipe's `best`, else by accuracy.
    """
    figure = state.recipe.best or _ACCURACY
    points = [point for point in state.verification if figure in point]
    return max(points, key=lambda point: point[figure], default=None)


def stops_early(state: TrainState) -> bool:
    """Whether so many verifications as `patience` came after the best one.

    Args:
        state: The training.
    """
    best = best_point(state)
    if not state.recipe.patience or best is None:
        return False
    return len(state.verification) - state.verification.index(best) > state.recipe.patience


def teacher_accuracy(
    teacher: Teacher, sets: Mapping[str, VerificationSet], ranks: Ranks
) -> float | None:
    """The teacher's accuracy on the same sets.

    Args:
        teacher: The teacher.
        sets: By name.
        ranks: The processes; every one makes this call.

    Returns:
        The mean over the sets of pairs; None where there are none.
    """
    sets = {name: each for name, each in sets.items() if isinstance(each, Pairs)}
    figures = _combined(
        {n: _measure(teacher.embed, s, teacher.dim, ranks) for n, s in sets.items()}
    )
    return figures.get(_ACCURACY)


def _figures_of(each: VerificationSet) -> Iterable[str]:
    if isinstance(each, Pairs):
        yield _ACCURACY
    impostors = int((~each.same).sum())
    for far in _FARS:
        if each.same.any() and allowed_impostors(far, impostors) >= 1:
            yield f"tar@{far_name(far)}"


def _measure(
    embed: Callable[[U8], F32], each: VerificationSet, dim: int, ranks: Ranks
) -> dict[str, float]:
    rows = _embed_all(embed, each.faces, dim, ranks)
    if isinstance(each, Ijb):
        templates, numbers = pool_templates([rows], each)
        values = nearest_tar(template_cosines(templates, numbers, each), each.same, _FARS)
        tars = dict(zip(_FARS, values, strict=True))
        return {name: float(tars[_far(name)]) for name in _figures_of(each)}
    scores = cosines(rows[each.first], rows[each.second])
    listed = ScoreList(scores[each.same], scores[~each.same])
    figures = {_ACCURACY: pair_accuracy(rows, each).mean}
    for name in _figures_of(each):
        if name != _ACCURACY and (tar := tar_at_far(listed, _far(name))) is not None:
            figures[name] = tar
    return figures


def _far(figure: str) -> float:
    return float(figure.removeprefix("tar@"))


def _embed_all(embed: Callable[[U8], F32], faces: Faces, dim: int, ranks: Ranks) -> F32:
    """Sums of each face's embedding and its mirror image's, `(N, dim)`, on every rank; each embeds its
    share."""
    first, last = ranks.shard(len(faces))
    parts = faces.batches(_BATCH, range(first, last))
    own = [embed(part) + embed(np.ascontiguousarray(part[:, :, ::-1])) for part in parts]
    rows = np.concatenate([np.zeros((0, dim), np.float32), *own])
    if ranks.size == 1:
        return rows
    largest = -(-len(faces) // ranks.size)
    padded = torch.zeros(largest, dim, device=ranks.device)
    padded[: len(rows)] = torch.from_numpy(rows)
    every = ranks.gather(padded[None]).cpu().numpy()
    borders = [Ranks(rank, ranks.size).shard(len(faces)) for rank in range(ranks.size)]
    out: F32 = np.concatenate([every[r, : stop - start] for r, (start, stop) in enumerate(borders)])
    return out


def _combined(by_set: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Figures under their plain names, and of several sets those of each."""
    names = dict.fromkeys(name for figures in by_set.values() for name in figures)
    out = {}
    for name in names:
        values = [figures[name] for figures in by_set.values() if name in figures]
        out[name] = sum(values) / len(values)
    if len(by_set) > 1:
        out |= {
            f"{name}_{s}": value for s, figures in by_set.items() for name, value in figures.items()
        }
    return out


@contextmanager
def curve_writer(state: TrainState, steps: int) -> Iterator[WriteCurves]:
    """Log the curves, and write them where the recipe asks for it: a folder of TensorBoard, a CSV file.

    A write that fails is a warning, once: a checkpoint holds all points.

    Args:
        state: The training. TensorBoard hides what an earlier, killed training wrote after its step.
        steps: Of the whole training.

    Yields:
        A function that logs and writes the points that are new; it does nothing on the other ranks.
    """
    recipe = state.recipe
    if state.ranks.rank:
        yield lambda seconds: None
        return
    writes: dict[str, Callable[[], None]] = {}
    if recipe.csv:
        writes["csv"] = partial(_write_csv, Path(recipe.csv), state)
    closes: dict[str, Callable[[], None]] = {}
    if recipe.tensorboard:
        writes["tensorboard"], closes["tensorboard"] = _scalar_writer(state)
    _log_start(state, steps)
    log, failed = _curve_log(state, steps), set()

    def attempt(calls: Mapping[str, Callable[[], None]]) -> None:
        for key, call in calls.items():
            try:
                call()
            except Exception as error:  # TensorBoard's file systems have errors of their own
                if key not in failed:
                    logger.warning("%s: the curves cannot be written: %s", key, error)
                failed.add(key)

    def write(seconds: float) -> None:
        log(seconds)
        attempt(writes)

    try:
        yield write
    finally:
        attempt(closes)


def _log_start(state: TrainState, steps: int) -> None:
    """What computes on what."""
    recipe, ranks = state.recipe, state.ranks
    kind = ranks.device.type
    device = torch.cuda.get_device_name(ranks.device) if kind == "cuda" else kind.upper()
    precision = str(state.amp or torch.float32).removeprefix("torch.")
    logger.info(
        "training from step %s of %s: %s, %s, ranks %d, batch %d a rank, workers %d a rank",
        *(f"{state.step:,}", f"{steps:,}", device, precision),
        *(ranks.size, recipe.batch // ranks.size, recipe.workers),
    )


def _curve_log(state: TrainState, steps: int) -> WriteCurves:
    """A function that logs the curve's new point, unless the last one was logged a moment ago."""
    points, since, trained_s = len(state.curve), state.step, 0.0

    def log(seconds: float) -> None:
        nonlocal points, since, trained_s
        if len(state.curve) == points:  # called for a verification
            return
        points, trained_s = len(state.curve), trained_s + seconds
        is_due = state.step - since >= steps / _LOG_LINES and trained_s >= _LOG_S
        if not is_due and state.step < steps:
            return
        speed = (state.step - since) * state.recipe.batch / max(trained_s, 1e-9)
        means = ", ".join(f"{n} {v:.4g}" for n, v in state.curve[-1].items() if n != "step")
        place = f"step {state.step:,} of {steps:,}"
        logger.info("%s: %s, %s images/s", place, means, f"{speed:,.0f}")
        since, trained_s = state.step, 0.0

    return log


def _scalar_writer(state: TrainState) -> tuple[Callable[[], None], Callable[[], None]]:
    """Functions that write TensorBoard's new scalars, and close its file."""
    from torch.utils.tensorboard import SummaryWriter

    done, opened = [len(state.curve), len(state.verification)], list[Any]()
    hidden_from = state.step + 1 if state.step else 0

    def write() -> None:
        if not opened:
            opened.append(SummaryWriter(state.recipe.tensorboard, purge_step=hidden_from))
        try:
            for number, points in enumerate((state.curve, state.verification)):
                for point in points[done[number] :]:
                    for name, value in point.items():
                        if name != "step":
                            title = f"verification/{name}" if number else name
                            opened[0].add_scalar(title, value, int(point["step"]))
                done[number] = len(points)
        except Exception:  # its thread has ended; the next point gets another file
            opened.clear()
            raise

    return write, lambda: [each.close() for each in opened].clear()


def _write_csv(path: Path, state: TrainState) -> None:
    """All points so far, a row a step; cells are empty where a step has no such figure."""
    rows: dict[float, dict[str, float]] = {}
    for point in [*state.curve, *state.verification]:
        rows.setdefault(point["step"], {}).update(point)
    names = dict.fromkeys(name for point in rows.values() for name in point)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(names))
    writer.writeheader()
    writer.writerows(rows[step] for step in sorted(rows))
    write_atomic(path, text.getvalue().encode())
