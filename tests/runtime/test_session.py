"""Sessions on onnxruntime: what they take, what they refuse, what they cost."""

import hashlib
import json
import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest
from onnx import load, numpy_helper

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.errors import BundleError, MachineError, ModelError, UsageError
from fr_edge.faces.contract import preprocess
from fr_edge.graph.cpu_int8 import cpu_model
from fr_edge.runtime.build import build_engine
from fr_edge.runtime.fingerprint import SOURCES, read_fingerprint
from fr_edge.runtime.machine.device import cores
from fr_edge.runtime.session import open_session


def reference(bundle, faces):
    session = ort.InferenceSession(
        str(bundle.file("model.onnx")), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"face": faces})[0]


@pytest.fixture
def images():
    """`images(n)`: `(n, 112, 112, 3) uint8`, not images of anybody."""
    return lambda n: np.random.default_rng(5).integers(0, 256, (n, 112, 112, 3), np.uint8)


@pytest.fixture
def fp32(bundle):
    """The bundle's FP32 graph, open."""
    with open_session(bundle, "fp32", artifact="graph") as session:
        yield session


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 31])
def test_batches_of_any_size(bundle, fp32, faces, count):
    result = fp32.embed_tensor(faces(count))
    assert result.shape == (count, 5)
    assert result.dtype == np.float32
    if count:
        np.testing.assert_allclose(result, reference(bundle, faces(count)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 4, 9])
def test_images_go_through_the_contract(bundle, fp32, images, count):
    result = fp32.embed(images(count))
    assert result.shape == (count, 5)
    np.testing.assert_array_equal(result, fp32.embed_tensor(preprocess(images(count), bundle.spec)))


def test_a_view_that_is_not_contiguous(bundle, fp32, faces):
    wide = faces(6)
    result = fp32.embed_tensor(wide[::2])
    np.testing.assert_allclose(result, reference(bundle, wide[::2].copy()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 3, 16, 17), np.float32),
        np.zeros((2, 16, 16, 3), np.float32),
        np.zeros((3, 16, 16), np.float32),
        np.zeros((2, 3, 16, 16), np.float64),
        np.zeros((2, 3, 16, 16), np.uint8),
    ],
)
def test_wrong_inputs_are_refused(fp32, wrong):
    with pytest.raises(UsageError, match=r"expected inputs \(N, 3, 16, 16\) float32, found"):
        fp32.embed_tensor(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 3, 16, 16), np.float32),
        np.zeros((2, 112, 112, 3), np.float32),
        np.zeros((112, 112, 3), np.uint8),
        np.zeros((2, 112, 96, 3), np.uint8),
    ],
)
def test_wrong_images_are_refused(fp32, wrong):
    with pytest.raises(UsageError, match=r"expected images \(N, 112, 112, 3\) uint8, found"):
        fp32.embed(wrong)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_engine_computes_what_the_graph_does(bundle, faces, precision):
    before = open_session(bundle, precision, artifact="graph").embed_tensor(faces(3))
    build_engine(bundle, precision)
    session = open_session(bundle.root, precision)
    assert (session.backend, session.precision, session.dim) == ("onnxruntime", precision, 5)
    np.testing.assert_allclose(session.embed_tensor(faces(3)), before, rtol=1e-4, atol=1e-5)


def test_a_session_names_the_bytes_that_it_runs(bundle):
    build_engine(bundle, "int8")
    opened = open_bundle(bundle.root)
    engine, graph = open_session(opened), open_session(opened, artifact="graph")
    assert (engine.artifact, engine.file) == ("engine", "engines/onnxruntime-int8.onnx")
    assert (graph.artifact, graph.file) == ("graph", "model.int8.onnx")
    for session in (engine, graph):
        digest = hashlib.sha256((bundle.root / session.file).read_bytes()).hexdigest()
        assert session.sha256 == digest == opened.files[session.file].sha256
        assert session.largest_batch is None


