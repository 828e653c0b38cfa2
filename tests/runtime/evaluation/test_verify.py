"""What `verify` says of engines that are right, and of engines broken in known ways."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.documents import to_builtins
from fr_edge.errors import BundleError, FacesError, ModelError, UsageError
from fr_edge.faces.pairs import Pairs
from fr_edge.faces.sources import Faces, open_faces
from fr_edge.metrics.protocols import draw_pairs
from fr_edge.runtime.evaluation.embeddings_file import (
    EmbeddingOrigin,
    origin_of,
    refuse_other_network,
    write_embeddings,
)
from fr_edge.runtime.evaluation.verify import verify
from fr_edge.runtime.session import embed_faces, open_session


def _rewrite(root: Path, name: str, edit: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(root / name)
    edit(model)
    with transaction(root, "tamper", {}) as draft:
        draft.path(name, "model").write_bytes(model.SerializeToString())


def _scale_weights(
    factor: Callable[[np.ndarray], np.ndarray], dims: tuple[int, ...] = (4,)
) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.ndim in dims and values.dtype == np.float32:
                tensor.CopyFrom(numpy_helper.from_array(factor(values), tensor.name))

    return edit


def test_fp32_is_itself(mini: Path, distinct: Faces) -> None:
    found = verify(mini, "fp32", artifact="graph", faces=distinct)
    assert found.passed
    assert (found.verdict, found.reasons) == ("PASSED", ())
    report = to_builtins(found)
    assert report["cosine"]["min"] > 0.99999
    assert report["tar"]["1e-2"]["delta"] == 0
    assert report["faces"]["count"] == len(distinct)
    assert json.loads((mini / found.report).read_text()) == report
    assert found.report.startswith("reports/verify-fp32-synthetic-40x4-9-")
    assert open_bundle(mini).history[-1]["summary"]["passed"] is True


def test_int8_figures_are_those_of_its_embeddings(mini: Path, people: Faces) -> None:
    pairs = Pairs(people, **vars(draw_pairs(people.labels)))
    report = to_builtins(verify(mini, "int8", artifact="graph", pairs=pairs, far=1e-2))
    old, new = (
        embed_faces(open_session(mini, e, artifact="graph"), people) for e in ("fp32", "int8")
    )
    cosine = (old * new).sum(1) / np.linalg.norm(old, axis=1) / np.linalg.norm(new, axis=1)
    assert report["cosine"]["min"] == pytest.approx(cosine.min(), abs=2e-6)
    assert report["cosine"]["mean"] == pytest.approx(cosine.mean(), abs=2e-6)
    assert report["cosine"]["worst"][0]["face"] == people.keys[int(cosine.argmin())]
    assert sum(report["cosine"]["histogram"]["counts"]) == len(people)
    assert 0.5 < report["accuracy"]["engine"] <= 1
    rate = report["tar"]["1e-2"]
    assert rate["delta"] == pytest.approx(rate["engine"] - rate["reference"], abs=2e-6)
    gate = next(g for g in report["gates"] if g["name"].startswith("TAR drop"))
    assert gate["value"] == pytest.approx(-rate["delta"], abs=2e-6)


def test_golden_faces_alone_judge_too(mini: Path) -> None:
    report = to_builtins(verify(mini, "int8", artifact="graph"))
    assert report["faces"] is None
    assert report["tar"] == {}
    assert report["cosine"]["faces"] == 32
    assert any("TAR" in note for note in report["not_measured"])


def test_noise_in_the_engine_fails_its_cosine_gates(mini: Path, people: Faces) -> None:
    random = np.random.default_rng(0)
    _rewrite(
        mini,
        "model.int8.onnx",
        _scale_weights(lambda v: (v * random.normal(1, 1, v.shape)).astype(np.float32)),
    )
    found = verify(mini, "int8", artifact="graph", faces=people)
    assert not found.passed
    assert {g.name for g in found.gates if not g.passed} >= {"min cosine", "p1 cosine"}


def test_a_model_that_is_not_the_original_fails_the_proof(mini: Path, people: Faces) -> None:
    _rewrite(mini, "model.onnx", _scale_weights(lambda v: np.ascontiguousarray(v[:, :, ::-1])))
    found = verify(mini, "fp32", artifact="graph", faces=people, far=1e-2)
    # The engine agrees with model.onnx on every face; only the golden faces know better.
    assert found.cosine.min > 0.9999
    assert [g.name for g in found.gates if not g.passed] == [
        "fp32 model is the original: min cosine",
        "each dimension of the embedding: min correlation",
        "length of the embeddings: min ratio",
        "batches of 1, 2, 3, 4, 8 and 16 faces: min cosine",
    ]


def test_reference_from_a_file(mini: Path, people: Faces, tmp_path: Path) -> None:
    embeddings = embed_faces(open_session(mini, "fp32", artifact="graph"), people)
    swapped = embeddings.copy()
    swapped[[3, 20]] = swapped[[20, 3]]
    origin = origin_of(open_bundle(mini), "fp32", "torch")
    write_embeddings(tmp_path / "r.npz", people.keys, people.labels, swapped, origin)
    found = verify(mini, "fp32", artifact="graph", faces=people, reference=tmp_path / "r.npz")
    assert not found.passed
    assert {worst.face for worst in found.cosine.worst[:2]} == {people.keys[3], people.keys[20]}
    assert "r.npz" in found.reference
    with pytest.raises(UsageError, match="faces"):
        verify(mini, "fp32", artifact="graph", reference=tmp_path / "r.npz")


def _other_spec(origin: EmbeddingOrigin) -> EmbeddingOrigin:
    return replace(origin, input=replace(origin.input, channels="BGR"))


def _other_network(origin: EmbeddingOrigin) -> EmbeddingOrigin:
    return replace(origin, models={name: "0" * 64 for name in origin.models})


def _own_engine(origin: EmbeddingOrigin) -> EmbeddingOrigin:
    return replace(origin, engine="int8")


@pytest.mark.parametrize(
    ("change_origin", "said"),
    [
        (_other_network, r"another bundle: its network is model.onnx 0{12}\.\.\."),
        (_other_spec, r"made with faces as BGR .*contract is RGB"),
        (_own_engine, "made by the int8 engine"),
    ],
)
def test_a_reference_that_is_not_the_originals_is_refused(
    change_origin: Callable[[EmbeddingOrigin], EmbeddingOrigin],
    said: str,
    mini: Path,
    people: Faces,
    tmp_path: Path,
) -> None:
    embeddings = embed_faces(open_session(mini, "fp32", artifact="graph"), people)
    origin = change_origin(origin_of(open_bundle(mini), "fp32", "torch"))
    write_embeddings(tmp_path / "r.npz", people.keys, people.labels, embeddings, origin)
    with pytest.raises(FacesError, match=said):
        verify(mini, "int8", artifact="graph", faces=people, reference=tmp_path / "r.npz")
    np.savez(tmp_path / "r.npz", keys=np.array(people.keys), embeddings=embeddings)
    with pytest.raises(FacesError, match="does not say which network"):
        verify(mini, "int8", artifact="graph", faces=people, reference=tmp_path / "r.npz")


def test_one_network_in_two_forms_may_speak_for_itself(mini: Path, people: Faces) -> None:
    """Embeddings of model.pt before the export are those of the bundle that has both."""
    bundle = open_bundle(mini)
    origin = origin_of(bundle, "fp32", "torch")
    refuse_other_network(
        replace(origin, models={**origin.models, "model.pt": "1" * 64}), bundle, "it"
    )


@pytest.mark.parametrize("own", [True, False])
def test_a_teachers_gallery_is_matched_on_purpose(
    own: bool, mini: Path, distinct: Faces, tmp_path: Path
) -> None:
    """Any network's file will do: one of the same space may stay, one of a turned space not."""
    near = embed_faces(open_session(mini, "fp32", artifact="graph"), distinct)
    turn, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(near.shape[1],) * 2))
    teacher = near if own else (near @ turn).astype(np.float32)
    np.savez(tmp_path / "t.npz", keys=np.array(distinct.keys), embeddings=teacher)
    found = verify(
        mini, "int8", artifact="graph", faces=distinct, teacher=tmp_path / "t.npz", far=1e-2
    )
    told = to_builtins(found)["teacher"]
    assert told["gallery"]["verdict"] == ("keep the gallery" if own else "enrol again")
    assert told["made_by"] is None
    # The teacher judges nothing: the reference is the bundle's own network.
    assert found.passed
    assert "t.npz" not in found.reference
    # A teacher alone is as good turned as not.
    alone = told["tar"]["1e-2"]
    assert alone["reference"] == pytest.approx(to_builtins(found)["tar"]["1e-2"]["reference"])
    assert alone["engine"] == to_builtins(found)["tar"]["1e-2"]["engine"]


