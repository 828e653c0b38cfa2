"""INT8 layers run in integer kernels where that is faster here, and nowhere else."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from kernel_choice import RACE, REAL_RACE, all_in_float

from fr_edge.bundle.bundle import open_bundle
from fr_edge.runtime import cpu_kernel_selection
from fr_edge.runtime.build import build_engine
from fr_edge.runtime.cpu_kernel_selection import select_kernels
from fr_edge.runtime.fingerprint import read_fingerprint


@pytest.fixture
def priced(monkeypatch):
    """A `load` whose runs take so many milliseconds of a clock for each product, convolution and
    face; every fifth run is held up."""
    now, runs = 0.0, 0
    monkeypatch.setattr(RACE, REAL_RACE)
    monkeypatch.setattr(cpu_kernel_selection, "time", SimpleNamespace(perf_counter=lambda: now))

    def prices(integer: float, float_: float):
        def load(data: bytes):
            counts = Counter(node.op_type for node in onnx.load_from_string(data).graph.node)
            each = {"MatMulIntegerToFloat": integer, "Conv": float_}
            cost = sum(1e-3 * each.get(op, 0) * count for op, count in counts.items())

            def run(faces: np.ndarray) -> None:
                nonlocal now, runs
                runs += 1
                now += cost * len(faces) + (0.1 if runs % 5 == 0 else 0)

            return run

        return load

    return prices


def test_all_in_integers_where_those_are_faster(tiny, priced):
    tried = select_kernels(tiny(int8=True), priced(integer=0.02, float_=0.1), (1, 2))
    assert set(tried[0].layers) == {"c2", "c4", "c5"}
    assert max(tried[0].relative) < 0.9
    assert [max(one.relative) for one in tried] == sorted(max(one.relative) for one in tried)


def test_all_in_float_where_integers_are_slower(tiny, priced):
    tried = select_kernels(tiny(int8=True), priced(integer=0.1, float_=0.02), (1, 2))
    assert tried[0].layers == ()
    assert tried[0].relative == (1.0, 1.0)
    # 8 x 16 weights twice and 12 x 8: two intensities, and none
    assert sorted(len(one.layers) for one in tried) == [0, 2, 3]


def test_a_network_without_a_choice_is_not_run(tiny):
    def load(data: bytes):
        raise AssertionError

    assert [one.layers for one in select_kernels(tiny(), load, (1, 4))] == [()]


def test_the_build_says_what_it_chose(bundle, caplog):
    caplog.set_level("INFO")
    built = build_engine(bundle, "int8", "onnxruntime")
    assert built.layers == {"int8": 4, "fp16": 0, "fp32": 3}
    assert built.describe_layers() == "4 INT8 (2 in integer kernels), 3 FP32"
    assert "2 of 4 INT8 layers run on integer kernels" in caplog.text
    assert "2 INT8 layers compute in float" in caplog.text
    assert "round no activation" in caplog.text
    caplog.clear()
    with all_in_float():
        built = build_engine(bundle, "int8", "onnxruntime")
    assert built.describe_layers() == "4 INT8 (0 in integer kernels), 3 FP32"
    says = "INT8 is not faster than float on this CPU: all 4 INT8 layers run in float"
    assert says in caplog.text
    assert "4 INT8 layers compute in float" in caplog.text


def test_a_build_races_the_kernels(bundle, monkeypatch):
    """By the clock of this machine: either may win, and the choice is what the engine runs."""
    monkeypatch.setattr(RACE, REAL_RACE)
    monkeypatch.setattr(cpu_kernel_selection, "_SECONDS", 0.05)
    built = build_engine(bundle, "int8", "onnxruntime")
    assert built.layers == {"int8": 4, "fp16": 0, "fp32": 3}
    assert built.integer_kernels in (0, 2, 3)
    facts = read_fingerprint(open_bundle(bundle.root), "engines/onnxruntime-int8.onnx")
    tried = facts["kernel_selection"]
    assert sorted(one["int8"] for one in tried) == [0, 2, 3]
    assert tried[0]["int8"] == built.integer_kernels == len(facts["integer_layers"])
    slowest = [max(one["relative"]) for one in tried]
    assert slowest == sorted(slowest)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_other_precisions_have_no_integer_kernels(bundle, precision):
    built = build_engine(bundle, precision, "onnxruntime")
    assert (built.integer_kernels, built.layers["int8"]) == (0, 0)
