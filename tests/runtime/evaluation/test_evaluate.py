"""A protocol's figures against scikit-free references on the same embeddings."""

from collections import UserList
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fr_edge.documents import to_builtins
from fr_edge.errors import FacesError
from fr_edge.export.export import export_onnx
from fr_edge.faces.contract import InputSpec
from fr_edge.faces.pairs import Pairs, read_pairs
from fr_edge.faces.sources import Faces, open_faces
from fr_edge.metrics.protocols import draw_pairs
from fr_edge.metrics.verification import all_pairs, equal_error_rate
from fr_edge.runtime.evaluation.evaluate import evaluate
from fr_edge.runtime.session import embed_faces, open_session


def test_figures_of_a_folder(mini: Path, people: Faces) -> None:
    report = to_builtins(evaluate(mini, people, engine="fp32", artifact="graph"))
    unit = embed_faces(open_session(mini, "fp32", artifact="graph"), people)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    first, second = np.triu_indices(len(people), 1)
    labels = np.asarray(people.labels)
    same, scores = labels[first] == labels[second], (unit @ unit.T)[first, second]
    assert report["pairs"] == {"genuine": int(same.sum()), "impostor": int((~same).sum())}
    impostor = np.sort(scores[~same])[::-1]
    cut = impostor[int(1e-2 * len(impostor))]  # the first impostor that must stay out
    assert report["threshold_at_far"]["1e-2"] == pytest.approx(cut, abs=1e-5)
    assert report["tar_at_far"]["1e-2"] == pytest.approx((scores[same] > cut).mean(), abs=1e-6)
    assert report["tar_at_far"]["1e-4"] is None
    assert any("1e-4" in note for note in report["notes"])
    assert 0.5 < report["accuracy"] <= 1
    assert report["folds"] == 6


def test_faces_without_names_are_judged_on_the_listed_pairs_alone(
    mini: Path, people: Faces
) -> None:
    pairs = Pairs(people, **vars(draw_pairs(people.labels)))
    nameless = replace(pairs, faces=replace(people, labelled=False))
    report = to_builtins(evaluate(mini, nameless, engine="fp32", artifact="graph"))
    assert report["pairs"]["genuine"] == int(pairs.same.sum())
    assert (
        report["accuracy"]
        == to_builtins(evaluate(mini, pairs, engine="fp32", artifact="graph"))["accuracy"]
    )


def _patterns(people: int, images: int) -> Faces:
    """Every person is a pattern of their own, so that even an untrained network knows them."""
    random = np.random.default_rng(4)
    tiles = random.integers(0, 256, (people, 7, 7, 3)).repeat(16, axis=1).repeat(16, axis=2)
    labels = np.repeat(np.arange(people), images)
    noise = random.integers(-20, 21, (len(labels), 112, 112, 3))
    pixels = np.clip(tiles[labels] + noise, 0, 255).astype(np.uint8)
    keys = UserList(
        f"{label}/{index}" for index, label in enumerate(labels)
    )  # RecordIO's: no tuple
    return Faces("patterns", keys, labels, lambda index: pixels[index], synthetic=True)


def test_swapped_labels_are_seen(mini: Path) -> None:
    faces = _patterns(20, 3)
    mixed = replace(faces, labels=np.random.default_rng(0).permutation(faces.labels))
    honest, swapped = (evaluate(mini, f, engine="fp32", artifact="graph") for f in (faces, mixed))
    assert swapped.accuracy < 0.7 < 0.9 < honest.accuracy
    assert swapped.eer > 0.3 > 0.1 > honest.eer


def test_flip_adds_the_mirror_image(mini: Path) -> None:
    faces = _patterns(8, 3)
    plain, flipped = (
        to_builtins(evaluate(mini, faces, engine="fp32", artifact="graph", flip=f))
        for f in (False, True)
    )
    session = open_session(mini, "fp32", artifact="graph")
    mirrored = replace(faces, read=lambda i: np.ascontiguousarray(faces.read(i)[:, ::-1]))
    both = embed_faces(session, faces) + embed_faces(session, mirrored)
    scores = all_pairs(both, faces.labels)
    assert flipped["eer"] == pytest.approx(equal_error_rate(scores), abs=1e-6)
    assert flipped["protocol"]["flip"] is True
    assert flipped["threshold_at_far"] != plain["threshold_at_far"]
    assert plain["identification"]["gallery"] == 8
    assert 0.5 <= plain["accuracy_insightface"]["mean"] <= 1


def test_one_person_cannot_be_judged(mini: Path) -> None:
    with pytest.raises(FacesError, match="1 identities"):
        evaluate(mini, open_faces("synthetic:1x5"))


@pytest.mark.real
def test_a_known_model_on_real_faces(real_data: Path, tmp_path: Path) -> None:
    """casia's figures on three folds of this list, float and one crop, by onnxruntime and numpy alone.

    The whole list (accuracy 0.9790, TAR@1e-4 0.816): benchmarks/int8_loss.py.
    """
    import tarfile

    with tarfile.open(real_data / "faces_dev.tar") as archive:
        member = archive.extractfile("pairs.csv")
        assert member is not None
        head, *rows = member.read().decode().splitlines()
    (tmp_path / "pairs.csv").write_text("\n".join([head, *(r for r in rows if r[0] in "012")]))
    bundle = export_onnx(
        real_data / "mobilefacenet_casia.onnx",
        tmp_path / "b",
        spec=InputSpec(width=96, std=(128.0,) * 3),
    ).bundle
    pairs = read_pairs(tmp_path / "pairs.csv", real_data / "faces_dev.tar")
    assert len(pairs.faces) == 991
    found = evaluate(bundle, pairs, engine="fp32", artifact="graph")
    assert (found.pairs.genuine, found.pairs.impostor) == (1169, 489376)
    assert found.accuracy == pytest.approx(0.9766, abs=1e-3)
    assert found.tar_at_far["1e-4"] == pytest.approx(0.8221, abs=1e-3)
