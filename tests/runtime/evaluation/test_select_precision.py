"""The precision is chosen by measurement, among those that hold."""

import pytest
from onnx import load, numpy_helper

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.errors import GateFailed, MachineError
from fr_edge.runtime.evaluation.select_precision import select_precision
from fr_edge.runtime.machine.backends import lacking
from fr_edge.runtime.session import open_session


def test_the_fastest_that_holds_is_kept(mini):
    result = select_precision(mini, duration_s=0.2)
    rows = {c.precision: c for c in result.candidates}
    assert set(rows) == {"fp32", "fp16", "int8"}
    timed = {name: c.min_ms for name, c in rows.items() if not c.problem}
    assert result.chosen == min(timed, key=timed.get)
    assert all(c.min_ms is None for c in rows.values() if c.problem)
    bundle = open_bundle(mini)
    engines = [
        name for name in bundle.files if name.startswith("engines/") and name.endswith(".onnx")
    ]
    assert engines == [f"engines/onnxruntime-{result.chosen}.onnx"]
    assert open_session(bundle).precision == result.chosen
    assert result.engine == engines[0]


def test_what_does_not_hold_is_not_taken_however_fast(mini):
    """The INT8 file is another network here: its gate must keep it out."""
    bundle = open_bundle(mini)
    wrong = load(bundle.file("model.int8.onnx"))
    for tensor in wrong.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim == 4:
            tensor.CopyFrom(numpy_helper.from_array(values[::-1].copy(), tensor.name))
    with transaction(mini, "test", {}) as draft:
        draft.path("model.int8.onnx", "model").write_bytes(wrong.SerializeToString())
    result = select_precision(mini, duration_s=0.1)
    rows = {c.precision: c for c in result.candidates}
    assert "cosine" in rows["int8"].problem
    assert result.chosen != "int8"


def test_none_that_holds_fails_the_gate(mini):
    with transaction(mini, "test", {}) as draft:
        draft.remove("golden.npz")
    with pytest.raises(GateFailed, match=r"no precision passes: fp32: .*golden\.npz"):
        select_precision(mini, duration_s=0.1)


def test_compiling_is_not_running(mini):
    if not lacking("tensorrt-rtx"):
        pytest.skip("this machine runs tensorrt-rtx")
    with pytest.raises(MachineError, match="tensorrt-rtx backend cannot be used"):
        select_precision(mini, "tensorrt-rtx")
