"""A gallery against a plain search; its file; what it refuses."""

import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fr_edge.errors import FacesError, UsageError
from fr_edge.faces.contract import PRESETS
from fr_edge.runtime.recognition.face_gallery import Gallery
from fr_edge.runtime.recognition.gallery_file import GalleryModel

MODEL = GalleryModel({"model.onnx": "ab" * 32}, PRESETS["insightface"], "int8", "cd" * 32, 16)


def unit(count: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, MODEL.dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def people() -> tuple[Gallery, list[str], np.ndarray]:
    """30 people, the first with 12 faces, the others with one to three."""
    faces = unit(80)
    names = ["p0"] * 12 + [f"p{1 + i % 29}" for i in range(68)]
    gallery = Gallery(MODEL)
    for name, face in zip(names, faces, strict=True):
        gallery.enrol(name, face)
    return gallery, names, faces


def test_people_are_found_as_by_a_plain_search(
    people: tuple[Gallery, list[str], np.ndarray],
) -> None:
    gallery, names, faces = people
    probes = unit(40, 1)
    for probe, found in zip(probes, gallery.search(3 * probes, -1, rank=5), strict=True):
        best: dict[str, float] = {}
        for name, score in zip(names, faces @ probe, strict=True):
            best[name] = max(best.get(name, -1), float(score))
        order = sorted(best, key=lambda name: -best[name])[:5]
        assert [match.name for match in found] == order
        assert [m.similarity for m in found] == pytest.approx([best[n] for n in order], abs=1e-6)
        threshold = (best[order[1]] + best[order[2]]) / 2
        above = gallery.identify(probe, threshold, rank=5)
        assert [match.name for match in above] == order[:2]
        assert gallery.identify(probe, 0.999) == ()
        assert [match.name for match in gallery.identify(probe, -1)] == order[:1]


def test_people_come_and_go(people: tuple[Gallery, list[str], np.ndarray]) -> None:
    gallery, _, faces = people
    assert len(gallery) == 30
    assert gallery.names[:2] == ("p0", "p1")
    assert "p3" in gallery
    assert gallery.remove("p0") == 12
    assert "p0" not in gallery
    assert gallery.identify(faces[0], 0.999) == ()
    with pytest.raises(UsageError, match="no such person"):
        gallery.remove("p0")
    gallery.enrol_many(["x", "y", "x"], unit(3, 5))
    assert gallery.names[-2:] == ("x", "y")
    assert gallery.identify(unit(3, 5)[2], 0.999)[0].name == "x"


def test_the_threshold_of_a_fpir_lets_that_share_of_strangers_pass(
    people: tuple[Gallery, list[str], np.ndarray],
) -> None:
    gallery = people[0]
    strangers = unit(200, 2)
    threshold = gallery.threshold_at_fpir(strangers, 0.05)
    assert sum(bool(found) for found in gallery.search(strangers, threshold)) == 10
    with pytest.raises(FacesError, match="200 strangers do not show FPIR 1e-3") as caught:
        gallery.threshold_at_fpir(strangers, 0.001)
    assert "1000 or more" in caught.value.hint
    with pytest.raises(FacesError, match="is empty"):
        Gallery(MODEL).threshold_at_fpir(strangers, 0.05)
    with pytest.raises(UsageError, match="FPIR 1"):
        gallery.threshold_at_fpir(strangers, 1)


def test_a_file_brings_it_back(
    people: tuple[Gallery, list[str], np.ndarray], tmp_path: Path
) -> None:
    gallery = people[0]
    gallery.enrol("Zoë \U0001f600 / ..", unit(1, 9)[0])
    file = tmp_path / "new" / "staff.gallery"
    gallery.save(file)
    assert file.stat().st_mode & 0o777 == 0o600
    again = Gallery.load(file, replace(MODEL, network={}))  # the graph is what counts
    assert again.names == gallery.names
    assert np.array_equal(again.faces()[1], gallery.faces()[1])
    assert again.search(unit(9, 3), 0.1, 3) == gallery.search(unit(9, 3), 0.1, 3)
    again.enrol("p1", unit(1, 11)[0])
    assert len(again.faces()[0]) == len(gallery.faces()[0]) + 1
    empty = tmp_path / "empty"
    Gallery(MODEL).save(empty)
    assert Gallery.load(empty, MODEL).identify(unit(1)[0], -1) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"graph": "ef" * 32}, "int8 of cdcdcdcdcdcd..., 16 numbers, expected int8 of efefefef"),
        ({"graph": "ef" * 32, "precision": "fp32", "dim": 8}, "expected fp32 .*, 8 numbers"),
        ({"input": PRESETS["raw"]}, "its faces are fed as RGB 112x112"),
    ],
)
def test_another_models_gallery_is_refused(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    Gallery(MODEL).save(tmp_path / "g")
    with pytest.raises(FacesError, match=f"gallery of another model: .*{message}") as caught:
        Gallery.load(tmp_path / "g", replace(MODEL, **change))
    assert "migrate_gallery" in caught.value.hint


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    gallery, file = Gallery(MODEL), tmp_path / "g"
    gallery.enrol_many([f"p{i}" for i in range(5)], unit(5))
    gallery.save(file)
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        good = dict(np.load(file))
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())

    def refused(message: str, **arrays: np.ndarray) -> None:
        np.savez(tmp_path / "bad.npz", **{**good, **arrays})
        with pytest.raises(FacesError, match=message):
            Gallery.load(tmp_path / "bad.npz", MODEL)

    def text(value: str) -> np.ndarray:
        return np.frombuffer(value.encode(), np.uint8)

    refused("not of unit length", embeddings=2 * good["embeddings"])
    refused("not of unit length", embeddings=np.full((5, 16), np.nan, np.float32))
    refused("5 names and embeddings", embeddings=good["embeddings"][:4])
    refused("4 names and embeddings", names=text('["a", "b", "c", "d"]'))
    refused("5 names and embeddings", embeddings=good["embeddings"].astype(np.float64))
    refused("a name has 1 to 1,000", names=text('["a", "b", "c", "d", ""]'))
    refused("cannot be read as a gallery", names=text("[1, 2, 3, 4, 5]"))
    refused("that it does not describe", origin=np.ones(5, np.uint8))
    refused("5 names and models", origin=np.zeros(4, np.uint8))
    refused("expected one, or two", models=text("[]"))
    refused("cannot be read as a gallery", models=text("[{}]"))
    refused("cannot be read as a gallery", models=text("what"))
    refused("cannot be read", embeddings=np.array([None] * 5, object))  # a pickle
    for data in (b"", b"no zip", whole[:-30], whole[:200] + b"\x00" + whole[201:]):
        (tmp_path / "cut").write_bytes(data)
        with pytest.raises(FacesError):
            Gallery.load(tmp_path / "cut", MODEL)
    with pytest.raises(FacesError, match="no gallery at"):
        Gallery.load(tmp_path / "none", MODEL)