def test_an_engine_that_was_not_built_is_refused(bundle):
    build_engine(bundle, "fp32")
    with pytest.raises(BundleError, match=r"has no int8 engine(\n|$)") as error:
        open_session(bundle.root, "int8")
    with pytest.raises(BundleError, match=r"has no int8 engine for onnxruntime(\n|$)"):
        open_session(bundle.root, "int8", "onnxruntime")
    assert "build-engine" in error.value.hint
    assert "--int8" in error.value.hint


def test_a_graph_runs_on_onnxruntime_only(bundle):
    with pytest.raises(UsageError, match="tensorrt runs engines"):
        open_session(bundle, "int8", "tensorrt", artifact="graph")
    with pytest.raises(UsageError, match="no artifact 'plan'"):
        open_session(bundle, "int8", artifact="plan")


def test_the_graph_rounds_in_every_int8_layer(bundle, faces):
    written = open_session(bundle, "int8", artifact="graph").embed_tensor(faces(3))
    build_engine(bundle, "int8")
    opened = open_bundle(bundle.root)
    graph = open_session(opened, "int8", artifact="graph")
    np.testing.assert_array_equal(graph.embed_tensor(faces(3)), written)
    assert (graph.int8_layers, graph.int8_in_float) == (4, 0)
    engine = open_session(opened, "int8")
    assert engine.int8_layers == 4
    if engine.int8_in_float:
        moved = np.abs(engine.embed_tensor(faces(3)) - written).max()
        assert moved > 1e-4 * np.abs(written).max()


def test_an_int8_engine_computes_its_layers_as_it_says(bundle, faces):
    build_engine(bundle, "int8")
    opened = open_bundle(bundle.root)
    facts = read_fingerprint(opened, "engines/onnxruntime-int8.onnx")
    flavour = cpu_model(load(opened.file("model.int8.onnx")), facts["integer_layers"])
    plain = ort.InferenceSession(flavour.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = plain.run(None, {"face": faces(3)})[0]
    session = open_session(opened, "int8")
    np.testing.assert_allclose(session.embed_tensor(faces(3)), expected, rtol=1e-4, atol=1e-5)
    assert session.int8_in_float == facts["int8_in_float"] == 4 - len(facts["integer_layers"])


def test_int8_is_not_fp32(bundle, faces):
    int8, fp32 = (
        open_session(bundle, p, artifact="graph").embed_tensor(faces(3)) for p in ("int8", "fp32")
    )
    assert 1e-4 < np.abs(int8 - fp32).max() < 0.5 * np.abs(fp32).max()


def test_auto_takes_the_best_engine_that_was_built(bundle):
    session = open_session(bundle)
    assert (session.precision, session.artifact) == ("fp32", "graph")
    for precision in ("fp32", "fp16", "int8"):
        build_engine(bundle, precision)
        session = open_session(bundle.root)
        assert (session.precision, session.artifact) == (precision, "engine")


def test_closed_sessions_say_so_and_two_may_be_open(bundle, faces):
    with open_session(bundle) as first:
        second = open_session(bundle)
        assert first.embed_tensor(faces(1)).shape == (1, 5)
    first.close()
    for call in (first.embed_tensor, lambda _: first.embed(np.zeros((1, 112, 112, 3), np.uint8))):
        with pytest.raises(UsageError, match="closed"):
            call(faces(1))
    assert second.embed_tensor(faces(1)).shape == (1, 5)


def test_a_thread_that_did_not_open_it_may_use_it(fp32, faces):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(fp32.embed_tensor(faces(9))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_engine_with_other_bytes_is_refused(bundle, precision):
    """Behind the bundle's back, with the manifest changed too, and while it is being opened."""
    build_engine(bundle, precision)
    name = f"engines/onnxruntime-{precision}.onnx"
    data = (bundle.root / name).read_bytes()
    opened = open_bundle(bundle.root, check="manifest")
    (bundle.root / name).write_bytes(data[:-1] + b"\0")
    for root in (opened, bundle.root):
        with pytest.raises(BundleError, match="was changed"):
            open_session(root, precision)
    (bundle.root / name).write_bytes(data)
    with transaction(bundle.root, "test", {}) as change:
        change.path(name, "engine").write_bytes(data[:-1] + b"\0")
    with pytest.raises(BundleError, match="not the engine that its fingerprint describes"):
        open_session(bundle.root, precision)


def test_unknown_names(bundle):
    with pytest.raises(UsageError, match="no engine 'int4'"):
        open_session(bundle, "int4")
    with pytest.raises(UsageError, match="no backend 'openvino'"):
        open_session(bundle, "fp32", "openvino")


def test_an_engine_of_another_machine_is_refused(bundle):
    build_engine(bundle, "fp32")
    opened = open_bundle(bundle.root)
    name = "engines/onnxruntime-fp32.onnx.json"
    text = opened.file(name).read_text().replace('"arch": "', '"arch": "another ')
    with transaction(bundle.root, "test", {}) as draft:
        draft.path(name, "engine fingerprint").write_text(text)
    with pytest.raises(MachineError, match="was built for arch 'another"):
        open_session(bundle.root, "fp32")


def test_an_engine_of_another_model_is_refused(bundle):
    build_engine(bundle, "int8")
    name = "engines/onnxruntime-int8.onnx.json"
    facts = json.loads(open_bundle(bundle.root).file(name).read_bytes())
    with transaction(bundle.root, "test", {}) as change:
        text = json.dumps({**facts, "source_sha256": "0" * 64})
        change.path(name, "engine fingerprint").write_text(text)
    with pytest.raises(BundleError, match=r"was built from another model\.int8\.onnx"):
        open_session(bundle.root, "int8")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"precision": "fp32"}', "\xff"])
def test_a_damaged_fingerprint(bundle, text):
    build_engine(bundle, "fp32")
    with transaction(bundle.root, "test", {}) as draft:
        path = draft.path("engines/onnxruntime-fp32.onnx.json", "engine fingerprint")
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match="cannot be read"):
        open_session(bundle.root, "fp32")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x01garbage" * 9])
