"""The C++ sample compiles here, and gives the bundle's embeddings and the host's faces.

ONNX Runtime's library is the one in its Python wheel. Its header is in no wheel: where none is installed,
`onnxruntime_c_api.h` beside this file declares the few entry points of the versioned table that the sample
uses, and the sample runs on the real library.
"""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from fr_edge.cli.main import run
from fr_edge.faces.detect import open_detector
from fr_edge.faces.stored_detector import spec_of_detector
from fr_edge.runtime.packages.package import package
from fr_edge.runtime.packages.package_draft import detector_lines, template_files, write_ppm
from fr_edge.runtime.packages.verify_package import verify_package

sys.path[:0] = [str(Path(__file__).parent)]
from detectors_of_two_families import write_two_detectors  # noqa: E402

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
COMPILER = shutil.which("c++")
LIBRARIES = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
Captured = pytest.CaptureFixture[str]

needs_compiler = pytest.mark.skipif(
    COMPILER is None or shutil.which("cmake") is None, reason="no C++ compiler or no cmake here"
)


@pytest.fixture(scope="module")
def ort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ONNX Runtime as CMake finds it: the wheel's library, the declarations here."""
    if not LIBRARIES:
        pytest.skip("onnxruntime's wheel has no libonnxruntime.so of its own here")
    root = tmp_path_factory.mktemp("ort")
    for name in ("lib", "include"):
        (root / name).mkdir()
    shutil.copy(HERE / "onnxruntime_c_api.h", root / "include")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (root / "lib" / name).symlink_to(LIBRARIES[-1])
    return root


COMPILE_ONCE = """#!/bin/sh
# A compiler that gives again what it has compiled: the two builds are of the same sources.
for word in "$@"; do
  case "$last" in -o) out=$word;; -MF) depends=$word;; esac
  last=$word
done
kept=$KEPT/$(basename "$out")
case "$out" in *face_*) ;; *) exec c++ "$@";; esac
if [ -f "$kept" ]; then
  cp "$kept" "$out"
  if [ -n "$depends" ]; then : > "$depends"; fi
else
  c++ -Werror "$@" && cp "$out" "$kept"
fi
"""