def test_what_cannot_be_enrolled(tmp_path: Path) -> None:
    gallery, face = Gallery(MODEL), unit(1)[0]
    for name in ("", "  ", "x" * 1001, "\ud800", None):
        with pytest.raises(UsageError, match="name"):
            gallery.enrol(name, face)  # type: ignore[arg-type]
    for bad in (np.zeros(16, np.float32), np.full(16, np.inf, np.float32)):
        with pytest.raises(FacesError, match="zero or not finite"):
            gallery.enrol("a", bad)
        with pytest.raises(FacesError, match="zero or not finite"):
            gallery.identify(bad, 0.3)
    for wrong in (unit(1)[0, :8], np.zeros((2, 2, 16), np.float32), np.ones(16, np.int64)):
        with pytest.raises(UsageError, match="expected embeddings"):
            gallery.enrol("a", wrong)
    with pytest.raises(UsageError, match="2 embeddings and 1 names"):
        gallery.enrol_many(["a"], unit(2))
    with pytest.raises(UsageError, match="expected one embedding"):
        gallery.identify(unit(2), 0.3)
    for threshold, rank in ((1.5, 1), (np.nan, 1), (0.3, 0)):
        with pytest.raises(UsageError, match="expected a cosine"):
            gallery.identify(face, threshold, rank)
    assert gallery.names == ()
    assert gallery.identify(face, -1, rank=3) == ()


def test_threads_search_while_people_are_enrolled() -> None:
    gallery, faces = Gallery(MODEL), unit(900)
    gallery.enrol("first", faces[0])
    errors: list[str] = []
    done = threading.Event()

    def search() -> None:
        while not done.wait(0.001):  # a spinning thread would keep the interpreter from the writers
            matches = gallery.identify(faces[0], 0.999)
            if [match.name for match in matches] != ["first"]:
                errors.append(str(matches))

    def enrol(start: int) -> None:
        for index in range(start, 900, 3):
            gallery.enrol(f"p{index}", faces[index])
            if index % 5 == 0:
                gallery.remove(f"p{index}")

    readers = [threading.Thread(target=search) for _ in range(2)]
    writers = [threading.Thread(target=enrol, args=(start,)) for start in (1, 2, 3)]
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert not errors
    stayed = {f"p{i}" for i in range(1, 900) if i % 5}
    assert set(gallery.names) == stayed | {"first"}
    for index in (1, 449, 899):
        assert gallery.identify(faces[index], 0.999)[0].name == f"p{index}"
