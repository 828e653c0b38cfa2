"""The whole stage on a small network: what comes into the bundle, and what never does."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.bundle.manifest import Bundle
from fr_edge.calibration.calibrate import Steps, calibrate
from fr_edge.calibration.equalization import equalize, scale_groups
from fr_edge.calibration.latency_model import LatencyModel, LatencyOf
from fr_edge.calibration.mixed_precision import REASON, Budget, Judge
from fr_edge.calibration.table import read_table
from fr_edge.errors import BundleError, FacesError, GateFailed, ModelError, UsageError
from fr_edge.faces.sources import Faces
from fr_edge.graph.layers import Int8Choice, choose_int8_layers, compute_layers


@pytest.fixture
def bundle(exported: Bundle, tmp_path: Path) -> Path:
    shutil.copytree(exported.root, tmp_path / "n.bundle")
    return tmp_path / "n.bundle"


def content(root: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_what_comes_into_the_bundle(bundle: Path, faces: Faces) -> None:
    done = calibrate(bundle, faces)
    summary = done.history[-1]["summary"]
    table = read_table(done.file("calibration.json"))
    assert table.faces == summary["faces"] == 32
    assert summary["identities"] == 16
    assert summary["judged"]["faces"] == 8
    assert summary["judged"]["people"] == 4
    assert summary["judged"]["cosine"]["min"] > 0.99
    assert summary["int8_dense_share"] == 1.0
    assert summary["drawn_faces"]
    report = json.loads(done.file("reports/calibration.json").read_text())
    assert report["trials"][0]["cosine"] == summary["judged"]["cosine"]
    assert table.model_sha256 == done.files["model.onnx"].sha256
    onnx.checker.check_model(onnx.load(done.file("model.int8.onnx")), full_check=True)


def test_labels_that_the_network_does_not_know(bundle: Path, faces: Faces) -> None:
    """15 people of eight faces each, drawn by lot; of drawn people nothing is said."""
    lot = np.random.default_rng(1).permutation(120)
    mixed = replace(
        faces,
        keys=[str(i) for i in range(120)],
        labels=np.repeat(np.arange(15), 8),
        read=lambda index: faces.read(lot[index] % 40),
    )
    for drawn in (True, False):
        done = calibrate(bundle, replace(mixed, drawn=drawn), limit=8)
        warnings = done.history[-1]["summary"]["warnings"]
        assert drawn != any(text.startswith("the float network accepts") for text in warnings)


def test_twice_is_the_same(bundle: Path, faces: Faces) -> None:
    first = calibrate(bundle, faces)
    model = first.file("model.int8.onnx").read_bytes()
    assert calibrate(bundle, faces).file("model.int8.onnx").read_bytes() == model


def test_every_method_works(bundle: Path, faces: Faces) -> None:
    for method in ("minmax", "percentile", "entropy", "mse"):
        summary = calibrate(bundle, faces, method).history[-1]["summary"]
        assert summary["method"] == method
        assert summary["judged"]["cosine"]["mean"] > 0.98


def test_a_budget_puts_layers_back_to_float(bundle: Path, faces: Faces) -> None:
    free = calibrate(bundle, faces).history[-1]["summary"]
    worst = free["judged"]["cosine"]["min"]
    done = calibrate(bundle, faces, budget=Budget(min_cosine=worst + 0.3 * (1 - worst)))
    summary = done.history[-1]["summary"]
    assert summary["kept_float"][REASON] >= 1
    assert 0 < summary["int8_mac_share"] < free["int8_mac_share"]
    assert summary["judged"]["cosine"]["min"] >= worst + 0.3 * (1 - worst)
    trials = json.loads(done.file("reports/calibration.json").read_text())["trials"]
    assert len(trials) >= 2
    assert trials[-1]["int8_mac_share"] == summary["int8_mac_share"]
    assert not list(bundle.parent.glob(".*.calibrate"))


SEARCH = r"""
import sys
from fr_edge.calibration.mixed_precision import Budget
from fr_edge.calibration.calibrate import calibrate
from fr_edge.faces.sources import open_faces
calibrate(sys.argv[1], open_faces("synthetic:20x2@7"), budget=Budget(min_cosine=float(sys.argv[2])))
"""


def test_a_search_goes_on_where_it_was_killed(
    bundle: Path, faces: Faces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed by the system in the middle, it ends as if it had never been."""
    cosine = 0.9999
    whole = bundle.with_name("whole.bundle")
    shutil.copytree(bundle, whole)
    measured: list[str] = []
    error = Judge.error
    monkeypatch.setattr(Judge, "error", lambda *a: measured.append(a[2]) or error(*a))
    expected = calibrate(whole, faces, budget=Budget(min_cosine=cosine)).file("model.int8.onnx")
    layers = list(measured)
    before = content(bundle)
    journal = bundle.with_name(f".{bundle.name}.calibrate")
    child = subprocess.Popen([sys.executable, "-c", SEARCH, str(bundle), str(cosine)])
    try:
        end = time.monotonic() + 60
        while not journal.exists() or layers[0] not in json.loads(journal.read_text())["found"]:
            assert child.poll() is None
            assert time.monotonic() < end
            time.sleep(0.005)
    finally:
        child.kill()
        child.wait()
    assert content(bundle) == before
    found = json.loads(journal.read_text())["found"]
    done = [layer for layer in layers if layer in found]
    assert 0 < len(done) < len(layers)
    measured.clear()
    again = calibrate(bundle, faces, budget=Budget(min_cosine=cosine)).file("model.int8.onnx")
    assert measured == layers[len(done) :]
    assert again.read_bytes() == expected.read_bytes()
    assert not journal.exists()


