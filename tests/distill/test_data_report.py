"""Suspects among the training images, and training without them."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fr_edge.distill.data_report import (
    count_data,
    examine_data,
    read_exclusions,
    write_data_report,
)
from fr_edge.distill.dataset import IdentitySplit, split_identities
from fr_edge.distill.recipe import Recipe
from fr_edge.distill.teacher import Teacher
from fr_edge.distill.teacher_targets import TeacherEmbeddings, class_means
from fr_edge.distill.train import distill_student
from fr_edge.errors import FacesError
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
