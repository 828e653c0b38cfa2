"""What is judged is the file that a session opens, and the report says which bytes those were."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from kernel_choice import all_in_float
from onnx import numpy_helper

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.bundle.derived import stale_reports
from fr_edge.errors import BundleError, NotStored
from fr_edge.faces.sources import Faces
from fr_edge.graph.cpu_int8 import cpu_model, integer_layers
from fr_edge.runtime.benchmark.benchmark import benchmark
from fr_edge.runtime.build import build_engine
from fr_edge.runtime.cpu_kernel_selection import KernelSelection
from fr_edge.runtime.engine_record import file_record
from fr_edge.runtime.evaluation.evaluate import evaluate
from fr_edge.runtime.evaluation.verify import verify
from fr_edge.runtime.report.report import write_report
from fr_edge.runtime.session import Session, open_session

ENGINE = "engines/onnxruntime-int8.onnx"


@pytest.fixture(scope="module")
def built_once(calibrated_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("built") / "mini.bundle"
    shutil.copytree(calibrated_mini, bundle)
    build_engine(bundle, "int8", "onnxruntime")
    return bundle


@pytest.fixture
def built(built_once: Path, tmp_path: Path) -> Path:
    """An INT8 engine in a bundle that the test may change."""
    shutil.copytree(built_once, tmp_path / "mini.bundle")
    return tmp_path / "mini.bundle"


def _shuffle_engine(root: Path) -> None:
    """Another network's weights in the engine, with manifest and fingerprint that agree."""
    model = onnx.load(root / ENGINE)
    random = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim == 4:
            moved = random.permutation(values.reshape(-1)).reshape(values.shape)
            tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))
    _seal(root, model.SerializeToString())


def _seal(root: Path, data: bytes, **facts: object) -> None:
    """Other bytes in the engine's place, with manifest and fingerprint that agree."""
    fingerprint = json.loads((root / f"{ENGINE}.json").read_text())
    fingerprint |= {"sha256": hashlib.sha256(data).hexdigest(), **facts}
    with transaction(root, "tamper", {}) as change:
        change.path(ENGINE, "int8 engine").write_bytes(data)
        sidecar = change.path(f"{ENGINE}.json", "engine fingerprint")
        sidecar.write_text(json.dumps(fingerprint))


def test_an_engine_with_other_weights_fails(built: Path, people: Faces) -> None:
    assert verify(built, "int8").passed
    _shuffle_engine(built)
    result = verify(built, "int8")
    assert not result.passed
    assert {"min cosine", "p1 cosine"} <= {g.name for g in result.gates if not g.passed}
    assert result.artifact is not None
    assert result.artifact.sha256 == open_bundle(built).files[ENGINE].sha256
    # The graph that it was made of is as good as before, and judged only when asked for.
    assert verify(built, "int8", artifact="graph").passed
    assert (
        evaluate(built, people, "int8").eer != evaluate(built, people, "int8", artifact="graph").eer
    )


def test_the_speed_of_an_engine_with_other_weights_is_invalid(built: Path) -> None:
    options = {"duration_s": 0.2, "warmup_s": 0.1}
    good = benchmark(built, "int8", **options)  # type: ignore[arg-type]
    assert not any("not the original network" in r for r in good.runs[0].reasons)
    _shuffle_engine(built)
    result = benchmark(built, "int8", **options)  # type: ignore[arg-type]
    assert result.verdict == "INVALID"
    assert all(
        any("not the original network" in reason for reason in run.reasons) for run in result.runs
    )


def test_float_bytes_under_an_int8_engines_name_fail(built: Path, people: Faces) -> None:
    """They embed better than the engine does, and are not what the page claims."""
    with all_in_float():
        build_engine(built, "int8", "onnxruntime")
    assert file_record(open_bundle(built), ENGINE).problem() == ""
    build_engine(built, "fp32", "onnxruntime")
    model = onnx.load(built / "engines/onnxruntime-fp32.onnx")
    for tensor in cpu_model(onnx.load(built / "model.int8.onnx"), ()).graph.initializer:
        if len(tensor.dims) > 1:  # beside the network, and read by nothing that it computes
            tensor.name += "_unused"
            model.graph.initializer.append(tensor)
            unused = onnx.helper.make_node("Identity", [tensor.name], [f"{tensor.name}_out"])
            model.graph.node.insert(0, unused)
    _seal(built, model.SerializeToString())
    says = "no layer of this engine computes in INT8"
    result = verify(built, "int8")
    assert result.cosine.min > 0.99
    assert all(gate.passed for gate in result.gates)
    assert (result.verdict, len(result.reasons)) == ("FAILED", 1)
    assert says in result.reasons[0].reason
    judged = evaluate(built, people, "int8")
    assert (judged.verdict, judged.gates) == ("FAILED", ())
    assert says in judged.reasons[0].reason
    missing = [note.partition(":")[0] for note in judged.not_measured]
    assert {"TAR at FAR 1e-6", "TensorRT's arithmetic", "INT8"} <= {*missing}
    assert all(":" in note for note in judged.not_measured)  # each with its reason
    timed = benchmark(built, "int8", duration_s=0.2, warmup_s=0.1)
    assert any(says in reason for reason in timed.runs[0].reasons)
    page = write_report(built).read_text(encoding="utf-8")
    assert '<b class="bad">NOT INT8</b>' in page
    assert re.search(rf"FAILED</b> int8, .*: {says}", page)
    plot = page[page.index('aria-label="int8 onnxruntime layers"') :]
    plot = plot[: plot.index("</svg>")]
    assert "NOT IN THE ENGINE" in plot
    assert "INT8 weights" not in plot