def test_another_budget_finds_what_was_judged(
    bundle: Path, faces: Faces, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(bundle)
    with pytest.raises(GateFailed, match=r"no assignment holds cosine >= 1: with one layer"):
        calibrate(bundle, faces, budget=Budget(min_cosine=1.0))
    assert content(bundle) == before
    monkeypatch.delattr(Judge, "error")
    calibrate(bundle, faces, budget=Budget(min_cosine=0.9))
    assert not list(bundle.parent.glob(".*.calibrate"))


def hard(bundle: Path) -> str:
    """The same network, but with one tensor of which a few channels are 50 times as loud: no single
    range fits it. Returns the layer that reads it."""
    model = onnx.load(bundle / "model.onnx")
    tensor = next(n.output[0] for n in model.graph.node if n.op_type == "Conv" and "pool" in n.name)
    groups = scale_groups(model)
    scale = np.ones(32)
    scale[::8] = 1 / 50
    loud = equalize(model, {t: scale for t in groups if groups[t] == groups[tensor]})
    with transaction(bundle, "test", {}) as draft:
        draft.path("model.onnx", "hard").write_bytes(loud.SerializeToString())
    return next(layer.name for layer in compute_layers(model) if layer.op == "Gemm")


def test_a_budget_of_true_accepts_leaves_out_the_layer_that_costs_them(
    bundle: Path, faces: Faces
) -> None:
    layer = hard(bundle)
    done = calibrate(
        bundle,
        faces,
        "minmax",
        steps=Steps(False, False, False, False),
        budget=Budget(max_tar_drop=0.1, far=0.05),
    )
    trials = json.loads(done.file("reports/calibration.json").read_text())["trials"]
    drops = [-trial["rates"][0]["delta"] for trial in trials]
    assert drops[0] > 0.1 >= drops[-1]
    assert trials[-1]["float_layers"] == [layer]
    assert trials[0]["cost"] < trials[-1]["cost"] < 1.0


def test_a_budget_that_the_faces_cannot_show(bundle: Path, faces: Faces) -> None:
    with pytest.raises(FacesError, match="FAR 1e-06 needs 1000000"):
        calibrate(bundle, faces, budget=Budget(max_tar_drop=0.01, far=1e-6))
    alone = replace(faces, labels=np.zeros(len(faces), np.int64))
    with pytest.raises(FacesError, match="people held apart"):
        calibrate(bundle, alone, budget=Budget(min_cosine=0.9))


def test_calls_that_make_no_sense(bundle: Path, faces: Faces) -> None:
    for wrong in ({"method": "magic"}, {"limit": 0}, {"limit": 10**6}):
        with pytest.raises(UsageError):
            calibrate(bundle, faces, **wrong)


def test_bad_faces_leave_the_bundle_alone(bundle: Path, faces: Faces) -> None:
    before = content(bundle)
    none = replace(faces, keys=(), labels=np.zeros(0, np.int64))
    black = replace(faces, read=lambda _: np.zeros((112, 112, 3), np.uint8))
    for bad in (none, black):
        with pytest.raises(FacesError):
            calibrate(bundle, bad)
    assert content(bundle) == before


def test_a_network_that_overflows(bundle: Path, faces: Faces) -> None:
    model = onnx.load(bundle / "model.onnx")
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 4)
    array = numpy_helper.to_array(tensor) * np.float32(1e38)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    with transaction(bundle, "test", {}) as draft:
        draft.path("model.onnx", "broken").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="not finite"):
        calibrate(bundle, faces)


