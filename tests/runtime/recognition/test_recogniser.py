"""Photographs to embeddings and decisions on a real engine; the detector is a named double."""

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path[:0] = [str(Path(__file__).parents[2] / "cli")]
from bright_detector import write_bright_detector  # noqa: E402
from kernel_choice import all_in_float  # noqa: E402

from fr_edge.bundle.bundle import open_bundle, transaction  # noqa: E402
from fr_edge.bundle.keys import TRUSTED_KEYS, make_key_pair, read_signing_key  # noqa: E402
from fr_edge.bundle.signature import add_signature  # noqa: E402
from fr_edge.errors import BundleError, FacesError, UsageError  # noqa: E402
from fr_edge.export.detector_export import export_detector  # noqa: E402
from fr_edge.faces.align import align  # noqa: E402
from fr_edge.faces.contract import ARCFACE_TEMPLATE  # noqa: E402
from fr_edge.faces.detect import DetectedFace  # noqa: E402
from fr_edge.faces.sources import Faces  # noqa: E402
from fr_edge.metrics.verification import normalise  # noqa: E402
from fr_edge.runtime.build import build_engine  # noqa: E402
from fr_edge.runtime.evaluation.embeddings_file import origin_of, write_embeddings  # noqa: E402
from fr_edge.runtime.evaluation.verify import verify  # noqa: E402
from fr_edge.runtime.frames import draw_frame  # noqa: E402
from fr_edge.runtime.recognition.face_gallery import Gallery  # noqa: E402
from fr_edge.runtime.recognition.gallery_file import read_gallery  # noqa: E402
from fr_edge.runtime.recognition.gallery_migration import migrate_gallery  # noqa: E402
from fr_edge.runtime.recognition.match_threshold import MatchThreshold  # noqa: E402
from fr_edge.runtime.recognition.recogniser import Recogniser  # noqa: E402
from fr_edge.runtime.session import embed_faces, open_session  # noqa: E402

README = Path(__file__).parents[3] / "README.md"
TEMPLATE = np.array(ARCFACE_TEMPLATE, np.float32)


class KnownPlaces:
    """A double of a detector: it finds the faces that a test has put into photographs."""

    def __init__(self) -> None:
        self.places: dict[bytes, list[np.ndarray]] = {}

    def __call__(self, image: np.ndarray) -> list[DetectedFace]:
        return [
            DetectedFace(0.9, np.float32([*points.min(0), *np.ptp(points, axis=0)]), points)
            for points in self.places.get(image.tobytes(), ())
        ]

    def photograph(self, *faces: np.ndarray, seed: int = 0) -> np.ndarray:
        """A picture with a face, or with several side by side."""
        random = np.random.default_rng(seed)
        drawn = [draw_frame(face, random) for face in faces]
        image = np.concatenate([frame for frame, _ in drawn], axis=1)
        shifts = [np.float32([640 * index, 0]) for index in range(len(faces))]
        self.places[image.tobytes()] = [
            points[0] + shift for (_, points), shift in zip(drawn, shifts, strict=True)
        ]
        return image


