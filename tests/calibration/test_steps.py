"""INT8 quality: every step of calibration is needed, and together they hold a bound.

The bound lies below what calibration reaches without any one of them, so that a step that is lost
or broken fails here, whichever it is.
"""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from fitted import run
from uneven_network import WIDTH, uneven_network

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.calibration.calibrate import ALL_STEPS, RANGES_ONLY, CalibrationSteps, calibrate
from fr_edge.faces.contract import PRESETS, preprocess
from fr_edge.faces.sources import open_faces

SPEC = PRESETS["insightface"]
SEEDS = (2, 6, 7)
FACES = open_faces("synthetic:24x2@7").cached()
BOUND = 0.019  # measured .0162; without one step .0215 (biases) to .068 (ranges)


class Bench:
    """Three networks, and what INT8 loses on faces of other people."""

    def __init__(self, folder: Path) -> None:
        inputs = preprocess(next(FACES.batches(32)), SPEC)
        judged = open_faces("synthetic:16x1@8")
        self.judged = preprocess(next(judged.batches(len(judged))), SPEC)
        self.roots = []
        for seed in SEEDS:
            with transaction(folder / f"{seed}.bundle", "export", {}) as change:
                change.spec, change.embedding_dim = SPEC, WIDTH
                data = uneven_network(inputs, seed).SerializeToString()
                change.path("model.onnx", "model").write_bytes(data)
            self.roots.append(folder / f"{seed}.bundle")
        self.all = self.loss()

    def loss(self, method: str = "auto", steps: CalibrationSteps = ALL_STEPS) -> float:
        """Error of the embeddings over their spread across faces, geometric mean of the networks."""
        losses = []
        for root in self.roots:
            copy = root.with_suffix(".int8")
            shutil.copytree(root, copy)
            bundle = calibrate(copy, FACES, method, steps=steps).bundle
            expected = run(onnx.load(open_bundle(root).file("model.onnx")), self.judged)[0]
            result = run(onnx.load(bundle.file("model.int8.onnx")), self.judged)[0]
            shutil.rmtree(copy)
            spread = expected - expected.mean(axis=0)
            losses.append(np.linalg.norm(result - expected) / np.linalg.norm(spread))
        return float(np.exp(np.mean(np.log(losses))))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("steps"))


def test_all_steps_together_hold_the_bound(bench: Bench) -> None:
    assert bench.all < BOUND


@pytest.mark.parametrize(
    "step", ["equalization", "activation_shift", "bias_correction", "gptq", "ranges"]
)
def test_every_step_is_needed(bench: Bench, step: str) -> None:
    """Without one of them INT8 loses more than the bound."""
    if step == "ranges":
        loss = bench.loss("minmax")
    else:
        loss = bench.loss(steps=CalibrationSteps(**{step: False}))
    assert loss > 1.2 * bench.all
    assert loss > BOUND


def test_ranges_alone_lose_many_times_as_much(bench: Bench) -> None:
    assert bench.loss("minmax", RANGES_ONLY) > 5 * bench.all
