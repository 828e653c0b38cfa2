"""The whole stage on a small network: what comes into the bundle, and what never does."""

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.bundle.manifest import Bundle
from fr_edge.calibration.calibrate import CalibrationResult, calibrate
from fr_edge.calibration.equalization import equalize
from fr_edge.calibration.fitting import RANGES_ONLY
from fr_edge.calibration.scale_groups import scale_groups
from fr_edge.calibration.search.budget import Budget
from fr_edge.calibration.search.latency_model import LatencyModel, LatencyOf
from fr_edge.calibration.search.mixed_precision import REASON, HeldOutJudge
from fr_edge.calibration.table import read_table, table_to_json
from fr_edge.documents import to_builtins
from fr_edge.errors import BundleError, FacesError, GateFailed, ModelError, UsageError
from fr_edge.faces.sources import Faces
from fr_edge.graph.layers import Int8Choice, choose_int8_layers, weighted_layers


@pytest.fixture
def bundle(exported: Bundle, tmp_path: Path) -> Path:
    shutil.copytree(exported.root, tmp_path / "n.bundle")
    return tmp_path / "n.bundle"


def int8_model(done: CalibrationResult) -> bytes:
    return done.bundle.file("model.int8.onnx").read_bytes()


def worst_cosine(done: CalibrationResult) -> float:
    assert done.report.judged is not None
    return done.report.judged.cosine.min


