"""Photographs of people through a bundle's own detector, from the command line and the library."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bright_detector import write_conv_detector
from PIL import Image

from fr_edge.cli.main import run
from fr_edge.errors import UsageError
from fr_edge.faces.align import align
from fr_edge.faces.detect import open_detector
from fr_edge.faces.sources import open_faces
from fr_edge.runtime.recognition.recogniser import Recogniser

Captured = pytest.CaptureFixture[str]
PEOPLE, EACH = 24, 3


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
    """A folder per person with three photographs each; one person has one without a face too."""
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


def verified(
    capsys: Captured, bundle: Path, people: Path, *more: str
) -> tuple[int, dict[str, Any]]:
    gates = ["--far", "0.1", "--max-tar-drop", "0.3", "--max-detector-recall-loss", "0.2"]
    return result_of(capsys, ["verify", str(bundle), "--photos", str(people), *gates, *more])


def test_the_chain_is_judged_step_by_step(
    with_detector: Path, people: Path, tmp_path: Path, capsys: Captured
) -> None:
    bundle = tmp_path / "mini.bundle"
    shutil.copytree(with_detector, bundle)
    build = ["build-engine", str(bundle), "--fp32", "--input", "frame", "--backend", "onnxruntime"]
    assert run([*build, "-q"]) == 0
    code, result = verified(capsys, bundle, people)
    assert (code, result["verdict"], result["detector_engine"]) == (0, "PASSED", "int8")
    counts, drift = result["photographs"], result["detection"]
    assert counts == {
        "all": PEOPLE * EACH + 1, "reference": PEOPLE * EACH, "engine": PEOPLE * EACH,
        "missed": 0, "unreadable": 0, "compared": PEOPLE * EACH,
    }  # fmt: skip
    assert (drift["faces"], drift["missed"], drift["added"]) == (PEOPLE * EACH, 0, 0)
    assert 0 < drift["shift"]["median"] < 0.5
    assert [step["step"] for step in result["steps"]] == ["detection", "network"]
    changes = [step["tar"]["1e-1"]["delta"] for step in result["steps"]]
    assert sum(changes) == pytest.approx(result["tar"]["1e-1"]["delta"], abs=1e-9)
    assert result["tar_with_missed"]["1e-1"] == result["tar"]["1e-1"]["engine"]
    stored = json.loads((bundle / result["report"]).read_text())
    assert stored["provenance"]["files"]["detector.json"]
    assert stored["detector"]["sha256"] in (bundle / "bundle.json").read_text()
    code, framed = verified(capsys, bundle, people, "--engine", "fp32-frame")
    steps = {step["step"]: step for step in framed["steps"]}
    assert list(steps) == ["detection", "network", "alignment"]
    assert steps["alignment"]["min_cosine"] > 0.999
    assert steps["network"]["min_cosine"] > 0.99999
    assert run(["report", str(bundle), "-q"]) == 0
    page = (bundle / "report.html").read_text()
    assert "From a photograph to a decision: INT8 with SCRFD in INT8" in page
    assert run(["inspect", str(bundle)]) == 0
    assert f"{PEOPLE * EACH} photographs of {PEOPLE} people" in capsys.readouterr().out
    same = [str(bundle / result["report"])] * 2
    assert run(["compare", *same]) == 0
    assert "median shift of the landmarks" in capsys.readouterr().out
    # Another detector: the report stays, as one of earlier files.
    file = write_conv_detector(tmp_path / "other.onnx", bytes_in=True)
    assert run(["export", str(file), "--role", "detector", "--out", str(bundle), "-q"]) == 0
    rows = result_of(capsys, ["inspect", str(bundle)])[1]["reports"]
    assert all(row["stale"] for row in rows if row["file"] == result["report"])


def test_missed_faces_and_moved_landmarks_fail(
    with_detector: Path, people: Path, tmp_path: Path, capsys: Captured
) -> None:
    """A detector engine that is worse than its FP32 model: its file is replaced by another one's."""
    bundle = tmp_path / "mini.bundle"
    shutil.copytree(with_detector, bundle)
    code, result = verified(capsys, bundle, people, "--max-landmark-shift", "0.0001")
    assert (code, result["verdict"]) == (1, "FAILED")
    assert "landmarks" in result["reasons"][0]["reason"]
    (tmp_path / "few").mkdir()
    shutil.copytree(people / "p01", tmp_path / "few" / "p01")
    code, result = verified(capsys, bundle, tmp_path / "few")
    assert (code, result["verdict"]) == (1, "CANNOT JUDGE")
    assert result["tar"] == {}


def test_frames_are_timed_step_by_step(
    with_detector: Path, people: Path, tmp_path: Path, capsys: Captured
) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    bundle = tmp_path / "mini.bundle"
    shutil.copytree(with_detector, bundle)
    line = ["benchmark", str(bundle), "--photos", str(people), "--engine", "int8"]
    line += ["--frame-faces", "1,6", "--frame-size", "320x640", "--gallery", "100"]
    code, result = result_of(capsys, [*line, "--duration", "0.2"])
    schema = Path(__file__).parents[2] / "docs" / "benchmark.schema.json"
    checker = jsonschema.Draft202012Validator(json.loads(schema.read_text()))
    assert [error.message for error in checker.iter_errors(result)] == []
    assert list(checker.iter_errors({**result, "gallery": None}))
    assert (code, result["verdict"]) == (1, "INVALID")  # of a fifth of a second
    for run_, faces in zip(result["frames"], (1, 6), strict=True):
        assert run_["faces"] == faces
        assert any("too short" in reason for reason in run_["reasons"])
        steps = run_["steps_ms"]
        assert list(steps) == ["decode", "detect", "align", "embed", "match"]
        assert 0.5 < sum(steps.values()) / run_["latency_ms"]["p50"] < 1.5
        assert run_["frames_per_s"] == pytest.approx(1e3 / run_["latency_ms"]["mean"], rel=0.01)
        missing = [r for r in run_["reasons"] if "the detector finds" in r]
        assert bool(missing) == (run_["found"] != faces)
    assert run(["report", str(bundle), "-q"]) == 0
    assert (
        "Frames per second: INT8 on onnxruntime with SCRFD" in (bundle / "report.html").read_text()
    )
    assert run(["compare", *[str(bundle / result["report"])] * 2]) == 0
    assert "frames of 6 faces p50 ms" in capsys.readouterr().out
