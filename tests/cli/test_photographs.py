"""Photographs of people through a bundle's own detector, from the command line and the library."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bright_detector import write_conv_detector
from PIL import Image

from fr_edge.bundle.bundle import transaction
from fr_edge.cli.main import run
from fr_edge.errors import FacesError, UsageError
from fr_edge.faces.align import align
from fr_edge.faces.detect import open_detector
from fr_edge.faces.sources import open_faces
from fr_edge.runtime.recognition.recogniser import Recogniser

Captured = pytest.CaptureFixture[str]
PEOPLE, EACH = 24, 2


def draw_photograph(face: np.ndarray, random: np.random.Generator, cells: int = 1) -> np.ndarray:
    """A dark picture of a person, whose face is around a bright cell of 32 pixels."""
    image = np.full((160, 224 * cells, 3), 20, np.uint8)
    for number in range(cells):
        left = 64 + 224 * number
        image[24:136, left - 8 : left + 104] = face * 0.45
        image[64:96, left + 32 : left + 64] = 250
    noisy = image + random.normal(0, 2, image.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per person with two photographs each; one person has one without a face too."""
    folder, random = tmp_path_factory.mktemp("album"), np.random.default_rng(0)
    drawn = open_faces(f"synthetic:{PEOPLE}x1@9")
    for person in range(PEOPLE):
        (folder / f"p{person:02}").mkdir()
        for number in range(EACH):
            photograph = draw_photograph(drawn.read(person), random)
            Image.fromarray(photograph).save(folder / f"p{person:02}" / f"{number}.png")
    Image.fromarray(np.full((96, 96, 3), 10, np.uint8)).save(folder / "p00" / "nobody.png")
    return folder


