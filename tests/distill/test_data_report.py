"""Suspects among the training images, and training without them."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from fr_edge.arrays import F32, I64
from fr_edge.distill.data_report import (
    count_data,
    examine_data,
    leave_out_unreadable,
    read_exclusions,
    write_data_report,
)
from fr_edge.distill.dataset import IdentitySplit, split_identities
from fr_edge.distill.distributed import Ranks
from fr_edge.distill.recipe import Recipe
from fr_edge.distill.teacher import Teacher
from fr_edge.distill.teacher_targets import TeacherEmbeddings, class_means
from fr_edge.distill.train import distill_student
from fr_edge.errors import FacesError, MachineError
from fr_edge.faces.contract import InputSpec
from fr_edge.faces.sources import Faces

PEOPLE, EACH, DIM = 40, 8, 64


def data() -> tuple[TeacherEmbeddings, IdentitySplit]:
    """People whose images have a cosine of about .7 to one another; then single images: of no person,
    of another person, without any twin, and one that is a copy. Image 5 cannot be read."""
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(PEOPLE, DIM))
    labels = np.repeat(np.arange(PEOPLE), EACH)
    rows = centres[labels] + 0.65 * draw.normal(size=(len(labels), DIM))
    extra = [draw.normal(size=DIM), centres[3] + 0.65 * draw.normal(size=DIM), rows[0], rows[100]]
    rows = np.concatenate([rows, extra])
    labels = np.r_[labels, 1, 2, PEOPLE, 20]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[5] = 0
    teacher = Teacher("double", InputSpec(), DIM, "", lambda faces: np.zeros((len(faces), DIM)))
    every = np.arange(len(labels))
    split = IdentitySplit(every, labels, PEOPLE + 1, every[:0], every)
    return TeacherEmbeddings(teacher, rows[:, None].astype(np.float16)), split


def test_planted_mistakes_are_found_and_nothing_else() -> None:
    embeddings, split = data()
    report, suspects = examine_data(embeddings, split, torch.device("cpu"))
    images = {
        reason: {s.image for s in suspects if s.reason == reason} for reason in report.suspects
    }
    last = PEOPLE * EACH
    assert images["unreadable"] == {5}
    assert images["singleton"] == {last + 2}
    assert images["outlier"] >= {last}
    assert images["outlier"] <= {last, last + 1, last + 3}
    # The singleton is person 0 too, and each is nearer to the other than to its own.
    assert images["other person"] == {last + 1, last + 3, 0, last + 2}
    assert images["duplicate"] == {0, last + 2, last + 3}
    others = {(s.image, s.other) for s in suspects if s.reason == "duplicate"}
    assert (last + 3, 100) in others
    assert report.images == last + 4
    assert report.images_per_identity == (1, EACH, EACH + 1)
    assert report.own_cosine is not None
    assert report.stranger_cosine is not None
    assert 0.5 < report.own_cosine < 0.95
    assert 0.2 < report.stranger_cosine < 0.45  # normal: 2.33 / sqrt(64) = .29
    assert report.suspects == {reason: len(chosen) for reason, chosen in images.items()}


class _Counted(TeacherEmbeddings):
    """Counts the images whose embeddings are asked for together."""

    counts: ClassVar[list[int]] = []

    def rows(self, images: I64 | slice) -> F32:
        out = super().rows(images)
        self.counts.append(len(out))
        return out


def test_a_report_takes_the_embeddings_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """All together they may not fit into memory; what is found is the same."""
    embeddings, split = data()
    whole = examine_data(embeddings, split, torch.device("cpu"))
    monkeypatch.setattr("fr_edge.distill.data_report._ROWS", 16)
    counted = _Counted(embeddings.teacher, embeddings.cached)
    report, suspects = examine_data(counted, split, torch.device("cpu"))
    assert max(counted.counts) == 16
    assert report.suspects == whole[0].suspects
    assert report.own_cosine == pytest.approx(whole[0].own_cosine, abs=1e-6)
    assert report.stranger_cosine == pytest.approx(whole[0].stranger_cosine, abs=1e-6)
    assert [replace(s, cosine=0.0) for s in suspects] == [replace(s, cosine=0.0) for s in whole[1]]
    np.testing.assert_allclose(
        [s.cosine for s in suspects], [s.cosine for s in whole[1]], atol=1e-6
    )


def test_a_report_without_a_teacher_counts() -> None:
    _, split = data()
    report, suspects = count_data(split)
    assert (report.identities, report.suspects) == (PEOPLE + 1, {"singleton": 1})
    assert [s.image for s in suspects] == [PEOPLE * EACH + 2]


def test_names_are_in_the_list_alone(tmp_path: Path) -> None:
    embeddings, split = data()
    keys = [f"person {label}/{n}.jpg" for n, label in enumerate(split.labels)]
    report, suspects = examine_data(embeddings, split, torch.device("cpu"))
    write_data_report(tmp_path / "out", report, suspects, keys, split.train)
    text = (tmp_path / "out" / "data.json").read_text()
    assert "person " not in text.replace("other person", "")
    assert json.loads(text)["suspects"] == report.suspects
    file = tmp_path / "out" / "suspects.csv"
    assert file.stat().st_mode & 0o777 == 0o600
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["image"] for row in rows] == [keys[s.image] for s in suspects]
    excluded = read_exclusions(file, keys)
    assert set(np.flatnonzero(excluded)) == {s.image for s in suspects}


def test_a_list_of_other_images_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text("a.jpg\nb.jpg,outlier\n")
    assert list(read_exclusions(file, ["b.jpg", "c.jpg", "a.jpg"])) == [True, False, True]
    with pytest.raises(
        FacesError, match=r"1 images that the faces do not have, for example b\.jpg"
    ):
        read_exclusions(file, ["a.jpg"])
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FacesError, match="cannot be read"):
        read_exclusions(file, ["a.jpg"])
    with pytest.raises(FacesError):
        read_exclusions(tmp_path / "none.csv", ["a.jpg"])


class _Ranks(Ranks):
    """The second of two, the first of which has found images 2 and 9."""

    def all_max(self, values: torch.Tensor) -> torch.Tensor:
        out = values.clone()
        out[[2, 9]] = 1
        return out

    def barrier(self) -> None:
        pass


def unread(faces: Faces, images: list[int]) -> tuple[TeacherEmbeddings, IdentitySplit]:
    split = split_identities(faces, 4)
    cached = np.ones((30, 1, 4), np.float16)
    cached[images] = 0
    teacher = Teacher("double", InputSpec(), 4, "", lambda f: np.zeros((len(f), 4)))
    return TeacherEmbeddings(teacher, cached), split


def test_unreadable_images_take_no_part(
    faces: Faces, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = Recipe(batch=8, bad_images=2)
    embeddings, split = unread(faces, [2, 9, 29])
    split = replace(split, kept=np.delete(split.kept, 29))  # excluded, and counts no more
    out = leave_out_unreadable(
        recipe, faces, split, embeddings, tmp_path / "unreadable.csv", Ranks()
    )
    assert out.kept.tolist() == [k for k in range(29) if k not in (2, 9)]
    assert caplog.messages == ["2 of at most 2 unreadable images are left out"]
    assert (out.classes, len(out.labels)) == (split.classes, 30)  # the others stay where they are
    assert not list(tmp_path.iterdir())
    caplog.clear()
    embeddings, split = unread(faces, [])
    assert (
        leave_out_unreadable(recipe, faces, split, embeddings, tmp_path / "unreadable.csv", Ranks())
        is split
    )
    embeddings, split = unread(faces, [4])  # as the second rank sees them, who follows the first
    out = leave_out_unreadable(
        recipe, faces, split, embeddings, tmp_path / "unreadable.csv", _Ranks(1, 2)
    )
    assert out.kept.tolist() == [k for k in range(30) if k not in (2, 9)]
    assert caplog.messages == []


def test_too_many_unreadable_images_are_listed_to_be_left_out(faces: Faces, tmp_path: Path) -> None:
    keys = list(faces.keys)
    keys[9] = 'Jan, "A"/ä.jpg'
    faces = replace(faces, keys=keys)
    recipe = Recipe(batch=8, bad_images=3, exclude=str(tmp_path / "old.csv"))
    (tmp_path / "old.csv").write_text(f"{keys[5]}\n{keys[49]}\n")
    embeddings, split = unread(faces, [2, 5, 9, 11, 20])
    split = split_identities(faces, 4, read_exclusions(tmp_path / "old.csv", keys))
    with pytest.raises(FacesError) as caught:
        leave_out_unreadable(recipe, faces, split, embeddings, tmp_path / "unreadable.csv", Ranks())
    names = ", ".join(keys[k] for k in (2, 9, 11))
    assert caught.value.message == f"4 images of {faces.where} cannot be read: {names}"
    file = tmp_path / "unreadable.csv"
    assert f"--set exclude={file} leaves them out" in caught.value.hint
    assert "--set bad_images=N (now 3)" in caught.value.hint
    assert file.stat().st_mode & 0o777 == 0o600
    excluded = read_exclusions(file, keys)
    assert np.flatnonzero(excluded).tolist() == [2, 5, 9, 11, 20, 49]
    again = split_identities(faces, 4, excluded)
    recipe = replace(recipe, bad_images=0, exclude=str(file))
    assert (
        leave_out_unreadable(recipe, faces, again, embeddings, tmp_path / "unreadable.csv", Ranks())
        is again
    )


def test_what_is_left_of_unreadable_images_fills_a_batch(faces: Faces, tmp_path: Path) -> None:
    embeddings, split = unread(faces, [2, 9])
    recipe = Recipe(batch=29, bad_images=9)
    with pytest.raises(FacesError, match="2 images of"):
        leave_out_unreadable(
            recipe, faces, split, embeddings, tmp_path / "none" / "unreadable.csv", _Ranks(1, 2)
        )
    assert not (tmp_path / "none").exists()  # the first rank's to write
    with pytest.raises(MachineError, match="cannot be written"):
        leave_out_unreadable(
            recipe, faces, split, embeddings, tmp_path / "none" / "unreadable.csv", Ranks()
        )


def test_excluded_images_take_no_part(
    recipe: Recipe, faces: Faces, teacher: Path, tmp_path: Path
) -> None:
    out = [k for k, label in enumerate(faces.labels) if label == 0][1:]
    (tmp_path / "list.csv").write_text("".join(f"{faces.keys[k]}\n" for k in out))
    split = split_identities(faces, 4, read_exclusions(tmp_path / "list.csv", faces.keys))
    assert list(split.labels) == list(split_identities(faces, 4).labels)
    assert set(split.kept) == set(range(30)) - set(out)
    embeddings = TeacherEmbeddings(
        Teacher("double", InputSpec(), 30, "", lambda f: np.zeros((len(f), 30))),
        np.eye(30, dtype=np.float16)[:, None],
    )
    assert class_means(embeddings, split)[0].argmax() == 0
    assert float(class_means(embeddings, split)[0].max()) == 1.0
    changed = replace(
        recipe,
        epochs=1,
        exclude=str(tmp_path / "list.csv"),
        data_report=str(tmp_path / "report"),
        losses=("adadistill", "bank"),
    )
    result = distill_student(changed, faces, tmp_path / "out", teacher=teacher)
    assert (result.report.images, result.report.steps) == (26, 26 // 8)
    assert result.report.recipe.exclude == "list.csv"
    assert json.loads((tmp_path / "report" / "data.json").read_text())["images"] == 30