def test_integer_layers_are_counted_in_the_engines_own_file(
    mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_integer(model: onnx.ModelProto, *_: object) -> list[KernelSelection]:
        return [KernelSelection(tuple(integer_layers(model)), (0.5, 0.5))]

    monkeypatch.setattr("fr_edge.runtime.cpu_kernel_selection.select_kernels", all_integer)
    built = build_engine(mini, "int8", "onnxruntime")
    record = file_record(open_bundle(mini), ENGINE)
    assert record.integer == built.integer_kernels > 0
    assert record.integer + len(record.weights) == record.claimed == built.layers["int8"]
    assert record.problem() == ""
    _seal(mini, (mini / ENGINE).read_bytes(), integer_kernels=built.integer_kernels + 1)
    says = "of this engine compute in integers by its own file"
    assert says in file_record(open_bundle(mini), ENGINE).problem()
    assert says in verify(mini, "int8").reasons[0].reason


class _Stale:
    """A session double that computes its first batch only: the next ones get its results again."""

    def __init__(self, session: Session) -> None:
        self._session, self._first = session, np.zeros((0, 0), np.float32)

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)

    def __enter__(self) -> "_Stale":
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def embed(self, images: np.ndarray) -> np.ndarray:
        if len(self._first) < len(images):
            self._first = self._session.embed(images)
        return self._first[: len(images)]


def test_results_of_an_earlier_batch_do_not_pass(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The golden faces are embedded right once; again, in another order, they are not."""

    def opened(bundle: Path, engine: str, *args: object, **options: object) -> object:
        session = open_session(bundle, engine, *args, **options)  # type: ignore[arg-type]
        return _Stale(session) if engine == "int8" else session

    monkeypatch.setattr("fr_edge.runtime.evaluation.verify.open_session", opened)
    result = verify(built, "int8")
    assert result.cosine.min > 0.95
    assert result.verdict == "FAILED"
    assert [gate.name for gate in result.gates if not gate.passed] == [
        "same faces again: min cosine",
        "batches of 1, 2, 3, 4, 8 and 16 faces: min cosine",
    ]


@pytest.mark.parametrize("judge", [verify, benchmark])
def test_an_engine_that_was_not_built_is_refused(judge, mini: Path) -> None:
    with pytest.raises(BundleError, match="no int8 engine") as refused:
        judge(mini, "int8")
    assert "fr-edge build-engine" in refused.value.hint


def test_the_graph_is_judged_by_name(mini: Path, people: Faces) -> None:
    result = verify(mini, "int8", artifact="graph")
    evaluation = evaluate(mini, people, "int8", artifact="graph")
    for artifact in (result.artifact, evaluation.artifact):
        assert artifact is not None
        assert (artifact.kind, artifact.file) == ("graph", "model.int8.onnx")
        assert artifact.sha256 == open_bundle(mini).files["model.int8.onnx"].sha256
    assert any(note.startswith("an engine") for note in result.not_measured)


def test_a_weaker_run_replaces_nothing(built: Path, people: Faces) -> None:
    """Golden faces, other faces, other limits, the graph: each has a report of its own."""
    results = [
        verify(built, "int8", faces=people),
        verify(built, "int8"),
        verify(built, "int8", faces=people, min_cosine=0.1),
        verify(built, "int8", faces=people, artifact="graph"),
        verify(built, "int8", faces=people, degrade=True),
    ]
    assert len({result.report for result in results}) == len(results)
    assert all((built / result.report).is_file() for result in results)
    again = verify(built, "int8", faces=people)
    assert again.report == results[0].report


def test_sources_of_one_name_in_two_folders_have_two_reports(
    mini: Path, people: Faces, tmp_path: Path
) -> None:
    from dataclasses import replace

    names = set()
    for folder in ("a", "b"):
        where = tmp_path / folder / "lfw.bin"
        faces = replace(people, where=str(where), synthetic=False)
        names.add(evaluate(mini, faces, "fp32", artifact="graph").report)
    assert len(names) == 2
    assert all(name.startswith("reports/evaluate-fp32-lfw-") for name in names)


def test_reports_of_earlier_engines_stay_and_are_stale(built: Path) -> None:
    report = verify(built, "int8").report
    assert report not in stale_reports(open_bundle(built))
    _shuffle_engine(built)
    assert (built / report).is_file()
    assert ENGINE in stale_reports(open_bundle(built))[report]


def test_an_engine_replaced_while_it_is_judged_gets_no_report(built: Path, people: Faces) -> None:
    def replaced(items, label, total):  # type: ignore[no-untyped-def]
        _shuffle_engine(built)
        return items

    with pytest.raises(NotStored, match="replaced while it was judged") as caught:
        verify(built, "int8", faces=people, track=replaced)
    assert caught.value.exit_code == BundleError.exit_code
    assert caught.value.result.cosine.faces == len(people)
    assert caught.value.result.report == ""