def test_a_bundle_without_a_model(bundle: Path, faces: Faces) -> None:
    with transaction(bundle, "test", {}) as draft:
        draft.remove("model.onnx")
    with pytest.raises(BundleError, match="model.onnx"):
        calibrate(open_bundle(bundle), faces)


PEAK = r"""
import re, sys, numpy as np
from fr_edge.calibration.calibrate import calibrate
from fr_edge.faces.sources import Faces
n = int(sys.argv[2])
read = lambda i: np.random.default_rng(i).integers(0, 255, (112, 112, 3), np.uint8)
calibrate(sys.argv[1], Faces("x", range(n), np.arange(n) % 64, read), limit=n)
# Not ru_maxrss: that begins at the size of the process this one was forked from.
status = open("/proc/self/status").read()
print(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024)
"""


def test_memory_does_not_grow_with_the_faces(bundle: Path) -> None:
    def peak_mb(faces: int) -> float:
        command = [sys.executable, "-c", PEAK, str(bundle), str(faces)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    few, many = peak_mb(64), peak_mb(640)
    assert many < 1.1 * few
    assert many < 500


def slower_in(slow: str, by: float, noise: float) -> LatencyOf:
    """Every INT8 layer saves a hundredth, but for the one where it costs `by`."""

    def latency(model: onnx.ModelProto, quantised: object) -> LatencyModel:
        def cost(choice: Int8Choice) -> float:
            return 1.0 - 0.01 * len(choice.int8) + (0.01 + by) * (slow in choice.int8)

        return LatencyModel("made up", cost, lambda: noise)

    return latency


def test_int8_that_is_slower_stays_out_though_the_budget_holds(bundle: Path, faces: Faces) -> None:
    layer = choose_int8_layers(onnx.load(bundle / "model.onnx")).int8[1]
    budget = Budget(min_cosine=0.5)
    for by, noise, kept in ((0.02, 0.01, {layer: REASON}), (0.02, 0.03, {}), (-0.01, 0.0, {})):
        done = calibrate(bundle, faces, budget=budget, latency=slower_in(layer, by, noise))
        assert read_table(done.file("calibration.json")).floats == kept
        report = json.loads(done.file("reports/calibration.json").read_text())
        assert report["time"] == "made up"


def test_times_of_another_kind_are_not_recalled(
    bundle: Path, faces: Faces, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(GateFailed):
        calibrate(bundle, faces, budget=Budget(min_cosine=1.0))
    layer = choose_int8_layers(onnx.load(bundle / "model.onnx")).int8[0]
    judged: list[Sequence[str]] = []
    trial = Judge.trial
    monkeypatch.setattr(Judge, "trial", lambda *a: judged.append(a[2]) or trial(*a))
    calibrate(bundle, faces, budget=Budget(min_cosine=0.9), latency=slower_in(layer, 0.0, 0.0))
    assert judged == [()]


def test_times_that_noise_hides_are_counted(bundle: Path, faces: Faces) -> None:
    """Layers go back to float in the order of counted times, and the fewest that do are taken."""
    worst = calibrate(bundle, faces).history[-1]["summary"]["judged"]["cosine"]["min"]
    budget = Budget(min_cosine=worst + 0.3 * (1 - worst))
    layer = choose_int8_layers(onnx.load(bundle / "model.onnx")).int8[-1]
    kept = [
        read_table(calibrate(bundle, faces, budget=budget, **how).file("calibration.json")).floats
        for how in ({}, {"latency": slower_in(layer, 0.5, 1.0)})
    ]
    assert kept[0] == kept[1] != {}
