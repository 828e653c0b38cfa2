"""Sessions on onnxruntime: what they take, what they refuse, what they cost."""

import threading
import time

import numpy as np
import onnxruntime as ort
import pytest
from onnx import load, numpy_helper

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.errors import BundleError, MachineError, ModelError, UsageError
from fr_edge.graph.cpu_int8 import cpu_model
from fr_edge.runtime.build import build_engine
from fr_edge.runtime.fingerprint import SOURCES, int8_in_float, read_fingerprint
from fr_edge.runtime.machine.device import cores
from fr_edge.runtime.onnxruntime_session import CpuSession
from fr_edge.runtime.session import open_judged, open_raw_session, open_session


def reference(bundle, faces):
    session = ort.InferenceSession(
        str(bundle.file("model.onnx")), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"face": faces})[0]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 31])
def test_batches_of_any_size(bundle, faces, count):
    found = open_session(bundle, "fp32").embed(faces(count))
    assert found.shape == (count, 5)
    assert found.dtype == np.float32
    if count:
        np.testing.assert_allclose(found, reference(bundle, faces(count)), rtol=1e-4, atol=1e-5)


def test_a_view_that_is_not_contiguous(bundle, faces):
    wide = faces(6)
    found = open_session(bundle, "fp32").embed(wide[::2])
    np.testing.assert_allclose(found, reference(bundle, wide[::2].copy()), rtol=1e-4, atol=1e-5)


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
def test_wrong_faces_are_named(bundle, wrong):
    with pytest.raises(UsageError, match=r"expected faces \(N, 3, 16, 16\) float32, found"):
        open_session(bundle, "fp32").embed(wrong)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_engine_computes_what_the_model_does(bundle, faces, precision):
    before = open_session(bundle, precision).embed(faces(3))
    build_engine(bundle, precision)
    session = open_session(bundle.root, precision)
    assert (session.backend, session.precision, session.dim) == ("onnxruntime", precision, 5)
    np.testing.assert_allclose(session.embed(faces(3)), before, rtol=1e-4, atol=1e-5)


def test_what_is_judged_rounds_in_every_int8_layer(bundle, faces):
    written = open_session(bundle, "int8").embed(faces(3))  # no engine yet: every Q and DQ
    build_engine(bundle, "int8")
    opened = open_bundle(bundle.root)
    np.testing.assert_allclose(open_judged(opened, "int8").embed(faces(3)), written, rtol=1e-5)
    if int8_in_float(opened, "engines/onnxruntime-int8.onnx"):
        engine = open_session(opened, "int8").embed(faces(3))
        assert np.abs(engine - written).max() > 1e-4 * np.abs(written).max()


def test_an_int8_engine_computes_its_layers_as_it_says(bundle, faces):
    build_engine(bundle, "int8")
    opened = open_bundle(bundle.root)
    facts = read_fingerprint(opened, "engines/onnxruntime-int8.onnx")
    flavour = cpu_model(load(opened.file("model.int8.onnx")), facts["integer_layers"])
    session = ort.InferenceSession(flavour.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"face": faces(3)})[0]
    found = open_session(opened, "int8").embed(faces(3))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert facts["int8_in_float"] == 4 - len(facts["integer_layers"])
    assert int8_in_float(opened, "engines/onnxruntime-int8.onnx") == facts["int8_in_float"]
    assert int8_in_float(opened, "engines/onnxruntime-fp32.onnx") == 0


def test_int8_is_not_fp32(bundle, faces):
    int8, fp32 = (open_session(bundle, p).embed(faces(3)) for p in ("int8", "fp32"))
    assert 1e-4 < np.abs(int8 - fp32).max() < 0.5 * np.abs(fp32).max()


def test_auto_takes_the_best_engine_that_was_built(bundle):
    assert open_session(bundle).precision == "fp32"
    build_engine(bundle, "fp16")
    assert open_session(bundle.root).precision == "fp16"
    build_engine(bundle, "int8")
    assert open_session(bundle.root).precision == "int8"


def test_closed_sessions_say_so_and_two_may_be_open(bundle, faces):
    first, second = open_session(bundle, "fp32"), open_session(bundle, "fp32")
    assert isinstance(first, CpuSession)
    first.close()
    first.close()
    with pytest.raises(UsageError, match="closed"):
        first.embed(faces(1))
    assert second.embed(faces(1)).shape == (1, 5)


def test_a_thread_that_did_not_open_it_may_use_it(bundle, faces):
    session, found = open_session(bundle, "fp32"), []
    threads = [
        threading.Thread(target=lambda: found.append(session.embed(faces(9)))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(np.array_equal(one, found[0]) for one in found)


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
    source = bundle.file("model.onnx").read_bytes()
    with transaction(bundle.root, "test", {}) as draft:
        draft.path("model.int8.onnx", "model").write_bytes(source)
    with pytest.raises(BundleError, match=r"was built from another model\.int8\.onnx"):
        open_session(bundle.root, "int8")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"precision": "fp64"}'])
def test_a_damaged_fingerprint(bundle, text):
    build_engine(bundle, "fp32")
    with transaction(bundle.root, "test", {}) as draft:
        path = draft.path("engines/onnxruntime-fp32.onnx.json", "engine fingerprint")
        path.write_text(text)
    with pytest.raises(BundleError, match="cannot be read"):
        open_session(bundle.root, "fp32")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x01garbage" * 9])
def test_a_model_that_is_none(bundle, content):
    with transaction(bundle.root, "test", {}) as draft:
        draft.path("model.onnx", "model").write_bytes(content)
    with pytest.raises((BundleError, ModelError)):
        open_session(bundle.root, "fp32")


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
    for enter in (open_session, open_raw_session, build_engine):
        with pytest.raises(ModelError, match=f"c2_w holds {says}: 1 of 128 numbers"):
            enter(bundle.root, precision, "onnxruntime")


def test_cores_are_those_this_process_may_use():
    import os

    assert 1 <= cores() <= len(os.sched_getaffinity(0))


def test_a_call_costs_little_more_than_onnxruntime(bundle):
    """Whoever calls `embed` pays for a check and nothing else: no copy, no conversion."""
    build_engine(bundle, "fp32")
    session = open_session(bundle.root, "fp32")
    inner, face = session._session, np.zeros((4, 3, 16, 16), np.float32)
    ours, theirs = [], []
    for _ in range(200):
        start = time.perf_counter_ns()
        session.embed(face)
        middle = time.perf_counter_ns()
        inner.run(None, {"face": face})
        ours.append(middle - start)
        theirs.append(time.perf_counter_ns() - middle)
    assert np.percentile(ours, 10) - np.percentile(theirs, 10) < 50_000  # ns