def test_a_teacher_of_another_size_or_without_faces_is_refused(
    mini: Path, people: Faces, tmp_path: Path
) -> None:
    keys, rows = np.array(people.keys), np.ones((len(people), 7), np.float32)
    np.savez(tmp_path / "t.npz", keys=keys, embeddings=rows)
    with pytest.raises(FacesError, match="of 7 numbers"):
        verify(mini, "fp32", artifact="graph", faces=people, teacher=tmp_path / "t.npz")
    with pytest.raises(UsageError, match="faces"):
        verify(mini, "fp32", artifact="graph", teacher=tmp_path / "t.npz")
    with pytest.raises(UsageError, match="who is who"):
        verify(
            mini,
            "fp32",
            artifact="graph",
            faces=replace(people, labelled=False),
            teacher=tmp_path / "t.npz",
        )


def test_a_tar_gate_that_was_asked_for_and_cannot_be_measured(mini: Path) -> None:
    """Golden faces alone pass, and say that people were not judged."""
    golden = verify(mini, "fp32", artifact="graph")
    assert golden.passed
    assert any("people" in note for note in golden.not_measured)
    found = verify(mini, "fp32", artifact="graph", max_tar_drop=0.01)
    assert found.verdict == "CANNOT JUDGE"
    assert not found.passed
    assert found.gates[-1].value is None
    assert "--faces" in found.reasons[0].cure


