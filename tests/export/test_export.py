"""The stage as a whole: what the bundle holds afterwards, from each kind of source."""

import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.bundle.derived import stale_reports
from fr_edge.distill.networks import build_network
from fr_edge.errors import ModelError, UsageError
from fr_edge.export.export import export_onnx
from fr_edge.export.torch_network import open_torch_weights
from fr_edge.faces.contract import PRESETS, preprocess
from fr_edge.faces.sources import Faces, open_faces
from fr_edge.graph.load import contract_of

SPEC = PRESETS["insightface"]
ARCH = "mobilefacenet-0.25"


def embed(path: Path, inputs: np.ndarray) -> np.ndarray:
    embeddings: np.ndarray = onnxruntime.InferenceSession(str(path)).run(None, {"face": inputs})[0]
    return embeddings


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, tools: SimpleNamespace) -> Path:
    path = tmp_path_factory.mktemp("given") / "net.onnx"
    onnx.save(tools.build(batch=1, flatten="Reshape"), str(path))
    return path


@pytest.fixture(scope="module")
def foreign(given: Path) -> Path:
    out = given.parent / "foreign.bundle"
    export_onnx(given, out, spec=SPEC)
    return out


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "net.pt"
    torch.save(build_network(ARCH, 32).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def trained(weights: Path) -> Path:
    out = weights.parent / "trained.bundle"
    export_onnx(weights, out, arch=ARCH, spec=SPEC)
    return out


def test_a_foreign_onnx(foreign: Path, given: Path, tools: SimpleNamespace) -> None:
    bundle = open_bundle(foreign)
    assert set(bundle.files) == {"model.onnx", "model.fp16.onnx", "golden.npz"}
    assert (bundle.embedding_dim, bundle.spec) == (16, SPEC)
    model = onnx.load(bundle.file("model.onnx"))
    assert contract_of(model) == SPEC
    faces = tools.noise(7, 3, 112, 112)
    expected = np.concatenate([tools.run(onnx.load(given), faces[i : i + 1]) for i in range(7)])
    assert tools.cosine(embed(bundle.file("model.onnx"), faces), expected) > 0.999999
    assert tools.cosine(embed(bundle.file("model.fp16.onnx"), faces), expected) > 0.9999


def test_the_history_says_what_was_done(foreign: Path) -> None:
    entry = open_bundle(foreign).history[-1]
    assert entry["stage"] == "export"
    assert entry["options"]["source"] == "net.onnx"
    summary = entry["summary"]
    assert summary["source"]["kind"] == "onnx"
    assert summary["nodes"]["after"] < summary["nodes"]["before"]
    assert summary["check"]["min_cosine"] > 0.99999
    assert summary["fp16"]["check"]["min_cosine"] > 0.999
    json.dumps(summary)


def test_golden_faces_are_drawn_and_the_originals(
    foreign: Path, given: Path, tools: SimpleNamespace
) -> None:
    with np.load(foreign / "golden.npz", allow_pickle=False) as data:
        faces, embeddings = data["faces"], data["embeddings"]
        assert str(data["reference"]) == "onnx"
    assert faces.shape == (32, 112, 112, 3)
    inputs = preprocess(faces, SPEC)
    model = onnx.load(given)
    expected = np.concatenate([tools.run(model, inputs[i : i + 1]) for i in range(32)])
    np.testing.assert_allclose(embeddings, expected, rtol=1e-4, atol=1e-5)


def test_a_checkpoint(trained: Path, weights: Path, tools: SimpleNamespace) -> None:
    bundle = open_bundle(trained)
    assert set(bundle.files) == {"model.onnx", "model.fp16.onnx", "golden.npz", "model.pt"}
    network = build_network(ARCH, 32)
    network.load_state_dict(torch.load(weights, weights_only=True))
    faces = tools.noise(5, 3, 112, 112)
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(faces)).numpy()
    for count in (1, 5):
        embeddings = embed(bundle.file("model.onnx"), faces[:count])
        assert tools.cosine(embeddings, expected[:count]) > 0.999999
    np.testing.assert_allclose(
        open_torch_weights(bundle).network(faces), expected, rtol=1e-4, atol=1e-9
    )
    with np.load(trained / "golden.npz", allow_pickle=False) as data:
        assert str(data["reference"]) == "pytorch"
        inputs = torch.from_numpy(preprocess(data["faces"], SPEC)).double()
        with torch.no_grad():
            exact = network.double()(inputs).numpy()
        np.testing.assert_allclose(data["embeddings_fp64"], exact, rtol=1e-9)
        assert data["embeddings"].dtype == np.float32
        assert tools.cosine(data["embeddings"], exact) > 0.999999