@pytest.fixture(scope="module")
def with_detector(built: Path, people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a detector, made by the commands that a user types."""
    folder = tmp_path_factory.mktemp("board")
    shutil.copytree(built, folder / "mini.bundle")
    file, bundle = write_conv_detector(folder / "bright.onnx"), str(folder / "mini.bundle")
    assert run(["export", str(file), "--role", "detector", "--out", bundle, "-q"]) == 0
    for line in (
        ["calibrate", bundle, "--role", "detector", "--faces", str(people)],
        ["build-engine", bundle, "--role", "detector", "--int8", "--backend", "onnxruntime"],
    ):
        assert run([*line, "-q"]) == 0
    return folder / "mini.bundle"


def result_of(capsys: Captured, line: list[str]) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = run([*line, "--json", "-q"])
    return code, json.loads(capsys.readouterr().out)


def test_photographs_are_embedded_with_the_bundles_detector(
    with_detector: Path, people: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "album.npz"
    line = ["embed", str(with_detector), "--photos", str(people), "--out", str(out)]
    code, result = result_of(capsys, line)
    assert (code, result["faces"], result["identities"]) == (0, PEOPLE * EACH, PEOPLE)
    with np.load(out) as stored:
        embeddings, keys = stored["embeddings"], list(stored["keys"])
    assert "p00/nobody.png" not in keys
    detect = open_detector(with_detector.parent / "bright.onnx")
    with Recogniser(with_detector) as own, Recogniser(with_detector, aligned=True) as aligned:
        photograph = np.asarray(Image.open(people / keys[5]))
        row = embeddings[5] / np.linalg.norm(embeddings[5])
        np.testing.assert_allclose(own.embed(people / keys[5]), row, atol=1e-4)
        (face,) = detect(photograph)
        assert float(own.embed(photograph) @ aligned.embed(align(photograph, face.points))) > 0.99
    with pytest.raises(UsageError, match="no detector"):
        Recogniser(with_detector, detect, aligned=True)


def test_evaluate_takes_photographs(with_detector: Path, people: Path, capsys: Captured) -> None:
    line = ["evaluate", str(with_detector), "--photos", str(people), "--engine", "fp32"]
    code, result = result_of(capsys, line)
    assert code == 0
    assert result["protocol"]["faces"] == PEOPLE * EACH
    judged = result["provenance"]["files"]
    assert {"detector.json", "engines/onnxruntime-int8-detector.onnx"} <= set(judged)


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        (["embed", "B", "--out", "x.npz"], 2, "--faces SRC or --photos DIR"),
        (["embed", "B", "--out", "x.npz", "--faces", "P", "--photos", "P"], 2, "or --photos"),
        (["embed", "B", "--out", "x.npz", "--photos", "nowhere"], 4, "no folder nowhere"),
        (["embed", "PLAIN", "--out", "x.npz", "--photos", "P"], 4, "--role detector"),
        (["evaluate", "B", "--photos", "EMPTY"], 4, "holds no images"),
        (["evaluate", "B"], 2, "--protocol FILE|DIR or --photos DIR"),
        (["export", "UNKNOWN", "--role", "detector", "--out", "B"], 4, "no known layout"),
        (["export", "UNKNOWN", "--role", "detector", "--out", "NEW"], 4, "face network"),
        (["export", "UNKNOWN", "--min-score", "0.5", "--out", "B"], 2, "--role detector"),
        (["build-engine", "B", "--role", "detector", "--fp8"], 2, "FP32, FP16 and INT8"),
        (["build-engine", "PLAIN", "--role", "detector", "--int8"], 4, "--role detector"),
        (["calibrate", "B", "--role", "detector", "--faces", "EMPTY"], 4, "holds no images"),
        (
            ["calibrate", "B", "--role", "detector", "--faces", "P", "--method", "mse"],
            2,
            "--method",
        ),
        (["verify", "B", "--photos", "nowhere"], 4, "no folder nowhere"),
        (["verify", "B", "--photos", "EMPTY"], 4, "holds no images"),
        (["verify", "B", "--photos", "BLACK"], 4, "none of 1 photographs"),
        (["verify", "PLAIN", "--photos", "P"], 4, "--role detector"),
        (["verify", "B", "--photos", "P", "--faces", "P"], 2, "--faces does not go"),
        (["verify", "B", "--max-landmark-shift", "1"], 2, "need --photos"),
        (["verify", "B", "--photos", "P", "--max-landmark-shift", "-1"], 2, "above 0"),
        (["verify", "B", "--photos", "P", "--detector-engine", "fp16"], 4, "no fp16 engine"),
        (["benchmark", "B", "--photos", "EMPTY"], 4, "holds no images"),
        (["benchmark", "B", "--photos", "BLACK"], 4, "finds no face"),
        (["benchmark", "B", "--photos", "P", "--frame-faces", "500"], 2, "1 to 100"),
        (["benchmark", "B", "--photos", "P", "--gallery", "0"], 2, "1,000,000"),
        (["benchmark", "B", "--photos", "P", "--frame-size", "1x1"], 2, "64 to 8192"),
        (["benchmark", "B", "--photos", "P", "--frame-size", "big"], 2, "such as 1080x1920"),
        (["benchmark", "B", "--photos", "P", "--batch", "8"], 2, "--batch does not go"),
        (["benchmark", "B", "--gallery", "10"], 2, "need --photos"),
    ],
)
def test_bad_input_is_a_line(
    line: list[str],
    code: int,
    message: str,
    with_detector: Path,
    built: Path,
    network: Path,
    people: Path,
    tmp_path: Path,
    capsys: Captured,
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "black").mkdir()
    Image.fromarray(np.zeros((90, 90, 3), np.uint8)).save(tmp_path / "black" / "0.png")
    names = {
        "BLACK": tmp_path / "black",
        "B": with_detector,
        "PLAIN": built,
        "P": people,
        "EMPTY": tmp_path / "empty",
        "UNKNOWN": network,
        "NEW": tmp_path / "new.bundle",
        "x.npz": tmp_path / "x.npz",
    }
    capsys.readouterr()
    assert run([str(names.get(part, part)) for part in line]) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "x.npz").exists()


@pytest.fixture(scope="module")
def board(with_detector: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with an engine that takes frames; reports gather in it."""
    bundle = tmp_path_factory.mktemp("judged") / "mini.bundle"
    shutil.copytree(with_detector, bundle)
    build = ["build-engine", str(bundle), "--fp32", "--input", "frame", "--backend", "onnxruntime"]
    assert run([*build, "-q"]) == 0
    return bundle


def verified(
    capsys: Captured, bundle: Path, people: Path, *more: str
) -> tuple[int, dict[str, Any]]:
    gates = ["--far", "0.1", "--max-tar-drop", "0.3", "--max-detector-recall-loss", "0.2"]
    return result_of(capsys, ["verify", str(bundle), "--photos", str(people), *gates, *more])


def test_the_chain_is_judged_step_by_step(board: Path, people: Path, capsys: Captured) -> None:
    code, result = verified(capsys, board, people)
    assert (code, result["verdict"], result["detector_engine"]) == (0, "PASSED", "int8")
    assert result["photographs"] == {
        "all": PEOPLE * EACH + 1, "reference": PEOPLE * EACH, "engine": PEOPLE * EACH,
        "missed": 0, "unreadable": 0, "compared": PEOPLE * EACH,
    }  # fmt: skip
    drift = result["detection"]
    assert (drift["faces"], drift["missed"], drift["added"]) == (PEOPLE * EACH, 0, 0)
    assert 0 < drift["shift"]["median"] < 0.5
    assert [step["step"] for step in result["steps"]] == ["detection", "network"]
    changes = [step["tar"]["1e-1"]["delta"] for step in result["steps"]]
    assert sum(changes) == pytest.approx(result["tar"]["1e-1"]["delta"], abs=1e-9)
    assert result["tar_with_missed"]["1e-1"] == result["tar"]["1e-1"]["engine"]
    stored = json.loads((board / result["report"]).read_text())
    assert stored["provenance"]["files"]["detector.json"]
    assert stored["detector"]["sha256"] in (board / "bundle.json").read_text()
    assert "p00" not in json.dumps(stored)  # people's names


def test_alignment_in_the_engine_is_a_step_of_its_own(
    board: Path, people: Path, tmp_path: Path, capsys: Captured
) -> None:
    for person in ("p01", "p02"):
        shutil.copytree(people / person, tmp_path / "few" / person)
    (tmp_path / "policy.toml").write_text(
        "[int8]\nmin_tar = 0.1\n\n[fp32]\nmax_landmark_shift = 0.0001\n"
    )
    limit = ["--policy", str(tmp_path / "policy.toml")]
    few = tmp_path / "few"
    code, result = verified(capsys, board, few, "--engine", "fp32-frame", *limit)
    assert (code, result["verdict"]) == (1, "FAILED")
    assert any("landmarks" in reason["reason"] for reason in result["reasons"])
    steps = {step["step"]: step for step in result["steps"]}
    assert list(steps) == ["detection", "network", "alignment"]
    assert steps["alignment"]["min_cosine"] > 0.999
    assert steps["network"]["min_cosine"] > 0.99999
    assert steps["detection"]["min_cosine"] < 0.99999  # INT8 moves the landmarks
    shutil.rmtree(few / "p02")
    code, result = verified(capsys, board, few)
    assert (code, result["verdict"], result["tar"]) == (1, "CANNOT JUDGE", {})
    assert "give 16 photographs" in result["reasons"][0]["cure"]  # 1.96 ** 2 * 0.8 / 0.2


def timed_frames(capsys: Captured, bundle: Path, people: Path) -> tuple[int, dict[str, Any]]:
    line = ["benchmark", str(bundle), "--photos", str(people), "--engine", "int8"]
    line += ["--frame-faces", "1,6", "--frame-size", "320x640", "--gallery", "100"]
    return result_of(capsys, [*line, "--duration", "0.1"])


def test_frames_are_timed_step_by_step(board: Path, people: Path, capsys: Captured) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    code, result = timed_frames(capsys, board, people)
    schema = Path(__file__).parents[2] / "docs" / "benchmark.schema.json"
    checker = jsonschema.Draft202012Validator(json.loads(schema.read_text()))
    assert [error.message for error in checker.iter_errors(result)] == []
    assert list(checker.iter_errors({**result, "gallery": None}))
    assert (code, result["verdict"]) == (1, "INVALID")  # of a tenth of a second
    for timed, faces in zip(result["frames"], (1, 6), strict=True):
        assert timed["faces"] == faces
        assert any("too short" in reason for reason in timed["reasons"])
        assert min(timed["steps_ms"].values()) > 0
        assert timed["frames_per_s"] == pytest.approx(1e3 / timed["latency_ms"]["mean"], rel=0.01)
        missing = [r for r in timed["reasons"] if "the detector finds" in r]
        assert bool(missing) == (timed["found"] != faces)


def test_reports_are_shown_and_belong_to_the_detector(
    board: Path, people: Path, tmp_path: Path, capsys: Captured
) -> None:
    verified(capsys, board, people)
    timed_frames(capsys, board, people)
    assert run(["report", str(board), "-q"]) == 0
    page = (board / "report.html").read_text()
    assert "From a photograph to a decision: INT8 with SCRFD in INT8" in page
    assert "Frames per second: INT8 on onnxruntime with SCRFD" in page
    inspected = result_of(capsys, ["inspect", str(board)])[1]
    assert inspected["detector"]["family"] == "SCRFD"
    rows = inspected["reports"]
    shown = [row for row in rows if "photographs" in row["faces"] or "frames" in row["faces"]]
    assert f"{PEOPLE * EACH} photographs of {PEOPLE} people" in {row["faces"] for row in shown}
    assert not any(row["stale"] for row in shown)
    for row, figure in zip(
        sorted(shown, key=lambda row: row["file"])[:2],
        ("frames of 6 faces p50 ms", ""),
        strict=True,
    ):
        assert run(["compare", *[str(board / row["file"])] * 2]) == 0
        assert figure in capsys.readouterr().out
    bundle = tmp_path / "mini.bundle"
    shutil.copytree(board, bundle)
    file = write_conv_detector(tmp_path / "other.onnx", bytes_in=True)
    assert run(["export", str(file), "--role", "detector", "--out", str(bundle), "-q"]) == 0
    stale = {
        row["file"]: row["stale"]
        for row in result_of(capsys, ["inspect", str(bundle)])[1]["reports"]
    }
    assert all(stale[row["file"]] for row in shown)


def test_a_float_detector_under_an_int8_detectors_name_fails(
    with_detector: Path, people: Path, tmp_path: Path, capsys: Captured
) -> None:
    """It finds every face, and is not what the page claims."""
    bundle, few = tmp_path / "mini.bundle", tmp_path / "few"
    shutil.copytree(with_detector, bundle)
    shutil.copytree(people / "p01", few / "p01")
    build = ["build-engine", str(bundle), "--role", "detector", "--fp32"]
    assert run([*build, "--backend", "onnxruntime", "-q"]) == 0
    name = "engines/onnxruntime-int8-detector.onnx"
    data = (bundle / name.replace("int8", "fp32")).read_bytes()
    facts = json.loads((bundle / f"{name}.json").read_text())
    facts |= {"sha256": hashlib.sha256(data).hexdigest()}
    with transaction(bundle, "tamper", {}) as change:
        change.path(name, "detector engine").write_bytes(data)
        change.path(f"{name}.json", "engine fingerprint").write_text(json.dumps(facts))
    code, result = verified(capsys, bundle, few)
    assert (code, result["verdict"]) == (1, "FAILED")
    says = "no layer of this engine computes in INT8"
    assert says in result["reasons"][0]["reason"]
    assert "--role detector --int8" in result["reasons"][0]["cure"]
    line = [
        "benchmark",
        str(bundle),
        "--photos",
        str(few),
        "--engine",
        "int8",
        "--frame-faces",
        "1",
    ]
    code, timed = result_of(capsys, [*line, "--gallery", "10", "--duration", "0.1"])
    assert any(says in reason for reason in timed["frames"][0]["reasons"])


def cells(*places: tuple[int, int], size: tuple[int, int] = (160, 224)) -> np.ndarray:
    """A dark picture with bright cells of 32 pixels, at rows and columns of such cells."""
    image = np.full((*size, 3), 20, np.uint8)
    for row, column in places:
        image[32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = 250
    return image


def test_photographs_of_every_kind(with_detector: Path, tmp_path: Path, capsys: Captured) -> None:
    one = Image.fromarray(cells((2, 3)))
    folder = tmp_path / "kinds"
    folder.mkdir()
    one.save(folder / "plain.png")
    one.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    one.convert("L").save(folder / "grey.png")
    one.convert("L").convert("I;16").save(folder / "dark16.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned clockwise by a quarter
    one.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", quality=95, exif=turned)
    dark = Image.fromarray(cells())
    one.save(folder / "moves.gif", save_all=True, append_images=[dark, dark])
    Image.fromarray(cells((0, 0))).save(folder / "corner.png")
    Image.new("RGB", (1, 1)).save(folder / "tiny.png")
    Image.new("RGB", (12_000, 40), (20, 20, 20)).save(folder / "wide.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not an image")
    twenty = [(2 * row, 3 * column) for row in range(4) for column in range(5)]
    Image.fromarray(cells(*twenty, size=(256, 480))).save(folder / "twenty.png")
    out = tmp_path / "kinds.npz"
    line = ["embed", str(with_detector), "--photos", str(folder), "--out", str(out)]
    code, result = result_of(capsys, line)
    with np.load(out) as stored:
        keys, rows = list(stored["keys"]), stored["embeddings"]
    assert (code, result["faces"]) == (0, len(keys))
    upright = {"plain.png", "cmyk.jpg", "grey.png", "turned.jpg", "moves.gif"}
    assert upright | {"corner.png", "twenty.png"} <= set(keys)
    assert not {"tiny.png", "wide.png", "broken.jpg"} & set(keys)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    plain = unit[keys.index("plain.png")]
    assert min(float(unit[keys.index(key)] @ plain) for key in upright) > 0.99
    with Recogniser(with_detector) as recogniser:
        assert len(recogniser.embed_all(folder / "twenty.png")) == 20
        with pytest.raises(FacesError, match="20 faces, expected one"):
            recogniser.embed(folder / "twenty.png")
        for name, message in (("tiny", "no face"), ("wide", "no face")):
            with pytest.raises(FacesError, match=message):
                recogniser.embed(folder / f"{name}.png")
        with pytest.raises(FacesError, match="damaged|cannot be read|not an image"):
            recogniser.embed(folder / "broken.jpg")