def test_a_model_that_is_none(bundle, content):
    with transaction(bundle.root, "test", {}) as draft:
        draft.path("model.onnx", "model").write_bytes(content)
    with pytest.raises((BundleError, ModelError)):
        open_session(bundle.root, "fp32", artifact="graph")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize(("value", "says"), [(np.nan, "NaN"), (-np.inf, "infinity")])
def test_weights_that_are_not_numbers(bundle, precision, value, says):
    """Behind QuantizeLinear they would become integers, and nobody would know."""
    name = SOURCES[precision]
    model = load(bundle.file(name))
    weight = next(t for t in model.graph.initializer if t.name == "c2_w")
    values = numpy_helper.to_array(weight).copy()
    values[3, 2] = value
    weight.CopyFrom(numpy_helper.from_array(values, "c2_w"))
    with transaction(bundle.root, "test", {}) as draft:
        draft.path(name, "model").write_bytes(model.SerializeToString())
    for enter in (partial(open_session, artifact="graph"), build_engine):
        with pytest.raises(ModelError, match=f"c2_w holds {says}: 1 of 128 numbers"):
            enter(bundle.root, precision, "onnxruntime")


def test_cores_are_those_this_process_may_use():
    import os

    assert 1 <= cores() <= len(os.sched_getaffinity(0))


def test_a_call_copies_nothing(bundle, monkeypatch):
    """onnxruntime is given the caller's array, once, and the caller onnxruntime's."""
    build_engine(bundle, "fp32")
    session = open_session(bundle.root, "fp32")
    run, given, taken = session._session.run, [], []

    def recorded(outputs, feeds):
        given.extend(feeds.values())
        taken.extend(run(outputs, feeds))
        return taken

    monkeypatch.setattr(session, "_session", SimpleNamespace(run=recorded))
    faces = np.zeros((4, 3, 16, 16), np.float32)
    embeddings = session.embed_tensor(faces)
    assert len(given) == len(taken) == 1
    assert given[0] is faces
    assert embeddings is taken[0]
