"""Verification on the way: names of figures, the best weights, an early end, the curves' file."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fr_edge.distill.distributed import Ranks
from fr_edge.distill.recipe import Recipe
from fr_edge.distill.student_verification import (
    figure_names,
    open_verification_sets,
    verify_student,
)
from fr_edge.distill.train import distill_student
from fr_edge.distill.train_step import start_training
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
        rows = state.student.eval().embed(pixels).numpy()
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