def test_a_bundle_into_itself(trained: Path) -> None:
    before = open_bundle(trained)
    after = export_onnx(trained, trained).bundle
    assert after.files["model.pt"] == before.files["model.pt"]
    assert after.files["model.onnx"] == before.files["model.onnx"]
    assert len(after.history) == len(before.history) + 1


def test_reports_stay_and_are_stale_when_the_network_is_another(
    trained: Path, foreign: Path, tmp_path: Path
) -> None:
    root = tmp_path / "a.bundle"
    shutil.copytree(trained, root)
    with transaction(root, "test", {}) as draft:
        draft.path("reports/training.json", "test").write_text("{}")
        draft.path("reports/verify-fp32.json", "test", of=["model.onnx"]).write_text("{}")
    export_onnx(root, root)
    assert stale_reports(open_bundle(root)) == {}  # the same bytes again
    export_onnx(foreign / "model.onnx", root)
    after = open_bundle(root)
    assert "model.pt" not in after
    assert stale_reports(after) == {
        "reports/training.json": "model.pt is no longer in the bundle",
        "reports/verify-fp32.json": "model.onnx has changed since",
    }


def test_a_bundle_of_a_foreign_onnx(foreign: Path, tmp_path: Path, tools: SimpleNamespace) -> None:
    after = export_onnx(foreign, tmp_path / "copy.bundle").bundle
    faces = tools.noise(3, 3, 112, 112)
    embeddings = embed(after.file("model.onnx"), faces)
    assert tools.cosine(embeddings, embed(foreign / "model.onnx", faces)) > 0.999999


def test_the_contract_of_a_bundle_stands(trained: Path, foreign: Path, tmp_path: Path) -> None:
    for source in (trained, foreign, foreign / "model.onnx"):
        with pytest.raises(UsageError, match="has its own input contract"):
            export_onnx(source, tmp_path / "b", spec=PRESETS["raw"])
        assert not (tmp_path / "b").exists()


def test_a_contract_is_the_same_whatever_the_length(foreign: Path, tmp_path: Path) -> None:
    """`l2_normalised` is measured by export, and nobody types it."""
    spec = replace(SPEC, l2_normalised=True)
    assert export_onnx(foreign, tmp_path / "b", spec=spec).bundle.spec == SPEC


