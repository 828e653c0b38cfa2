"""A package gives the bundle's embeddings in its own program, and one that was edited is refused."""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fr_edge.bundle.bundle import open_bundle
from fr_edge.bundle.manifest import Bundle
from fr_edge.cli.main import run
from fr_edge.errors import BundleError, DataError, NotStored, UsageError
from fr_edge.faces.contract import ARCFACE_TEMPLATE
from fr_edge.onnx_file import read_onnx
from fr_edge.runtime.packages import package_draft
from fr_edge.runtime.packages.package import TARGETS, package
from fr_edge.runtime.packages.package_draft import template_files
from fr_edge.runtime.packages.package_models import PACKAGE_CONTRACT_KEY, package_model
from fr_edge.runtime.packages.verify_package import CHECKS, read_package, verify_package

ROOT = Path(__file__).parents[3]
Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def packages(calibrated_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package for each of two targets."""
    home = tmp_path_factory.mktemp("packages")
    (home / "mine.bundle").symlink_to(calibrated_mini)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for target in ("onnx", "python"):
            words = page_command(target, "fr-edge package")
            assert run(words[1:]) == 0
            (home / words[-1]).rename(home / target)
    return home


def page_command(target: str, start: str) -> list[str]:
    """The line of a target's page that begins so, as words."""
    page = (ROOT / "docs" / "deploy" / f"{target}.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith(start)]
    return shlex.split(line, comments=True)


@pytest.fixture
def sample(packages: Path, tmp_path: Path) -> Path:
    """A package for Python that the test may change."""
    left_out = shutil.ignore_patterns("certificate.json", "numpy.py")
    shutil.copytree(packages / "python", tmp_path / "python", ignore=left_out)
    return tmp_path / "python"


def contract(path: Path) -> dict[str, object]:
    model = onnx.load(path)
    (text,) = [e.value for e in model.metadata_props if e.key == PACKAGE_CONTRACT_KEY]
    document: dict[str, object] = json.loads(text)
    return document


def rehash(folder: Path, name: str) -> None:
    """Write a file's present sha256 into package.json."""
    manifest = json.loads((folder / "package.json").read_text())
    manifest["files"][name] = sha256((folder / name).read_bytes()).hexdigest()
    (folder / "package.json").write_text(json.dumps(manifest))


def test_the_contract_in_a_model_is_what_the_page_says(packages: Path) -> None:
    schema = json.loads((ROOT / "docs" / "contract.schema.json").read_text())
    for path in packages.rglob("*.onnx"):
        document = contract(path)
        jsonschema.validate(document, schema)
        graph = onnx.load(path).graph
        assert list(document["inputs"]) == [value.name for value in graph.input]  # type: ignore[call-overload]
        assert document["kind"] == path.stem
    broken = {**document, "kind": "film"}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)


def test_the_pages_python_reads_a_contract(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "contract.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(packages / "onnx")
    names: dict[str, object] = {}
    exec(code, names)
    assert names["contract"] == contract(packages / "onnx" / "tensor.onnx")


def test_the_pages_python_compares_frames(
    packages: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    page = (ROOT / "docs" / "deploy" / "python.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(packages / "python")
    monkeypatch.syspath_prepend(packages / "python")
    monkeypatch.delitem(sys.modules, "face_embedder", raising=False)
    frame = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    landmarks = np.stack([np.array(ARCFACE_TEMPLATE), np.array(ARCFACE_TEMPLATE) + 60])
    exec(code, {"frame": frame, "landmarks": landmarks.astype(np.float32)})
    monkeypatch.delitem(sys.modules, "face_embedder")
    assert -1 <= float(capsys.readouterr().out) <= 1


@pytest.mark.parametrize("target", ["onnx", "python"])
def test_a_package_proves_itself(target: str, packages: Path, calibrated_mini: Path) -> None:
    words = page_command(target, "fr-edge verify")
    assert words[:3] == ["fr-edge", "verify", "--package"]
    (packages / target / "numpy.py").write_text("raise SystemExit(0)")  # not listed: not run
    result = verify_package(packages / target)
    assert result.verdict == "PASSED"
    assert "a file that package.json does not list, numpy.py" in result.not_measured
    assert sum(proof.faces for proof in result.proofs) == {"onnx": 14, "python": 8}[target]
    assert min(proof.min_cosine or 0 for proof in result.proofs) >= 0.99999
    certificate = json.loads((packages / target / "certificate.json").read_text())
    bundle = open_bundle(calibrated_mini)
    assert certificate["bundle_model_sha256"] == bundle.files["model.onnx"].sha256
    for key, file in (
        ("bundle_manifest_sha256", calibrated_mini / "bundle.json"),
        ("package_sha256", packages / target / "package.json"),
    ):
        assert certificate[key] == sha256(file.read_bytes()).hexdigest()
    assert not list((packages / target).rglob("__pycache__"))


def test_samples_need_no_fr_edge() -> None:
    for target in CHECKS:
        for path in template_files(target).values():
            if path.suffix == ".py":
                assert "fr_edge" not in path.read_text().replace('"fr_edge.contract"', "")
    requirements = template_files("python")["requirements.txt"].read_text().split()
    assert [line.split(">=")[0] for line in requirements] == ["numpy", "onnxruntime"]


def test_a_model_of_other_answers_fails(sample: Path, capsys: Captured) -> None:
    path = sample / "frame.onnx"
    model = onnx.load(path)
    for item in model.graph.initializer:
        if item.name == "raw_mean":
            item.CopyFrom(numpy_helper.from_array(np.zeros((1, 3, 1, 1), np.float32), item.name))
    path.write_bytes(model.SerializeToString())
    rehash(sample, "frame.onnx")
    assert run(["verify", "--package", str(sample)]) == 1
    assert "does not give the bundle's embeddings" in capsys.readouterr().err
    assert json.loads((sample / "certificate.json").read_text())["verdict"] == "FAILED"


def append(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        with (folder / name).open("ab") as stream:
            stream.write(b"#")

    return edit


def append_and_rehash(folder: Path) -> None:
    append("face_embedder.py")(folder)
    rehash(folder, "face_embedder.py")


def add_program(folder: Path) -> None:
    (folder / "numpy.py").write_text("raise SystemExit(0)")
    rehash(folder, "numpy.py")


def lower_limit(folder: Path) -> None:
    text = (folder / "package.json").read_text()
    (folder / "package.json").write_text(text.replace("0.99999", "-1"))


def unlist(folder: Path) -> None:
    manifest = json.loads((folder / "package.json").read_text())
    del manifest["files"]["verify_sample.py"]
    (folder / "package.json").write_text(json.dumps(manifest))


def link(folder: Path) -> None:
    (folder / "frame.onnx").rename(folder.parent / "frame.onnx")
    (folder / "frame.onnx").symlink_to(folder.parent / "frame.onnx")


def escape(folder: Path) -> None:
    text = (folder / "package.json").read_text()
    (folder / "package.json").write_text(text.replace('"frame.onnx"', '"../frame.onnx"'))


def spoil_golden(folder: Path) -> None:
    (folder / "golden" / "faces.txt").write_text("min_cosine x\n")
    rehash(folder, "golden/faces.txt")


EDITS: tuple[tuple[Callable[[Path], None], str], ...] = (
    (append("face_embedder.py"), "face_embedder.py was edited"),
    (append("golden/crop_0.ppm"), "crop_0.ppm was edited"),
    (append_and_rehash, "not the program that fr-edge"),
    (add_program, "numpy.py does not belong to a package for python"),
    (lower_limit, "was edited: its limit is -1"),
    (unlist, "does not list verify_sample.py"),
    (link, "is a link"),
    (escape, "points outside"),
    (lambda folder: (folder / "golden" / "faces.txt").unlink(), "faces.txt is missing"),
    (append("package.json"), "package.json is damaged"),
    (lambda folder: (folder / "package.json").unlink(), "it has no package.json"),
)


@pytest.mark.parametrize(("edit", "message"), EDITS, ids=[message for _, message in EDITS])
def test_an_edited_package_is_refused(
    edit: Callable[[Path], None], message: str, sample: Path, capsys: Captured
) -> None:
    edit(sample)
    with pytest.raises(DataError, match=message):
        read_package(sample)
    assert run(["verify", "--package", str(sample)]) == 4
    assert message in capsys.readouterr().err
    assert not (sample / "certificate.json").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_certificate_that_cannot_be_written(sample: Path) -> None:
    sample.chmod(0o500)
    with pytest.raises(NotStored, match="certificate"):
        verify_package(sample)


def test_what_a_contract_does_not_allow_is_left_out_or_refused(
    bundle: Bundle, tmp_path: Path
) -> None:
    result = package(bundle, "onnx", tmp_path / "onnx")  # of 16 pixels a side
    assert "are for networks of 112 pixels" in result.manifest.left_out["frame.onnx"]
    assert "crop.onnx" in result.manifest.left_out
    assert set(result.manifest.measured) == {"tensor"}
    with pytest.raises(BundleError, match="112 pixels a side"):
        package(bundle, "python", tmp_path / "python")
    assert not (tmp_path / "python").exists()
    assert not list(tmp_path.glob(".*"))


def test_embeddings_have_unit_length(calibrated_mini: Path) -> None:
    bundle = open_bundle(calibrated_mini)
    plain = read_onnx(bundle.file("model.onnx"))
    model = package_model(plain, bundle.spec, "tensor", "fp32", "")
    names = [node.op_type for node in model.graph.node]
    assert names[-5:] == ["ReduceL2", "Add", "Shape", "Expand", "Div"]
    done = package_model(plain, replace(bundle.spec, l2_normalised=True), "tensor", "fp32", "")
    assert len(done.graph.node) == len(plain.graph.node)


def test_golden_faces_that_cannot_be_read(sample: Path, capsys: Captured) -> None:
    spoil_golden(sample)
    assert run(["verify", "--package", str(sample)]) == 4
    assert "verify_sample.py ended with code 1" in capsys.readouterr().err


def test_limits() -> None:
    assert package_draft.MIN_COSINE == {"fp32": 0.99999, "fp16": 0.999, "int8": 0.99}
    assert package_draft._MIN_ALIGNED == 0.999


def test_bad_words_are_refused(calibrated_mini: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no target 'ios'"):
        package(calibrated_mini, "ios", tmp_path / "p")
    with pytest.raises(UsageError, match="no package of 'fp8'"):
        package(calibrated_mini, "onnx", tmp_path / "p", "fp8")
    assert set(TARGETS) == set(CHECKS)
    bundle = str(calibrated_mini)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for words, code in (
        ([bundle, "--for", "onnx", "--out", str(tmp_path / "full")], 2),
        ([bundle, "--for", "onnx", "--out", str(tmp_path / "nowhere" / "p")], 2),
        ([bundle, "--for", "onnx", "--out", str(tmp_path / "full" / "x" / "p")], 2),
        ([bundle, "--for", "film", "--out", str(tmp_path / "p")], 2),
        ([bundle, "--for", "onnx"], 2),
        ([str(tmp_path / "full"), "--for", "onnx", "--out", str(tmp_path / "p")], 4),
    ):
        assert run(["package", *words]) == code
    for words in (["--package", "x", "y"], ["--package", "x", "--engine", "fp32"], []):
        assert run(["verify", *words]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
