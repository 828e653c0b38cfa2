"""The model repository: read by Triton's own protobuf, true to its models, and its calls in turn.

No Triton server runs here. Its Python backend is a named double on onnxruntime.
"""

import importlib.util
import json
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.bundle.provenance import make_provenance
from fr_edge.cli.main import run
from fr_edge.documents import encode_json
from fr_edge.errors import MachineError
from fr_edge.export.detector_export import export_detector
from fr_edge.faces.detect import open_detector
from fr_edge.runtime.benchmark.result import BenchmarkResult, BenchmarkRun
from fr_edge.runtime.packages.package import package
from fr_edge.runtime.packages.verify_package import verify_package
from fr_edge.runtime.session import open_session

sys.path[:0] = [str(Path(__file__).parent)]
from detectors_of_two_families import write_two_detectors  # noqa: E402
from triton_double import triton_double  # noqa: E402

ROOT = Path(__file__).parents[3]

TYPES = {onnx.TensorProto.UINT8: "TYPE_UINT8", onnx.TensorProto.FLOAT: "TYPE_FP32"}


def page_command(start: str) -> list[str]:
    """The line of docs/deploy/triton.md that begins so, as words."""
    page = (ROOT / "docs" / "deploy" / "triton.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith(start)]
    return shlex.split(line, comments=True)


def module_of(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config(folder: Path) -> Any:
    """A config.pbtxt as Triton's protobuf reads it; the client's package itself needs more libraries."""
    found_spec = find_spec("tritonclient")
    if found_spec is None or not found_spec.submodule_search_locations:
        pytest.skip("tritonclient, which holds Triton's protobuf, is not installed")
    from google.protobuf import text_format

    root = Path(found_spec.submodule_search_locations[0])
    messages = sys.modules.get("triton_model_config") or module_of(
        "triton_model_config", root / "grpc" / "model_config_pb2.py"
    )
    sys.modules["triton_model_config"] = messages
    return text_format.Parse((folder / "config.pbtxt").read_text(), messages.ModelConfig())


@pytest.fixture(scope="module")
def repository(calibrated_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with a detector, and of a bundle whose best batch was measured."""
    home = tmp_path_factory.mktemp("triton")
    bundle = home / "mine.bundle"
    shutil.copytree(calibrated_mini, bundle)
    export_detector(write_two_detectors(home)[0], bundle)
    runs = tuple(
        BenchmarkRun(batch, "VALID", {"p50": p50}, {}, 1e3 * batch / p50)
        for batch, p50 in ((1, 1.0), (8, 2.5), (16, 5.0))
    )
    judged = make_provenance(open_bundle(bundle), ["model.onnx"])
    report = BenchmarkResult(
        "fp32", "onnxruntime", "VALID", runs, saturation_batch=8, provenance=judged
    )
    with transaction(open_bundle(bundle), "benchmark", {}) as change:
        path = change.path("reports/benchmark-fp32.json", "report", ["model.onnx"])
        path.write_bytes(encode_json(report))
    words = page_command("fr-edge package")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert run(words[1:]) == 0
    return home / words[-1]


def test_tritons_protobuf_reads_what_the_models_are(repository: Path) -> None:
    names = sorted(path.name for path in (repository / "models").iterdir())
    assert names == ["detector", "embedder", "frame_embedder", "recognise"]
    for name in names[:3]:
        folder = repository / "models" / name
        read = config(folder)
        graph = onnx.load(folder / "1" / "model.onnx").graph
        assert read.name == name
        assert read.platform == "onnxruntime_onnx"
        batched = int(read.max_batch_size > 0)
        for side, values in ((read.input, graph.input), (read.output, graph.output)):
            assert [tensor.name for tensor in side] == [value.name for value in values]
            for tensor, value in zip(side, values, strict=True):
                kind = value.type.tensor_type
                types = type(tensor).DESCRIPTOR.fields_by_name["data_type"].enum_type
                assert types.values_by_number[tensor.data_type].name == TYPES[kind.elem_type]
                shape = [axis.dim_value or -1 for axis in kind.shape.dim][batched:]
                assert list(tensor.dims) == shape
        assert {sample.batch_size for sample in read.model_warmup} >= {1}
    embedder = config(repository / "models" / "embedder")
    assert embedder.max_batch_size == 32
    assert list(embedder.dynamic_batching.preferred_batch_size) == [8]
    assert embedder.dynamic_batching.max_queue_delay_microseconds == 2500
    assert config(repository / "models" / "recognise").backend == "python"


def test_the_repositorys_models_prove_themselves(repository: Path) -> None:
    result = verify_package(repository)
    assert result.passed
    assert "running server" in result.not_measured[0]


def test_faces_are_found_and_embedded_in_turn(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = repository / "models"
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton_double(models))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = module_of("recognise_model", models / "recognise" / "1" / "model.py")
    model = module.TritonPythonModel()
    model.initialize({"model_repository": str(models / "recognise"), "model_version": "1"})
    photo = np.full((700, 900, 3), 60, np.uint8)  # is reduced to 640 pixels
    photo[96:160, 160:224] = photo[320:384, 480:544] = 255
    pb = sys.modules["triton_python_backend_utils"]
    requests = [
        SimpleNamespace(tensors=[pb.Tensor("frame", image)]) for image in (photo, photo // 9)
    ]
    requests.append(SimpleNamespace(tensors=[]))  # not a request
    first, dark, wrong = model.execute(requests)
    arrays = {tensor.name: tensor.array for tensor in first.tensors}
    bundle = repository.parent / "mine.bundle"
    faces = open_detector(bundle / "detector.onnx")(photo)
    assert len(arrays["score"]) == len(faces) >= 2
    with open_session(bundle, "fp32", artifact="graph") as session:
        own = session.embed_frame(photo, arrays["landmarks"])
    assert (own * arrays["embedding"]).sum(1).min() > 0.999
    for face in faces:
        apart = np.abs(arrays["landmarks"] - face.points).max((1, 2))
        assert apart.min() < 0.1
        corners = np.concatenate([face.box[:2], face.box[:2] + face.box[2:]])
        assert np.abs(arrays["box"][apart.argmin()] - corners).max() < 0.1
    assert [tensor.array.shape[0] for tensor in dark.tensors] == [0, 0, 0, 0]
    assert dark.tensors[3].array.shape == (0, 32)
    assert wrong.has_error()


def test_plans_are_taken_by_compute_capability(calibrated_mini: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "mini.bundle"
    shutil.copytree(calibrated_mini, bundle)
    with transaction(open_bundle(bundle), "build-engine", {}) as change:
        for board, capability, most in (("orin", "8.7", 16), ("l4", "8.9", 24)):
            name = f"engines/tensorrt-10.3.0-{board}-fp32-crop.plan"
            change.path(name, "engine").write_bytes(b"not a plan")
            facts = {"batch": [1, 8, most], "compute_capability": capability}
            change.path(f"{name}.json", "fingerprint").write_text(json.dumps(facts))
    result = package(bundle, "triton", tmp_path / "package")
    read = config(tmp_path / "package" / "models" / "embedder")
    assert read.platform == "tensorrt_plan"
    assert read.max_batch_size == 16
    names = {"8.7": "orin", "8.9": "l4"}
    assert dict(read.cc_model_filenames) == {
        key: f"tensorrt-10.3.0-{board}-fp32-crop.plan" for key, board in names.items()
    }
    assert "preferred_batch_size" in " ".join(result.manifest.left_out)
    with pytest.raises(MachineError, match="run on the GPU that they were built for"):
        verify_package(tmp_path / "package")