def test_a_reference_that_hardly_tells_people_apart_proves_nothing(
    mini: Path, people: Faces
) -> None:
    """A network of random weights: nothing can be lost, so an engine equal to it must not pass."""
    result = verify(mini, "fp32", artifact="graph", faces=people, far=1e-2)
    assert all(gate.passed for gate in result.gates)
    assert (result.passed, result.verdict) == (False, "CANNOT JUDGE")
    reasons = " ".join(reason.reason for reason in result.reasons)
    assert "hardly tells these people apart" in reasons
    assert "look more like another person" in reasons
    assert all(reason.cure for reason in result.reasons)
    assert result.gallery is not None
    assert result.gallery.verdict == "cannot judge"
    history = open_bundle(mini).history[-1]["summary"]
    assert (history["passed"], history["verdict"]) == (False, "CANNOT JUDGE")


def test_mixed_labels_cannot_be_judged(mini: Path, distinct: Faces) -> None:
    labels = np.random.default_rng(1).permutation(distinct.labels)
    result = verify(mini, "fp32", artifact="graph", faces=replace(distinct, labels=labels))
    assert result.verdict == "CANNOT JUDGE"
    assert any("labels" in reason.reason for reason in result.reasons)


def test_by_default_no_far_above_a_thousandth_is_judged(mini: Path, distinct: Faces) -> None:
    """30 people give 6,960 impostor pairs: enough for 1e-2, which opens no door, not for 1e-3."""
    few = replace(distinct, keys=distinct.keys[:120], labels=distinct.labels[:120])
    result = verify(mini, "fp32", artifact="graph", faces=few)
    assert result.verdict == "CANNOT JUDGE"
    (reason,) = (r for r in result.reasons if r.verdict == "CANNOT JUDGE")
    assert reason.reason.startswith("TAR drop at FAR 1e-4, at most 0.01: 6,960 impostor pairs")
    assert "100,000 impostor pairs among them, or a larger --far" in reason.cure
    assert verify(mini, "fp32", artifact="graph", faces=few, far=1e-2).verdict == "PASSED"


def test_by_default_the_lowest_far_that_the_pairs_show_is_judged(
    mini: Path, distinct: Faces
) -> None:
    result = verify(mini, "fp32", artifact="graph", faces=distinct)
    assert result.gates[-1].name == "TAR drop at FAR 1e-3"
    assert any("1e-4, the default" in note for note in result.not_measured)
    asked = verify(mini, "fp32", artifact="graph", faces=distinct, far=1e-5)
    assert asked.verdict == "CANNOT JUDGE"
    assert asked.gates[-1].name == "TAR drop at FAR 1e-5"
    assert "1,000,000 impostor pairs" in asked.gates[-1].cure


def test_too_few_pairs_are_said_not_guessed(mini: Path, people: Faces) -> None:
    report = to_builtins(
        verify(mini, "fp32", artifact="graph", faces=people, max_tar_drop=0.5, far=1e-5)
    )
    assert report["tar"]["1e-5"]["reference"] is None
    assert "impostor pairs" in report["tar"]["1e-5"]["reason"]
    assert not report["passed"]


def test_an_engine_that_gives_nan_is_refused_and_the_bundle_stays(
    mini: Path, people: Faces
) -> None:
    _rewrite(mini, "model.int8.onnx", _scale_weights(lambda v: v * np.float32(np.nan), (1,)))
    before = sorted(p.name for p in mini.rglob("*"))
    with pytest.raises(ModelError, match="not finite"):
        verify(mini, "int8", artifact="graph", faces=people)
    assert sorted(p.name for p in mini.rglob("*")) == before


@pytest.mark.parametrize("source", ["synthetic:1x5", "synthetic:5x1"])
def test_faces_that_say_nothing_of_people_are_refused(source: str, mini: Path) -> None:
    with pytest.raises(FacesError, match="5 faces of (1|5) people"):
        verify(mini, "fp32", artifact="graph", faces=open_faces(source))


def test_damaged_golden(mini: Path) -> None:
    with transaction(mini, "tamper", {}) as draft:
        draft.path("golden.npz", "golden").write_bytes(b"PK\x03\x04 not an archive")
    with pytest.raises(BundleError, match="golden"):
        verify(mini, "fp32", artifact="graph")


def test_an_unreadable_face_names_itself(mini: Path, people: Faces) -> None:
    def read(index: int) -> np.ndarray:
        if index == 5:
            raise FacesError("x.jpg is damaged")
        return people.read(index)

    with pytest.raises(FacesError, match="x.jpg"):
        verify(mini, "fp32", artifact="graph", faces=replace(people, read=read))
    assert not any(name.startswith("reports/verify") for name in open_bundle(mini).files)
