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
    names = {
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