@pytest.fixture
def compiler(ort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CMake compiles each file of the sample once for all tests of this file."""
    (ort / "c++").write_text(COMPILE_ONCE)
    (ort / "c++").chmod(0o755)
    (ort / "kept").mkdir(exist_ok=True)
    monkeypatch.setenv("CXX", str(ort / "c++"))
    monkeypatch.setenv("KEPT", str(ort / "kept"))


def commands(start: str) -> list[list[str]]:
    """The lines of docs/deploy/cpp.md that begin so, as words without comments."""
    page = (ROOT / "docs" / "deploy" / "cpp.md").read_text()
    blocks = page.split("```bash\n")[1:]
    lines = [line for block in blocks for line in block.split("```")[0].splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(start)]


@needs_compiler
@pytest.mark.usefixtures("compiler")
def test_the_sample_proves_itself(
    calibrated_mini: Path,
    ort: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
) -> None:
    (tmp_path / "mine.bundle").symlink_to(calibrated_mini)
    monkeypatch.chdir(tmp_path)
    (words,) = commands("fr-edge package")
    assert run(words[1:]) == 0
    folder = tmp_path / words[-1]
    monkeypatch.setenv("ONNXRUNTIME_ROOT", str(tmp_path))  # nothing there
    if not any(Path(p, "onnxruntime_c_api.h").exists() for p in ("/usr/include/onnxruntime",)):
        assert run(["verify", "--package", str(folder)]) == 3
        assert "set ONNXRUNTIME_ROOT" in capsys.readouterr().err
    monkeypatch.setenv("ONNXRUNTIME_ROOT", str(ort))
    result = verify_package(folder)
    assert result.passed
    (proof,) = result.proofs
    assert proof.faces == 8
    assert (proof.min_cosine or 0) >= 0.99999
    assert "TensorRT" in result.not_measured[0]
    monkeypatch.setenv("PATH", str(tmp_path))  # no compiler
    assert run(["verify", "--package", str(folder)]) == 3
    assert "needs cmake, which is not installed" in capsys.readouterr().err


def bright_photo() -> np.ndarray:
    photo = np.full((700, 900, 3), 60, np.uint8)  # is reduced to 640 pixels
    for y, x in ((96, 160), (320, 480), (480, 64)):
        photo[y : y + 64, x : x + 64] = 255
    return photo


@needs_compiler
@pytest.mark.usefixtures("compiler")
def test_faces_are_those_that_the_host_finds(
    calibrated_mini: Path, ort: Path, tmp_path: Path
) -> None:
    """Built, proven and asked by the page's own commands."""
    shutil.rmtree(tmp_path)
    package(calibrated_mini, "cpp", tmp_path)
    for words in (*commands("cmake"), *commands("build/face_sample verify")):
        here = [word.replace("/opt/onnxruntime", str(ort)) for word in words]
        done = subprocess.run(here, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert "PASSED" in done.stdout
    program = tmp_path / "build" / "face_sample"
    photo = bright_photo()
    write_ppm(tmp_path / "photo.ppm", photo)
    for path in write_two_detectors(tmp_path):
        detector = open_detector(path)
        shutil.copy(path, tmp_path / "detector.onnx")
        text = "\n".join(detector_lines(spec_of_detector(detector, ("x",))))
        (tmp_path / "detector.txt").write_text(text + "\n")
        done = subprocess.run(
            [program, "detect", "photo.ppm"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        rows = np.array([line.split() for line in done.stdout.splitlines()], float)
        faces = detector(photo)
        assert len(rows) == len(faces) >= 3
        for face in faces:
            row = rows[np.abs(rows[:, 5:] - face.points.reshape(-1)).max(1).argmin()]
            corners = np.concatenate([face.box[:2], face.box[:2] + face.box[2:]])
            assert row[0] == pytest.approx(face.score, abs=0.01)
            assert np.abs(row[5:] - face.points.reshape(-1)).max() < 0.1
            assert np.abs(row[1:5] - corners).max() < 0.1
    for name in ("a.ppm", "b.ppm"):
        shutil.copy(tmp_path / "photo.ppm", tmp_path / name)
    (words,) = commands("build/face_sample compare")
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(1.0, abs=1e-5)
    for words, message in (
        (["detect", "nothing.ppm"], "nothing.ppm cannot be read"),
        (["detect", "detector.txt"], "is not a PPM image"),
        (["verify", "nowhere"], "frame.onnx"),
        (["film"], "usage"),
    ):
        done = subprocess.run([program, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2
        assert message in done.stderr
    (tmp_path / "detector.txt").write_text("family Other\n")
    done = subprocess.run(
        [program, "detect", "photo.ppm"], cwd=tmp_path, capture_output=True, text=True
    )
    assert "detector.txt is damaged" in done.stderr
    check_bad_models(tmp_path)


@needs_compiler
def test_the_pages_cpp_reads_a_contract(ort: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "contract.md").read_text()
    code = page.split("```cpp\n")[1].split("```")[0]
    (tmp_path / "read.cpp").write_text(code)
    assert COMPILER is not None
    words = [COMPILER, "-std=c++17", "-fsyntax-only", "-Wall", "-Werror", f"-I{ort / 'include'}"]
    subprocess.run([*words, str(tmp_path / "read.cpp")], check=True, capture_output=True)


@needs_compiler
def test_the_tensorrt_side_compiles(ort: Path) -> None:
    """Where TensorRT's and CUDA's headers are installed."""
    folders = [Path("/usr/include"), *Path("/usr/include").glob("*-linux-gnu")]
    if not any((folder / "NvInfer.h").exists() for folder in folders):
        pytest.skip("TensorRT's headers are not installed")
    assert COMPILER is not None
    words = [COMPILER, "-std=c++17", "-fsyntax-only", "-DFR_EDGE_TENSORRT", f"-I{ort / 'include'}"]
    source = template_files("cpp")["face_embedder.cpp"]
    subprocess.run([*words, "-I/usr/local/cuda/include", str(source)], check=True)


@needs_compiler
def test_opencv_runs_aligned_faces_as_pixels_and_as_tensors(
    calibrated_mini: Path, tmp_path: Path
) -> None:
    """By the DNN module of Debian's libopencv-dev, where it is installed."""
    asked = ["pkg-config", "--cflags", "opencv4"]
    opencv = (
        subprocess.run(asked, capture_output=True, text=True) if shutil.which(asked[0]) else None
    )
    if opencv is None or opencv.returncode:
        pytest.skip("OpenCV's headers are not installed (libopencv-dev)")
    assert COMPILER is not None
    program = tmp_path / "dnn_here"
    words = [COMPILER, "-std=c++17", "-Wall", "-Wextra", "-Werror", str(HERE / "dnn_here.cpp")]
    words += ["-o", str(program), *opencv.stdout.split(), "-lopencv_dnn", "-lopencv_core"]
    subprocess.run(words, check=True)
    package(calibrated_mini, "onnx", tmp_path / "p")
    for kind in ("crop", "tensor"):
        done = subprocess.run([program, tmp_path / "p", kind], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        faces, lowest = done.stdout.split()
        assert faces == "6"
        assert float(lowest) >= 0.99999


def check_bad_models(folder: Path) -> None:
    """The sample that was built there refuses models and golden faces that are damaged, in words."""
    good = (folder / "frame.onnx").read_bytes()
    spoiled = {
        b"": "frame.onnx",
        good[: len(good) // 2]: "Protobuf parsing failed",
        good.replace(b'"faces_per_run": null', b'"faces_per_run": 0   '): "contract is damaged",
        good.replace(b'"kind": "frame"', b'"kind": "other"'): "does not take frames",
    }
    for data, message in spoiled.items():
        (folder / "frame.onnx").write_bytes(data)
        done = subprocess.run(
            ["build/face_sample", "verify", "."], cwd=folder, capture_output=True, text=True
        )
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    (folder / "frame.onnx").write_bytes(good)
    (folder / "golden" / "faces.txt").write_text("min_cosine much\n")
    done = subprocess.run(
        ["build/face_sample", "verify", "."], cwd=folder, capture_output=True, text=True
    )
    assert (done.returncode, "faces.txt is damaged" in done.stderr) == (2, True)


def test_containers_are_linted() -> None:
    files = [path for name, path in template_files("cpp").items() if name.startswith("docker/")]
    assert len(files) == 3
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    subprocess.run([hadolint, *map(str, files)], check=True)