def test_golden_photographs_only_when_asked(
    given: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faces = tmp_path / "faces"
    for person in ("a", "b", "c"):
        (faces / person).mkdir(parents=True)
        shade = np.full((112, 112, 3), 40 * len(person) + ord(person), np.uint8)
        Image.fromarray(shade).save(faces / person / "1.png")
    export_onnx(given, tmp_path / "b", spec=SPEC, golden=faces)
    with np.load(tmp_path / "b" / "golden.npz", allow_pickle=False) as data:
        assert data["faces"].shape == (3, 112, 112, 3)
        assert set(data["faces"][:, 0, 0, 0]) == {137, 138, 139}
    assert "holds 3 faces" in caplog.text


def test_unit_length_is_noticed(tmp_path: Path, tools: SimpleNamespace) -> None:
    onnx.save(tools.build(unit=True), str(tmp_path / "net.onnx"))
    bundle = export_onnx(tmp_path / "net.onnx", tmp_path / "b", spec=SPEC).bundle
    assert bundle.spec.l2_normalised
    assert contract_of(onnx.load(bundle.file("model.onnx"))) == bundle.spec


def test_a_failure_leaves_the_old_bundle(foreign: Path, tmp_path: Path) -> None:
    before = {p.name: p.read_bytes() for p in foreign.iterdir()}
    (tmp_path / "bad.onnx").write_bytes(b"bad")
    with pytest.raises(ModelError):
        export_onnx(tmp_path / "bad.onnx", foreign, spec=SPEC)
    assert {p.name: p.read_bytes() for p in foreign.iterdir()} == before


def test_without_onnxsim(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The simplifier dies as native code does: export goes on and says so."""
    monkeypatch.setattr("fr_edge.export.simplify._SCRIPT", "import os; os.kill(os.getpid(), 11)")
    result = export_onnx(given, tmp_path / "b", spec=SPEC)
    assert "signal 11" in result.summary.simplified
    assert "signal 11" in caplog.text
    ops = {n.op_type for n in onnx.load(result.bundle.file("model.onnx")).graph.node}
    assert "BatchNormalization" not in ops


WITHOUT = """
import sys
for name in sys.argv.pop(1).split(","):
    sys.modules[name] = None
from fr_edge.cli.main import main
main()
"""


@pytest.mark.parametrize("missing", ["onnx_ir", "onnxscript"])
def test_without_the_graph_libraries(missing: str, given: Path, tmp_path: Path) -> None:
    """The base install has none of them: a word and a remedy, no traceback."""
    arguments = ["export", str(given), "--out", str(tmp_path / "b"), "--preset", "raw"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, missing, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 3
    assert "pip install 'onnx-ir>=0.1.16' 'onnxscript>=0.7' 'onnxsim>=0.4.36'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "b").exists()


def test_export_of_onnx_needs_no_torch(given: Path, tmp_path: Path) -> None:
    arguments = ["export", str(given), "--out", str(tmp_path / "b"), "--preset", "raw"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, "torch,onnxsim", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert contract_of(onnx.load(tmp_path / "b" / "model.onnx")) == PRESETS["raw"]


BREAK = """
import onnx, sys
from onnx import numpy_helper
model = onnx.load(sys.argv[1])
tensor = next(t for t in model.graph.initializer if t.name == "c_w")
tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), "c_w"))
onnx.save(model, sys.argv[2])
"""


def test_a_simplifier_that_changes_the_network_is_left_out(
    given: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("fr_edge.export.simplify._SCRIPT", BREAK)
    summary = export_onnx(given, tmp_path / "b", spec=SPEC).summary
    assert summary.simplified == "onnxsim changed n_c_conv (Conv)"
    assert summary.check.min_cosine > 0.99999
    assert "n_c_conv" in caplog.text


def test_the_contract_is_found_from_faces(
    given: Path, tmp_path: Path, tools: SimpleNamespace
) -> None:
    """Faces that show nothing (to a random network) are no reason to guess."""
    faces = open_faces("synthetic:12x2")
    shuffled = replace(faces, labels=tuple(i % 12 for i in range(24)))
    with pytest.raises(UsageError, match="does not show it: no candidate separates"):
        export_onnx(given, tmp_path / "b", faces=shuffled)
    assert not (tmp_path / "b").exists()


@pytest.mark.real
def test_a_real_network_with_faces_alone(
    real_data: Path, few_real_faces: Faces, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = real_data / "mobilefacenet_y1.onnx"
    caplog.set_level(logging.INFO)
    result = export_onnx(source, tmp_path / "b", faces=few_real_faces)
    assert result.bundle.spec == PRESETS["raw"]
    assert "--preset raw" in caplog.text
    assert result.summary.check.min_cosine > 0.99999


@pytest.mark.parametrize(
    ("dim", "says"),
    [
        (2, "2 numbers a face, and embeddings 16 to 4,096: is it an attribute"),
        (15, "15 numbers a face"),
        (16, ""),
        (4096, ""),
        (
            10572,
            "10,572 numbers a face, and embeddings 16 to 4,096: is it scores of training people",
        ),
    ],
)
def test_an_output_that_is_hardly_an_embedding(
    dim: int, says: str, tmp_path: Path, tools: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    model = tools.build()
    last = onnx.helper.make_node("Gemm", ["fc1", "last"], ["out"], transB=1)
    weights = np.random.default_rng(0).normal(size=(dim, 16)).astype(np.float32)
    model.graph.node.append(last)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "last"))
    output = model.graph.output[0]
    output.name = "out"
    output.type.tensor_type.shape.dim[1].dim_value = dim
    onnx.save(model, str(tmp_path / "net.onnx"))
    export_onnx(tmp_path / "net.onnx", tmp_path / "net.bundle", spec=SPEC)
    assert open_bundle(tmp_path / "net.bundle").embedding_dim == dim
    said = [r.message for r in caplog.records if "numbers a face" in r.message]
    assert len(said) == bool(says)
    assert says in "".join(said)
