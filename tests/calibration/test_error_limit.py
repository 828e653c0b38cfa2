"""Without a budget, layers that INT8 speeds up least stay in float where INT8's error is too large."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from bench import SPEC, trained

from fr_edge.bundle.manifest import Bundle
from fr_edge.calibration import constants
from fr_edge.calibration.calibrate import CalibrationResult, calibrate
from fr_edge.calibration.fitting import ALL_STEPS, CalibrationSteps
from fr_edge.calibration.search.budget import Budget
from fr_edge.calibration.search.error_limit import ERROR_LIMIT
from fr_edge.calibration.search.latency_model import counted_latency
from fr_edge.export.export import export_onnx
from fr_edge.faces.sources import Faces
from fr_edge.graph.layers import choose_int8_layers
from fr_edge.onnx_file import read_onnx

ALL_INT8 = replace(ALL_STEPS, error_limit=False)


@pytest.fixture(scope="module")
def excite(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """19 dense layers with SiLU and squeeze-excite, whose INT8 error is above the limit."""
    folder = tmp_path_factory.mktemp("excite")
    (folder / "n.onnx").write_bytes(trained("excite").SerializeToString())
    return export_onnx(folder / "n.onnx", folder / "n.bundle", spec=SPEC).bundle


def calibrated(
    bundle: Bundle,
    faces: Faces,
    to: Path,
    steps: CalibrationSteps = ALL_STEPS,
    budget: Budget | None = None,
    precision: str = "int8",
) -> CalibrationResult:
    shutil.copytree(bundle.root, to)
    return calibrate(to, faces, steps=steps, budget=budget, precision=precision)


def mean_error(done: CalibrationResult) -> float:
    assert done.report.judged is not None
    return 1 - done.report.judged.cosine.mean


@pytest.fixture(scope="module")
def done(
    excite: Bundle, faces: Faces, tmp_path_factory: pytest.TempPathFactory
) -> CalibrationResult:
    """By the defaults."""
    return calibrated(excite, faces, tmp_path_factory.mktemp("limited") / "n.bundle")


def test_the_layers_that_save_least_stay_in_float(
    excite: Bundle, faces: Faces, done: CalibrationResult, tmp_path: Path
) -> None:
    full = calibrated(excite, faces, tmp_path / "full", ALL_INT8)
    assert mean_error(full) > constants.MAX_MEAN_ERROR
    assert not full.table.float_layers
    kept = done.table.float_layers
    assert 1 <= len(kept) < len(full.choice.int8)
    assert set(kept.values()) == {ERROR_LIMIT}
    assert done.report.kept_float[ERROR_LIMIT] == len(kept)
    assert mean_error(done) < 0.9 * mean_error(full)
    assert done.report.trials[0].loss == full.report.judged
    assert done.report.trials[-1].float_layers == tuple(kept)
    # By the counted times: no other layer saves less, and little of the saving is given up.
    model = read_onnx(excite.file("model.onnx"))
    cost = counted_latency(model).cost
    base = cost(choose_int8_layers(model))
    saved = {
        layer: cost(choose_int8_layers(model, {layer: ERROR_LIMIT})) - base
        for layer in full.choice.int8
    }
    assert max(saved[x] for x in kept) <= min(saved[x] for x in saved if x not in kept)
    assert cost(done.choice) - base <= constants.MAX_TIME_SHARE * (1 - base)


def test_as_few_layers_as_the_limit_needs(
    excite: Bundle,
    faces: Faces,
    done: CalibrationResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors = [1 - trial.loss.cosine.mean for trial in done.report.trials]
    monkeypatch.setattr(constants, "MAX_MEAN_ERROR", 0.9 * errors[0] + 0.1 * errors[-1])
    fewer = calibrated(excite, faces, tmp_path / "fewer")
    assert 1 <= len(fewer.table.float_layers) < len(done.table.float_layers)
    assert (
        tuple(fewer.table.float_layers)
        == done.report.trials[-1].float_layers[: len(fewer.table.float_layers)]
    )
    assert mean_error(fewer) <= constants.MAX_MEAN_ERROR


def test_a_budget_and_fp8_decide_without_the_limit(
    excite: Bundle, faces: Faces, tmp_path: Path
) -> None:
    held = calibrated(excite, faces, tmp_path / "budget", budget=Budget(min_cosine=0.5))
    assert not held.table.float_layers
    eight = calibrated(excite, faces, tmp_path / "fp8", precision="fp8")
    assert mean_error(eight) > constants.MAX_MEAN_ERROR
    assert not eight.table.float_layers
