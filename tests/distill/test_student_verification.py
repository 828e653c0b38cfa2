"""Verification on the way: names of figures, the best weights, an early end, the curves' file."""

import csv
import logging
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fr_edge.distill.distributed import Ranks
from fr_edge.distill.recipe import Recipe
from fr_edge.distill.student_verification import (
    curve_writer,
    figure_names,
    open_verification_sets,
    verify_student,
)
from fr_edge.distill.train import distill_student
from fr_edge.distill.train_step import TrainState, start_training
from fr_edge.distill.weights import load_network
from fr_edge.errors import DataError, UsageError
from fr_edge.faces.ijb import Ijb
from fr_edge.faces.pairs import Pairs
from fr_edge.faces.sources import Faces
from fr_edge.metrics.accuracy import pair_accuracy
from fr_edge.metrics.verification import normalise


def some_pairs(faces: Faces, impostors: int) -> Pairs:
    """All genuine pairs of neighbours, and impostor pairs as often as needed."""
    labels = np.asarray(faces.labels)
    first = np.flatnonzero(labels[1:] == labels[:-1])
    a = np.arange(impostors) % len(labels)
    b = (a + 5 + np.arange(impostors) // len(labels) % 30) % len(labels)
    same = np.r_[np.ones(len(first), bool), labels[a] == labels[b]]
    fold = np.arange(len(same)) % 2
    return Pairs(faces, fold, np.r_[first, a], np.r_[first + 1, b], same)


def test_figures_are_named_by_what_the_sets_can_show(faces: Faces) -> None:
    few, many = some_pairs(faces, 100), some_pairs(faces, 2000)
    assert figure_names({"few": few}) == ["accuracy"]
    assert figure_names({"many": many}) == ["accuracy", "tar@1e-3"]
    both = {"few": few, "many": many}
    plain = ["accuracy", "tar@1e-3"]
    assert figure_names(both) == [*plain, "accuracy_few", "accuracy_many", "tar@1e-3_many"]


def test_figures_are_those_of_the_embeddings(recipe: Recipe, faces: Faces) -> None:
    recipe = replace(recipe, losses=("arcface",))
    state = start_training(recipe, 10, 16, Ranks())
    sets = {"few": some_pairs(faces, 100), "many": some_pairs(faces, 2000)}
    figures = verify_student(state, sets)
    assert figures is not None
    assert list(figures) == figure_names(sets)
    assert state.verification == [{"step": 0, **figures}]
    pixels = torch.from_numpy(np.stack([faces.read(i) for i in range(len(faces))]))
    with torch.no_grad():
        both = [state.student.eval().embed(view) for view in (pixels, pixels.flip(2))]
    rows = sum(both).numpy()
    wanted = {name: pair_accuracy(rows, each).mean for name, each in sets.items()}
    assert figures["accuracy_few"] == pytest.approx(wanted["few"], abs=0.02)
    assert figures["accuracy"] == pytest.approx(sum(wanted.values()) / 2, abs=0.02)
    # By definition: the share of genuine pairs above the third highest of 2,000 impostors.
    many = sets["many"]
    unit = normalise(rows)
    scores = (unit[many.first] * unit[many.second]).sum(1)
    impostors = np.sort(scores[~many.same])
    count = int(1e-3 * len(impostors))
    tar = (scores[many.same] > impostors[-count - 1]).mean()
    assert figures["tar@1e-3"] == pytest.approx(tar, abs=0.05)


def test_the_best_weights_are_kept_and_no_progress_ends_the_training(
    recipe: Recipe, faces: Faces, tmp_path: Path
) -> None:
    """At this rate only BatchNorm's statistics change, and with a momentum of theirs of a tenth."""
    still = replace(recipe, losses=("arcface",), lr=1e-8, epochs=9, csv=str(tmp_path / "curve.csv"))
    still = replace(still, best="accuracy", patience=1)
    result = distill_student(still, faces, tmp_path / "out")
    points = result.report.verification
    values = [point["accuracy"] for point in points]
    best = int(np.argmax(values))
    assert len(points) == best + 2 < 10
    assert result.report.steps == points[-1]["step"]
    assert result.report.accuracy == max(values)
    assert result.report.best == points[best]
    weights = load_network(result.bundle.file("model.pt"))[0].state_dict()
    seen = {v for name, v in weights.items() if name.endswith("num_batches_tracked")}
    assert {int(v) for v in seen} == {int(points[best]["step"])}
    with (tmp_path / "curve.csv").open(newline="") as stream:
        rows = {int(row["step"]): row for row in csv.DictReader(stream)}
    assert float(rows[int(points[1]["step"])]["accuracy"]) == values[1]
    assert {float(r["loss"]) for r in rows.values() if r["loss"]} == {
        point["loss"] for point in result.report.curve
    }


def test_what_the_sets_do_not_give_is_refused(recipe: Recipe, faces: Faces) -> None:
    picks = np.arange(20)
    wrong = replace(recipe, best="tar@1e-4")
    with pytest.raises(UsageError, match="best is 'tar@1e-4'") as caught:
        open_verification_sets(wrong, faces, picks)
    assert "accuracy" in caught.value.hint
    with pytest.raises(UsageError, match="does not give"):
        open_verification_sets(replace(recipe, patience=2), faces, picks[:0])
    with pytest.raises(DataError):
        open_verification_sets(replace(recipe, verify_pairs=("none.csv",)), faces, picks)
    with pytest.raises(UsageError, match="one name"):
        open_verification_sets(replace(recipe, verify_pairs=("a.csv", "b/a.bin")), faces, picks)


def test_ijb_gives_tar_alone(recipe: Recipe, faces: Faces, ijb_folder: Path) -> None:
    named = replace(recipe, losses=("arcface",), verify_pairs=(str(ijb_folder),))
    (ijb,) = open_verification_sets(named, faces, np.arange(0)).values()
    assert isinstance(ijb, Ijb)
    assert figure_names({"ijb": ijb}) == []  # too few impostors
    often = 1 + 1000 // int((~ijb.same).sum())
    ijb = replace(
        ijb,
        first=np.tile(ijb.first, often),
        second=np.tile(ijb.second, often),
        same=np.tile(ijb.same, often),
    )
    state = start_training(named, 10, 16, Ranks())
    figures = verify_student(state, {"ijb": ijb})
    assert figures is not None
    assert list(figures) == ["tar@1e-3"]
    assert 0 <= figures["tar@1e-3"] <= 1


def test_an_image_and_its_mirror_count_together_and_are_read_once(
    recipe: Recipe, faces: Faces, ijb_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the published figures of pair lists, and of IJB with F1."""
    recipe = replace(recipe, losses=("arcface",), verify_pairs=(str(ijb_folder),), amp="off")
    (ijb,) = open_verification_sets(recipe, faces, np.arange(0)).values()
    assert isinstance(ijb, Ijb)
    read: list[int] = []
    given: list[Any] = []

    def watched(source: Faces) -> Faces:
        return source.changed(lambda index: read.append(index) or source.read(index))

    def kept(rows: Any, *_: Any) -> Any:
        given.append(np.asarray(rows))
        return SimpleNamespace(mean=0.5)

    def pooled(batches: Any, *_: Any) -> Any:
        (rows,) = batches
        return kept(rows), np.arange(0)

    module = "fr_edge.distill.student_verification"
    monkeypatch.setattr(f"{module}.pair_accuracy", kept)
    monkeypatch.setattr(f"{module}.pool_templates", pooled)
    monkeypatch.setattr(f"{module}.template_cosines", lambda *_: None)
    monkeypatch.setattr(f"{module}.nearest_tar", lambda *_: [0.5, 0.5])
    state = start_training(recipe, 10, 16, Ranks())
    pairs = some_pairs(faces, 100)
    sets = {"a": replace(pairs, faces=watched(faces)), "b": replace(ijb, faces=watched(ijb.faces))}
    verify_student(state, sets)
    assert read == [*range(len(faces)), *range(len(ijb.faces))]
    for rows, source in zip(given, (faces, ijb.faces), strict=True):
        pixels = torch.from_numpy(np.stack([source.read(i) for i in range(len(source))]))
        with torch.no_grad():
            both = [state.student.eval().embed(view).numpy() for view in (pixels, pixels.flip(2))]
        size = np.linalg.norm(rows)
        assert np.linalg.norm(rows - both[0] - both[1]) < 1e-3 * size
        assert np.linalg.norm(rows - 2 * both[0]) > 0.1 * size


def curve_state(recipe: Recipe, **changes: Any) -> TrainState:
    return start_training(
        replace(recipe, losses=("arcface",), amp="off", **changes), 10, 16, Ranks()
    )


def test_the_log_shows_points_now_and_then(
    recipe: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    """A hundredth of the steps and ten seconds of training lie between two lines, or more."""
    caplog.set_level(logging.INFO, "fr_edge")
    state = curve_state(recipe, workers=3)
    with curve_writer(state, 1000) as write:
        for step in range(5, 1001, 5):
            state.step = step
            state.curve.append({"step": step, "lr": 0.1, "loss": 2.5})
            write(8.0)
            state.verification.append({"step": step, "accuracy": 0.9})
            write(0.0)
    first, *lines = [record.getMessage() for record in caplog.records]
    place = "ranks 1, batch 8 a rank, workers 3 a rank"
    assert first == f"training from step 0 of 1,000: CPU, float32, {place}"
    assert len(lines) == 100
    # 10 steps of 8 images in 16 s.
    assert lines[0] == "step 10 of 1,000: lr 0.1, loss 2.5, 5 images/s"
    assert lines[-1].startswith("step 1,000 of 1,000")
    caplog.clear()
    state = curve_state(recipe)
    with curve_writer(state, 4) as write:
        for step in range(1, 5):
            state.step = step
            state.curve.append({"step": step, "lr": 0.1})
            write(1.0)
    assert [record.getMessage() for record in caplog.records][1:] == [
        "step 4 of 4: lr 0.1, 8 images/s"
    ]
    caplog.clear()
    state.ranks = Ranks(1, 2)
    with curve_writer(state, 4) as write:
        write(1.0)
    assert not caplog.records


def test_verifications_are_logged(
    recipe: Recipe, faces: Faces, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fr_edge")
    state = curve_state(recipe)
    state.step = 1200
    figures = verify_student(state, {"a": some_pairs(faces, 100), "b": some_pairs(faces, 2000)})
    assert figures is not None
    listed = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
    assert [r.getMessage() for r in caplog.records] == [f"verification after step 1,200: {listed}"]


def test_curves_that_cannot_be_written_do_not_end_the_training(
    recipe: Recipe,
    faces: Faces,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """TensorBoard's thread ends with its first error; what it missed comes in its next file."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    files: list[list[int]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            if not files:
                files.append([])
                full()
            files.append([])

        def add_scalar(self, title: str, value: float, step: int) -> None:
            if title == "loss":
                if step == 2 and len(files) == 2:
                    full()
                files[-1].append(step)

        close = full

    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer)
    )
    monkeypatch.setattr("fr_edge.distill.student_verification.write_atomic", full)
    recipe = replace(recipe, losses=("arcface",), verify_identities=0)
    recipe = replace(recipe, csv=str(tmp_path / "a.csv"), tensorboard=str(tmp_path / "boards"))
    monkeypatch.setattr("fr_edge.distill.training_report.importlib.util.find_spec", lambda _: True)
    result = distill_student(recipe, faces, tmp_path / "out")
    steps = [point["step"] for point in result.report.curve]
    assert steps == list(range(1, result.report.steps + 1))
    assert files == [[], [1], steps[1:]]
    told = [r.getMessage() for r in caplog.records if "curves cannot be written" in r.getMessage()]
    assert sorted(text.partition(":")[0] for text in told) == ["csv", "tensorboard"]