def content(root: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_what_comes_into_the_bundle(bundle: Path, faces: Faces) -> None:
    done = calibrate(bundle, faces)
    report = done.report
    table = read_table(done.bundle.file("calibration.json"))
    assert table_to_json(table) == table_to_json(done.table)
    assert table.faces == report.faces == 32
    assert report.identities == 16
    assert report.judged is not None
    assert (report.judged.faces, report.judged.people) == (8, 4)
    assert report.judged.cosine.min > 0.99
    assert report.trials[0].loss == report.judged
    assert report.int8_dense_share == 1.0
    assert report.synthetic_faces
    written = json.loads(done.bundle.file("reports/calibration.json").read_text())
    assert written == to_builtins(report)
    summary = done.bundle.history[-1]["summary"]
    assert summary["judged"] == written["judged"]
    assert "trials" not in summary
    assert table.model_sha256 == done.bundle.files["model.onnx"].sha256
    onnx.checker.check_model(onnx.load(done.bundle.file("model.int8.onnx")), full_check=True)


def test_each_face_is_decoded_once(bundle: Path, faces: Faces) -> None:
    """More faces than are looked at for their alignment, and a budget, which judges several times."""
    reads: Counter[int] = Counter()

    def read(index: int) -> np.ndarray:
        reads[index] += 1
        return faces.read(index % 40)

    labels = np.arange(400) % 100
    many = Faces("many", [str(i) for i in range(400)], labels, read)
    done = calibrate(bundle, many, limit=200, budget=Budget(min_cosine=0.9))
    assert done.report.faces == 200
    assert len(reads) > 200
    assert set(reads.values()) == {1}


def test_labels_that_the_network_does_not_know(
    bundle: Path, faces: Faces, caplog: pytest.LogCaptureFixture
) -> None:
    """15 people of eight faces each, in random order; synthetic people give no such warning."""
    order = np.random.default_rng(1).permutation(120)
    mixed = replace(
        faces,
        keys=[str(i) for i in range(120)],
        labels=np.repeat(np.arange(15), 8),
        read=lambda index: faces.read(order[index] % 40),
    )
    for synthetic in (True, False):
        done = calibrate(bundle, replace(mixed, synthetic=synthetic), limit=8, force=True)
        logged = [record.message for record in caplog.records]
        assert list(done.report.warnings) == logged
        assert synthetic != any(text.startswith("the float network accepts") for text in logged)
        caplog.clear()


def test_unusable_faces_replace_no_calibration(bundle: Path, faces: Faces) -> None:
    """People that the network does not know, and faces that are shifted, after a good calibration."""
    order = np.random.default_rng(1).permutation(120)
    mixed = replace(
        faces,
        keys=[str(i) for i in range(120)],
        labels=np.repeat(np.arange(15), 8),
        read=lambda index: faces.read(order[index] % 40),
        synthetic=False,
    )

    def shifted(index: int) -> np.ndarray:
        return np.roll(faces.read(index), (index * 13 % 112, index * 29 % 112), (0, 1))

    calibrate(bundle, faces)
    names = ("calibration.json", "model.int8.onnx", "reports/calibration.json", "bundle.json")
    before = {name: (bundle / name).read_bytes() for name in names}
    for unusable, reason in (
        (mixed, "float network accepts"),
        (replace(faces, read=shifted, synthetic=False), "do not look aligned"),
    ):
        with pytest.raises(FacesError, match=reason) as refused:
            calibrate(bundle, unusable)
        assert (refused.value.exit_code, "--force" in refused.value.hint) == (4, True)
        assert {name: (bundle / name).read_bytes() for name in names} == before
    done = calibrate(bundle, mixed, force=True)
    assert any("float network accepts" in text for text in done.report.warnings)
    assert (bundle / "calibration.json").read_bytes() != before["calibration.json"]


def test_twice_is_the_same(bundle: Path, faces: Faces) -> None:
    first, second = (int8_model(calibrate(bundle, faces)) for _ in range(2))
    assert first == second


def test_every_method_works(bundle: Path, faces: Faces) -> None:
    for method in ("minmax", "percentile", "entropy", "mse"):
        report = calibrate(bundle, faces, method).report
        assert report.method == method
        assert report.judged is not None
        assert report.judged.cosine.mean > 0.98


def test_a_budget_puts_layers_back_to_float(bundle: Path, faces: Faces) -> None:
    free = calibrate(bundle, faces)
    budget = Budget(min_cosine=worst_cosine(free) + 0.3 * (1 - worst_cosine(free)))
    done = calibrate(bundle, faces, budget=budget)
    report = done.report
    assert report.kept_float[REASON] == len(done.table.float_layers) >= 1
    assert set(done.table.float_layers) == set(report.trials[-1].float_layers)
    assert 0 < report.int8_mac_share < free.report.int8_mac_share
    assert worst_cosine(done) >= budget.min_cosine
    assert len(report.trials) >= 2
    assert report.trials[-1].int8_mac_share == report.int8_mac_share
    assert not list(bundle.parent.glob(".*.calibrate"))


SEARCH = r"""
import sys
from fr_edge.calibration.search.budget import Budget
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
    error = HeldOutJudge.layer_error
    monkeypatch.setattr(HeldOutJudge, "layer_error", lambda *a: measured.append(a[2]) or error(*a))
    expected = int8_model(calibrate(whole, faces, budget=Budget(min_cosine=cosine)))
    layers = list(measured)
    before = content(bundle)
    log = bundle.with_name(f".{bundle.name}.calibrate")
    child = subprocess.Popen([sys.executable, "-c", SEARCH, str(bundle), str(cosine)])
    try:
        end = time.monotonic() + 60
        while not log.exists() or layers[0] not in json.loads(log.read_text())["results"]:
            assert child.poll() is None
            assert time.monotonic() < end
            time.sleep(0.005)
    finally:
        child.kill()
        child.wait()
    assert content(bundle) == before
    results = json.loads(log.read_text())["results"]
    done = [layer for layer in layers if layer in results]
    assert 0 < len(done) < len(layers)
    measured.clear()
    resumed = int8_model(calibrate(bundle, faces, budget=Budget(min_cosine=cosine)))
    assert measured == layers[len(done) :]
    assert resumed == expected
    assert not log.exists()


def test_another_budget_finds_what_was_judged(
    bundle: Path, faces: Faces, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(bundle)
    with pytest.raises(GateFailed, match=r"no assignment holds cosine >= 1: with one layer"):
        calibrate(bundle, faces, budget=Budget(min_cosine=1.0))
    assert content(bundle) == before
    monkeypatch.delattr(HeldOutJudge, "layer_error")
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
    loud = equalize(model, {t: scale for t in groups if np.array_equal(groups[t], groups[tensor])})
    with transaction(bundle, "test", {}) as draft:
        draft.path("model.onnx", "hard").write_bytes(loud.SerializeToString())
    return next(layer.name for layer in weighted_layers(model) if layer.op == "Gemm")


def test_a_budget_of_true_accepts_leaves_out_the_layer_that_costs_them(
    bundle: Path, faces: Faces
) -> None:
    """20 of 40 people judge, as many as an interval needs; every second face is the one before it,
    noisy."""
    layer = hard(bundle)

    def read(index: int) -> np.ndarray:
        noise = np.random.default_rng(index).normal(0, 30 * (index % 2), faces.read(0).shape)
        return (faces.read(index // 2) + noise).clip(0, 255).astype(np.uint8)

    keys, labels = [str(i) for i in range(80)], np.arange(80) // 2
    many = replace(faces, keys=keys, labels=labels, read=read)

    def budgeted(drop: float) -> CalibrationResult:
        budget = Budget(max_tar_drop=drop, far=0.05)
        return calibrate(bundle, many, "minmax", limit=40, steps=RANGES_ONLY, budget=budget)

    # 20 people cannot show so small a drop: the safest assignment is left, and the gate failed.
    with pytest.raises(
        GateFailed, match=r"cannot judge TAR drop <= 0\.001 .*safest .*: 1 of 4 layer"
    ):
        budgeted(0.001)
    safest = open_bundle(bundle)
    assert len(read_table(safest.file("calibration.json")).float_layers) == 3
    model = onnx.load(safest.file("model.int8.onnx"))
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) == 2
    done = budgeted(0.2)
    kept = (bundle / "calibration.json").read_bytes()
    with pytest.raises(GateFailed, match="cannot judge .*; the bundle's calibration is kept"):
        budgeted(0.001)
    assert (bundle / "calibration.json").read_bytes() == kept
    trials = done.report.trials
    rates = [trial.loss.at(0.05) for trial in trials]
    drops = [rate.drop for rate in rates if rate]
    assert drops[0] > 0.1 >= drops[-1]
    assert trials[-1].float_layers == (layer,)
    assert trials[0].cost < trials[-1].cost < 1.0


def test_a_budget_that_the_faces_cannot_show(bundle: Path, faces: Faces) -> None:
    with pytest.raises(FacesError, match="cannot judge .*FAR 1e-06 needs 5,000,000"):
        calibrate(bundle, faces, budget=Budget(max_tar_drop=0.01, far=1e-6))
    alone = replace(faces, labels=np.zeros(len(faces), np.int64))
    with pytest.raises(FacesError, match="held-out people"):
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
calibrate(sys.argv[1], Faces("x", range(n), np.arange(n) % 64, read), limit=n, force=True)
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

    def latency(model: onnx.ModelProto, quantize: object) -> LatencyModel:
        def cost(choice: Int8Choice) -> float:
            return 1.0 - 0.01 * len(choice.int8) + (0.01 + by) * (slow in choice.int8)

        return LatencyModel("made up", cost, lambda: noise)

    return latency


def test_int8_that_is_slower_stays_out_though_the_budget_holds(bundle: Path, faces: Faces) -> None:
    layer = choose_int8_layers(onnx.load(bundle / "model.onnx")).int8[1]
    budget = Budget(min_cosine=0.5)
    for by, noise, float_layers in (
        (0.02, 0.01, {layer: REASON}),
        (0.02, 0.03, {}),
        (-0.01, 0.0, {}),
    ):
        done = calibrate(bundle, faces, budget=budget, latency=slower_in(layer, by, noise))
        assert done.table.float_layers == float_layers
        assert done.report.time_source == "made up"


def test_times_of_another_kind_are_not_recalled(
    bundle: Path, faces: Faces, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(GateFailed):
        calibrate(bundle, faces, budget=Budget(min_cosine=1.0))
    layer = choose_int8_layers(onnx.load(bundle / "model.onnx")).int8[0]
    judged: list[Sequence[str]] = []
    assess = HeldOutJudge.assess
    monkeypatch.setattr(HeldOutJudge, "assess", lambda *a: judged.append(a[2]) or assess(*a))
    latency = slower_in(layer, 0.0, 0.0)
    calibrate(bundle, faces, budget=Budget(min_cosine=0.9), latency=latency, depthwise="float")
    assert judged == [()]


def test_times_that_noise_hides_are_counted(bundle: Path, faces: Faces) -> None:
    """Layers go back to float in the order of counted times, and the fewest that do are taken."""
    worst = worst_cosine(calibrate(bundle, faces))
    budget = Budget(min_cosine=worst + 0.3 * (1 - worst))
    layer = choose_int8_layers(onnx.load(bundle / "model.onnx")).int8[-1]
    float_layers = [
        calibrate(bundle, faces, budget=budget, **how).table.float_layers
        for how in ({}, {"latency": slower_in(layer, 0.5, 1.0)})
    ]
    assert float_layers[0] == float_layers[1] != {}
