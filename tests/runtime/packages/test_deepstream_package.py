"""DeepStream's numbers, recomputed by hand; and the alignment's arithmetic and the parsers, compiled for the CPU.

DeepStream itself is not on this machine, and face_alignment.cu is not compiled here.
"""

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pytest

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.cli.main import run
from fr_edge.errors import BundleError
from fr_edge.faces.align import align
from fr_edge.faces.contract import PRESETS, InputSpec, aligned_template
from fr_edge.faces.detect import open_detector
from fr_edge.faces.synthetic.render import draw_face
from fr_edge.inference import make_session
from fr_edge.runtime.frames import draw_frame
from fr_edge.runtime.packages.deepstream_config import nvinfer_numbers
from fr_edge.runtime.packages.package_draft import template_files, write_ppm
from fr_edge.runtime.packages.verify_package import verify_package

sys.path[:0] = [str(Path(__file__).parent)]
from detectors_of_two_families import write_two_detectors  # noqa: E402

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
Captured = pytest.CaptureFixture[str]


def page_command(start: str) -> list[str]:
    """The line of docs/deploy/deepstream.md that begins so, as words."""
    page = (ROOT / "docs" / "deploy" / "deepstream.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith(start)]
    return shlex.split(line, comments=True)


# By hand: 1 / 127.5, 1 / 1, 1 / 128, 1 / 255.
BY_HAND = [
    (PRESETS["insightface"], 0.0078431372549, "127.5;127.5;127.5", "0"),
    (PRESETS["adaface"], 0.0078431372549, "127.5;127.5;127.5", "1"),
    (
        InputSpec(mean=(104.0, 117.0, 123.0), std=(1.0,) * 3, channels="BGR"),
        1.0,
        "104;117;123",
        "1",
    ),
    (PRESETS["facenet"], 0.0078125, "127.5;127.5;127.5", "0"),
    (InputSpec(mean=(0.0,) * 3, std=(255.0,) * 3), 0.0039215686275, "0;0;0", "0"),
]


@pytest.mark.parametrize(("spec", "scale", "offsets", "color"), BY_HAND)
def test_numbers_are_those_computed_by_hand(
    spec: InputSpec, scale: float, offsets: str, color: str
) -> None:
    numbers = nvinfer_numbers(spec)
    assert float(numbers["scale"]) == pytest.approx(scale, rel=1e-10)
    assert (numbers["offsets"], numbers["color"]) == (offsets, color)


def test_contracts_that_nvinfer_cannot_express_are_refused() -> None:
    with pytest.raises(BundleError, match="divides each channel by another number"):
        nvinfer_numbers(PRESETS["imagenet"])
    with pytest.raises(BundleError, match="grey"):
        nvinfer_numbers(InputSpec(channels="GREY"))


@pytest.fixture(scope="module")
def made(calibrated_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of a bundle with what stands for a plan of a board."""
    home = tmp_path_factory.mktemp("deepstream")
    shutil.copytree(calibrated_mini, home / "mine.bundle")
    with transaction(open_bundle(home / "mine.bundle"), "build-engine", {}) as change:
        name = "engines/tensorrt-10.3.0-orin-int8.plan"
        change.path(name, "engine").write_bytes(b"not a plan")
        change.path(f"{name}.json", "fingerprint").write_text(json.dumps({"batch": [1, 8, 16]}))
    words = page_command("fr-edge package")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert run(words[1:]) == 0
    return home / words[-1]


def test_the_configuration_holds_the_contract_and_the_plan(made: Path) -> None:
    infer, preprocess = ConfigParser(), ConfigParser()
    infer.read(made / "embedder_infer.txt")
    preprocess.read(made / "preprocess.txt")
    properties = dict(infer["property"])
    assert properties["model-engine-file"] == "engines/tensorrt-10.3.0-orin-int8.plan"
    assert (made / properties["model-engine-file"]).read_bytes() == b"not a plan"
    assert float(properties["net-scale-factor"]) == pytest.approx(1 / 127.5)
    assert properties["offsets"] == "127.5;127.5;127.5"
    expected = {"batch-size": "16", "network-mode": "1", "infer-dims": "3;112;112"}
    expected |= {"output-tensor-meta": "1", "input-tensor-from-meta": "1"}
    assert expected.items() <= properties.items()
    assert "onnx-file" not in properties
    assert preprocess["property"]["network-input-shape"] == "16;3;112;112"
    template = [float(v) for v in preprocess["user-configs"]["template"].split(";")]
    assert template == pytest.approx(aligned_template(112).reshape(-1).tolist())


def test_the_numbers_prove_themselves_and_wrong_ones_fail(
    made: Path, tmp_path: Path, capsys: Captured
) -> None:
    result = verify_package(made)
    assert result.passed
    assert result.proofs[0].faces == 6
    assert any("DeepStream" in note for note in result.not_measured)
    shutil.copytree(made, tmp_path / "wrong")
    manifest = json.loads((made / "package.json").read_text())
    for name in ("embedder_infer.txt", "preprocess.txt"):
        path = tmp_path / "wrong" / name
        path.write_text(path.read_text().replace("=127.5;127.5;127.5", "=0;0;0"))
        manifest["files"][name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "wrong" / "package.json").write_text(json.dumps(manifest))
    assert run(["verify", "--package", str(tmp_path / "wrong")]) == 1
    assert "does not give the bundle's embeddings" in capsys.readouterr().err


def test_a_bundle_without_a_plan_is_refused(
    calibrated_mini: Path, tmp_path: Path, capsys: Captured
) -> None:
    words = ["package", str(calibrated_mini), "--for", "deepstream", "--engine", "int8"]
    assert run([*words, "--out", str(tmp_path / "p")]) == 4
    assert "--int8 --backend tensorrt" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here")
def test_faces_are_aligned_as_the_host_aligns_them(tmp_path: Path) -> None:
    header = template_files("deepstream")["face_alignment.h"]
    program = tmp_path / "align_here"
    words = [
        "c++",
        "-std=c++14",
        "-Wall",
        "-Werror",
        f"-I{header.parent}",
        str(HERE / "align_here.cpp"),
    ]
    subprocess.run([*words, "-o", str(program)], check=True)
    frame, points = draw_frame(draw_face(3, 0), np.random.default_rng(5))
    write_ppm(tmp_path / "frame.ppm", frame)
    for width, shift in ((112, 0), (96, 8)):  # the whole face, and cut at the centre
        target = aligned_template(112) - (shift, 0)
        numbers = [f"{v:.9g}" for v in (*points.reshape(-1), *target.reshape(-1))]
        call = [str(program), str(tmp_path / "frame.ppm"), str(width), "112"]
        done = subprocess.run([*call, *numbers], capture_output=True, check=True)
        own = np.frombuffer(done.stdout, np.uint8).reshape(112, width, 3)
        expected = align(frame, points[0])[:, shift : shift + width]
        difference = np.abs(own.astype(int) - expected)
        assert (difference > 0).mean() < 0.005
        assert difference.max() <= 9  # 1/32 of a pixel across a hard edge
    same = subprocess.run([*call, *["7"] * 10, *numbers[10:]], capture_output=True, check=False)
    assert same.returncode == 3  # landmarks in one place


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here")
def test_parsers_attach_the_hosts_landmarks_to_the_hosts_faces(tmp_path: Path) -> None:
    """On what two detectors gave, each output as a list of cells; the header is a double."""
    source = template_files("deepstream")["face_parsers.cpp"]
    program = tmp_path / "parse_here"
    words = ["c++", "-std=c++20", "-Wall", "-Wextra", "-Werror", f"-I{HERE / 'deepstream_double'}"]
    words += [str(HERE / "parse_here.cpp"), str(source), "-o", str(program)]
    subprocess.run(words, check=True)
    photo = np.full((192, 320, 3), 60, np.uint8)  # taken as it is
    photo[32:64, 64:96] = 255
    for path, parser in zip(
        write_two_detectors(tmp_path), ("ParseScrfd", "ParseYuNet"), strict=True
    ):
        detector = open_detector(path)
        pixels = photo.astype(np.float32).transpose(2, 0, 1)[None]
        image = (pixels - 127.5) / 128 if parser == "ParseScrfd" else pixels
        outputs = make_session(path).run(None, {"image": image})
        tables = [o if o.ndim == 2 else o[0].reshape(o.shape[1], -1).T for o in outputs]
        layers = "\n".join(
            f"{len(rows)} {rows.shape[1]} {' '.join(f'{v:.9g}' for v in rows.reshape(-1))}"
            for rows in tables
        )
        call = [str(program), "320", "192", str(detector.min_score)]
        text = parsed(call, parser, layers)
        assert text is not None
        rows = np.array([line.split() for line in text.splitlines()], float)
        faces = detector(photo)
        assert len(faces) >= 1
        for face in faces:
            row = rows[np.abs(rows[:, 5:] - face.points.reshape(-1)).max(1).argmin()]
            assert np.abs(row[5:] - face.points.reshape(-1)).max() < 0.01
            assert np.abs(row[1:5] - face.box).max() < 0.01
            assert row[0] == pytest.approx(face.score, abs=1e-4)
        assert parsed(call, parser, layers.replace(" 0.699999988", " nan")) == ""
        assert (
            parsed(call, "ParseYuNet" if parser == "ParseScrfd" else "ParseScrfd", layers) is None
        )


def parsed(call: list[str], parser: str, layers: str) -> str | None:
    """What parse_here prints; None where the parser refuses the layers."""
    text = f"{parser}\n{layers}"
    done = subprocess.run(call, input=text, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 3)
    return None if done.returncode else done.stdout