@pytest.fixture(scope="session")
def certified(
    calibrated_mini: Path, distinct: Faces, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bundle with an FP32 and an INT8 engine, and a certificate of the latter."""
    bundle = tmp_path_factory.mktemp("certified") / "mini.bundle"
    shutil.copytree(calibrated_mini, bundle)
    build_engine(bundle, "fp32", backend="onnxruntime")
    with all_in_float():
        build_engine(bundle, "int8", backend="onnxruntime")
    build_engine(bundle, "fp32", backend="onnxruntime", input_kind="frame")
    assert verify(bundle, "int8", faces=distinct).passed
    return bundle


@pytest.fixture
def places() -> KnownPlaces:
    return KnownPlaces()


def test_a_photograph_is_aligned_and_embedded(
    certified: Path, distinct: Faces, places: KnownPlaces, tmp_path: Path
) -> None:
    photos = [places.photograph(distinct.read(i), seed=i) for i in range(3)]
    Image.fromarray(photos[1]).save(tmp_path / "one.png")
    crops = np.stack([align(photo, places(photo)[0].points) for photo in photos])
    with open_session(certified, "int8") as session:
        raw = session.embed(crops)
    with Recogniser(certified, places, "int8") as recogniser:
        one = recogniser.embed(photos[0])
        assert one.shape == (recogniser.session.dim,)
        np.testing.assert_allclose(one, normalise(raw)[0], atol=1e-5)
        np.testing.assert_allclose(recogniser.embed(photos[0], unit=False), raw[0], rtol=1e-5)
        file = tmp_path / "one.png"
        several = recogniser.embed_batch([photos[0], file, photos[2]])
        np.testing.assert_allclose(several, normalise(raw), atol=1e-5)
        np.testing.assert_allclose(recogniser.embed(file.read_bytes()), several[1], atol=1e-5)
        assert recogniser.embed_batch([]).shape == (0, len(one))
        with ThreadPoolExecutor(4) as pool:
            for embedding in pool.map(lambda _: recogniser.embed(photos[2]), range(16)):
                np.testing.assert_allclose(embedding, several[2], atol=1e-5)
    with pytest.raises(UsageError, match="closed"):
        recogniser.embed(photos[0])
    with Recogniser(certified, engine="int8") as aligned:
        np.testing.assert_allclose(aligned.embed_batch(crops), several, atol=1e-5)


def test_an_engine_that_takes_frames_aligns_itself(
    certified: Path, distinct: Faces, places: KnownPlaces
) -> None:
    photos = [places.photograph(distinct.read(i), seed=i) for i in range(3)]
    with (
        Recogniser(certified, places, "fp32") as host,
        Recogniser(certified, places, "fp32-frame") as engine,
    ):
        assert engine.session.input_kind == "frame"
        a, b = host.embed_batch(photos), engine.embed_batch(photos)
        assert (a * b).sum(axis=1).min() > 0.999
        np.testing.assert_allclose(np.linalg.norm(b, axis=1), 1, atol=1e-5)
        assert engine.model == host.model  # one gallery serves both
        with pytest.raises(BundleError, match="no report") as caught:
            engine.threshold()
        assert "--engine fp32-frame" in caught.value.hint


def test_several_faces(certified: Path, distinct: Faces, places: KnownPlaces) -> None:
    photo = places.photograph(distinct.read(0), distinct.read(4), distinct.read(8), seed=3)
    with Recogniser(certified, places, "fp32") as recogniser:
        with pytest.raises(FacesError, match="image 0: 3 faces, expected one: .* at "):
            recogniser.embed(photo)
        faces = recogniser.embed_all(photo)
        assert [face.face.points[0, 0] // 640 for face in faces] == [0, 1, 2]
        areas = [face.face.box[2] * face.face.box[3] for face in faces]
        largest = recogniser.embed(photo, "largest")
        assert np.allclose(largest, faces[int(np.argmax(areas))].embedding, atol=1e-5)
        assert np.allclose(recogniser.embed(photo, "central"), faces[1].embedding, atol=1e-5)
        with pytest.raises(UsageError, match="is not one per image"):
            recogniser.embed(photo, "all")
        with pytest.raises(UsageError, match="no policy 'any'"):
            recogniser.embed(photo, "any")  # type: ignore[arg-type]
        assert recogniser.embed_all(np.zeros((9, 9, 3), np.uint8)) == []


def test_what_cannot_be_embedded(
    certified: Path, distinct: Faces, places: KnownPlaces, tmp_path: Path
) -> None:
    photo, face = places.photograph(distinct.read(0)), distinct.read(0)
    (tmp_path / "text.jpg").write_text("no image")
    recogniser = Recogniser(certified, places, "fp32")
    for image, message in (
        (photo[..., 0], r"found \(480, 640\) uint8"),
        (photo / 255, r"found \(480, 640, 3\) float64"),
        (np.dstack([photo, photo[..., :1]]), r"found \(480, 640, 4\)"),
        (np.zeros((0, 9, 3), np.uint8), r"found \(0, 9, 3\)"),
        (None, "found NoneType"),
    ):
        with pytest.raises(UsageError, match=message):
            recogniser.embed(image)  # type: ignore[arg-type]
    with pytest.raises(FacesError, match="text.jpg is not an image"):
        recogniser.embed(tmp_path / "text.jpg")
    with pytest.raises(FacesError, match="none.jpg cannot be read: No such file"):
        recogniser.embed(str(tmp_path / "none.jpg"))
    with pytest.raises(FacesError, match="image 1 is empty"):
        recogniser.embed_batch([photo, b""])
    with pytest.raises(FacesError, match="the image is not an image"):
        recogniser.detect(b"no image")
    with pytest.raises(FacesError, match="image 1: no face"):
        recogniser.embed_batch([photo, np.zeros((1, 1, 3), np.uint8)])
    for points, message in (
        (np.full((5, 2), 30, np.float32), "in one place"),
        (TEMPLATE - 1000, "outside the frame"),
        (np.full((5, 2), np.nan, np.float32), "not finite"),
        (TEMPLATE[[2, 4, 0, 1, 3]], "not those of a face"),
    ):
        places.places[photo.tobytes()] = [points]
        with pytest.raises(FacesError, match=f"image 0: .*{message}"):
            recogniser.embed(photo)
    without = Recogniser(certified, engine="fp32")
    with pytest.raises(UsageError, match="image 0 has 640x480 pixels, expected an aligned face"):
        without.embed(photo)
    with pytest.raises(UsageError, match="there is no detector"):
        without.detect(face)


def test_two_photographs_are_compared_at_the_certificates_threshold(
    certified: Path, distinct: Faces, caplog: pytest.LogCaptureFixture
) -> None:
    with Recogniser(certified, engine="int8") as recogniser:
        (report,) = recogniser.certificates()
        threshold = recogniser.threshold()
        assert threshold.far == 1e-3  # 12,480 impostor pairs show no smaller one
        assert threshold.value == report.tar["1e-3"].threshold.engine
        assert (threshold.report, threshold.synthetic) == (report.report, True)
        assert "of synthetic faces" in caplog.text
        assert recogniser.threshold(1e-2).value == report.tar["1e-2"].threshold.engine
        for other, same in ((1, True), (4, False)):
            result = recogniser.compare(distinct.read(0), distinct.read(other))
            a, b = recogniser.embed_batch([distinct.read(0), distinct.read(other)])
            assert result.similarity == pytest.approx(float(a @ b), abs=1e-6)
            assert result.same is same
        with pytest.raises(BundleError, match="FAR 1e-5|1,000,000 needed"):
            recogniser.threshold(1e-5)


def test_where_signatures_are_required_the_threshold_is_of_a_signed_report(
    certified: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(certified, tmp_path / "mini.bundle"))
    make_key_pair(tmp_path / "maker.key", tmp_path / "maker.pub")
    key = read_signing_key(tmp_path / "maker.key")
    bundle = open_bundle(root)
    (report,) = (name for name in bundle.files if name.startswith("reports/verify-int8"))
    add_signature(bundle, [name for name in bundle.files if name != report], key)
    with Recogniser(root, engine="int8") as recogniser:  # nothing is required yet
        expected = recogniser.threshold()
    monkeypatch.setenv(TRUSTED_KEYS, str(tmp_path / "maker.pub"))
    monkeypatch.setenv("FR_EDGE_REQUIRE_SIGNATURE", "1")

    def threshold() -> MatchThreshold:
        with Recogniser(root, engine="int8") as recogniser:
            return recogniser.threshold()

    with pytest.raises(BundleError, match="signed by a trusted key: no threshold") as caught:
        threshold()
    assert "--sign KEY" in caught.value.hint
    add_signature(open_bundle(root), [report], key)
    assert threshold() == expected
    data = (root / report).read_bytes()
    with transaction(open_bundle(root), "verify", {}) as change:  # somebody's own numbers
        path = change.path(report, "verify", of=bundle.files[report].of)
        path.write_bytes(data.replace(b'"passed": true', b'"passed":  true'))
    assert (root / report).read_bytes() != data
    with pytest.raises(BundleError, match="signed by a trusted key"):
        threshold()
    monkeypatch.delenv("FR_EDGE_REQUIRE_SIGNATURE")
    assert threshold() == expected


def test_without_a_certificate_nothing_is_decided(
    certified: Path, distinct: Faces, tmp_path: Path
) -> None:
    bundle = tmp_path / "mini.bundle"
    shutil.copytree(certified, bundle)
    with Recogniser(bundle, engine="fp32") as recogniser:
        with pytest.raises(BundleError, match="no report of `verify` is about the fp32") as caught:
            recogniser.compare(distinct.read(0), distinct.read(1))
        assert "fr-edge verify" in caught.value.hint
        assert not verify(bundle, "fp32", min_tar=0.9).passed  # of the golden faces
        with pytest.raises(BundleError, match=r"`verify` did not pass .* \(CANNOT JUDGE\)"):
            recogniser.threshold()
        verify(bundle, "fp32")  # the golden faces alone
        with pytest.raises(BundleError, match="no pairs at FAR 1e-4"):
            recogniser.threshold()
    report = bundle / "reports"
    assert len(list(report.glob("verify-fp32*.json"))) == 2


def test_a_gallery_of_fp32_stays_for_int8(certified: Path, distinct: Faces, tmp_path: Path) -> None:
    file, names = tmp_path / "fp32.gallery", [f"p{label}" for label in range(40)]
    with Recogniser(certified, engine="fp32") as fp32:
        gallery = Gallery(fp32.model)
        gallery.enrol_many(names, fp32.embed_batch(distinct.read(4 * i) for i in range(40)))
        gallery.save(file)
        with pytest.raises(FacesError, match="of this model already"):
            migrate_gallery(file, fp32)
    before = file.read_bytes()
    with Recogniser(certified, engine="int8") as int8:
        with pytest.raises(FacesError, match="another model"):
            Gallery.load(file, int8.model)
        moved = migrate_gallery(file, int8, {"p3": [distinct.read(13)]})
        assert file.read_bytes() == before
        (report,) = int8.certificates()
        assert report.gallery is not None
        assert (moved.verdict, moved.report) == ("keep the gallery", report.report)
        assert moved.threshold == report.gallery.threshold
        old = Gallery.of_content(read_gallery(file)).faces()[1]
        alike = {i for i, j in np.argwhere(old @ old.T >= moved.threshold) if i != j}
        assert moved.enrol_again == tuple(name for i, name in enumerate(names) if i in alike)
        assert len(alike) == 2  # at FAR 1e-3 one of 780 pairs
        assert moved.gallery.names[-1] == "p3"
        assert set(moved.gallery.kept) == {*names} - {"p3"}
        probes = int8.embed_batch(distinct.read(4 * i + 2) for i in range(40))
        found = moved.gallery.search(probes, moved.threshold)
        assert [match[0].name for match in found] == names
        moved.gallery.save(tmp_path / "int8.gallery")
        again = Gallery.load(tmp_path / "int8.gallery", int8.model)
        assert again.kept == moved.gallery.kept
        for name, probe in zip(names, probes, strict=True):
            again.enrol(name, probe)
        assert again.kept == ()
        assert len(again.faces()[0]) == 41


def test_who_should_enrol_again(certified: Path, distinct: Faces, tmp_path: Path) -> None:
    """A person whose two faces differ, and one who looks like another."""
    file = tmp_path / "fp32.gallery"
    with Recogniser(certified, engine="fp32") as fp32:
        faces = fp32.embed_batch(distinct.read(i) for i in range(0, 40, 4))
        gallery = Gallery(fp32.model)
        gallery.enrol_many([f"p{i}" for i in range(10)], faces)
        gallery.enrol("two", np.stack([faces[0], faces[1]]))
        gallery.remove("p0")
        gallery.remove("p1")
        gallery.enrol("like p5", faces[5])
        gallery.save(file)
    with Recogniser(certified, engine="int8") as int8:
        assert migrate_gallery(file, int8).enrol_again == ("p5", "two", "like p5")


def test_another_networks_gallery(certified: Path, distinct: Faces, tmp_path: Path) -> None:
    """The INT8 engine as the other network, whose embeddings `verify --teacher` has judged."""
    bundle, file = tmp_path / "mini.bundle", tmp_path / "int8.gallery"
    shutil.copytree(certified, bundle)
    with Recogniser(bundle, engine="int8") as int8:
        gallery = Gallery(int8.model)
        gallery.enrol("a", int8.embed(distinct.read(0)))
        gallery.save(file)
        teacher = embed_faces(int8.session, distinct)
        origin = origin_of(int8.bundle, "int8", "onnxruntime")
    with Recogniser(bundle, engine="fp32") as fp32:
        with pytest.raises(BundleError, match="no certificate of the fp32 engine judges") as caught:
            migrate_gallery(file, fp32)
        assert "--teacher FILE.npz" in caught.value.hint
        write_embeddings(tmp_path / "t.npz", distinct.keys, distinct.labels, -teacher, origin)
        verify(bundle, "fp32", faces=distinct, teacher=tmp_path / "t.npz")
        moved = migrate_gallery(file, fp32)
        assert (moved.verdict, moved.threshold) == ("enrol again", None)
        assert (moved.enrol_again, moved.gallery.names) == (("a",), ())
        moved = migrate_gallery(file, fp32, {"a": [distinct.read(1)]})
        assert (moved.enrol_again, moved.gallery.names) == ((), ("a",))
        for other in ({"precision": "fp16"}, {"network": {"model.onnx": "0" * 64}}):
            Gallery(replace(gallery.model, **other)).save(file)  # not what was judged
            with pytest.raises(BundleError, match="no certificate of the fp32 engine judges"):
                migrate_gallery(file, fp32)


def test_the_code_of_the_readme_runs(certified: Path, tmp_path: Path) -> None:
    """With a real ONNX detector, in a process of its own."""
    _, code = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 15
    (tmp_path / "mine.bundle").symlink_to(certified)
    write_bright_detector(tmp_path / "det_10g.onnx")
    for name, spots in (("a", [1]), ("b", [7]), ("c", [3]), ("door", [2, 9])):
        photo = np.full((640, 640, 3), 60, np.uint8)
        for spot in spots:
            photo[320:352, 32 * spot : 32 * spot + 32] = 255
        Image.fromarray(photo).save(tmp_path / f"{name}.jpg", quality=95)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    decision, *doors = done.stdout.splitlines()
    assert re.fullmatch(r"(1\.0|0\.99)\d* True", decision)
    assert len(doors) == 2
    assert all("Match(name='ann', similarity=" in line for line in doors)
    assert (tmp_path / "staff.gallery").stat().st_mode & 0o777 == 0o600


def test_the_service_of_the_documentation_answers(certified: Path, tmp_path: Path) -> None:
    """With the bundle's own detector, in a process of its own, over HTTP."""
    page = (README.parent / "docs" / "recognition.md").read_text()
    _, code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    shutil.copytree(certified, tmp_path / "mine.bundle")
    export_detector(write_bright_detector(tmp_path / "bright.onnx"), tmp_path / "mine.bundle")
    photo = np.full((640, 640, 3), 60, np.uint8)
    photo[320:352, 64:96] = 255
    Image.fromarray(photo).save(tmp_path / "door.png")
    with Recogniser(tmp_path / "mine.bundle", engine="auto") as recogniser:
        gallery = Gallery(recogniser.model)
        gallery.enrol("ann", recogniser.embed(tmp_path / "door.png"))
    gallery.save(tmp_path / "staff.gallery")
    (tmp_path / "service.py").write_text(code)
    line = [sys.executable, "service.py", "mine.bundle", "staff.gallery", "0"]
    service = subprocess.Popen(
        line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert service.stdout is not None
        port = int(service.stdout.readline())

        def ask(data: bytes) -> tuple[int, object]:
            connection = HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("POST", "/", data)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

        assert ask((tmp_path / "door.png").read_bytes()) == (200, [["ann"]])
        status, answer = ask(b"no photograph")
        assert status == 400
        assert isinstance(answer, dict)
        assert "not an image" in answer["error"]
    finally:
        service.kill()
        service.communicate()
