"""Without a budget, layers that INT8 speeds up least stay in float where INT8's error is too large."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from bench import SPEC, trained

from fr_edge.bundle.manifest import Bundle
from fr_edge.calibration import constants
from fr_edge.calibration.calibrate import CalibrationResult, calibrate
from fr_edge.calibration.fitting import ALL_STEPS, CalibrationSteps
from fr_edge.calibration.search.budget import Budget
from fr_edge.calibration.search.error_limit import ERROR_LIMIT, limit_error, spared_layers
from fr_edge.calibration.search.latency_model import counted_latency
from fr_edge.calibration.search.mixed_precision import Assignment, HeldOutJudge, SearchResult
from fr_edge.calibration.table import CalibrationTable
from fr_edge.export.export import export_onnx
from fr_edge.faces.sources import Faces, open_faces
from fr_edge.graph.layers import Int8Choice, choose_int8_layers
from fr_edge.onnx_file import read_onnx
from fr_edge.progress import silent

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


@dataclass(frozen=True)
class ScriptedJudge(HeldOutJudge):
    """A double of the judge: the mean error is a function of the number of layers in float."""

    template: Assignment | None = None
    error: Callable[[int], float] = float
    judged: list[int] = field(default_factory=list)

    def assess(
        self,
        table: CalibrationTable,
        float_layers: Sequence[str],
        far: float | None,
        cost: Callable[[Int8Choice], float],
    ) -> Assignment:
        assert self.template is not None
        self.judged.append(len(float_layers))
        cosine = replace(self.template.loss.cosine, mean=1 - self.error(len(float_layers)))
        return replace(
            self.template,
            float_layers=tuple(float_layers),
            cost=cost(self.choose(float_layers)),
            loss=replace(self.template.loss, cosine=cosine),
        )


LIMIT = constants.MAX_MEAN_ERROR


@pytest.fixture
def limited(
    excite: Bundle, faces: Faces, done: CalibrationResult
) -> Callable[[Callable[[int], float]], tuple[SearchResult, list[int]]]:
    """What the limit does where a number of layers in float has such an error, and what was judged."""
    model = read_onnx(excite.file("model.onnx"))

    def run(error: Callable[[int], float]) -> tuple[SearchResult, list[int]]:
        judge = ScriptedJudge(
            model, SPEC, faces, [0], {}, silent, template=done.report.trials[0], error=error
        )
        return limit_error(done.table, judge), judge.judged

    return run


def test_below_the_limit_all_layers_are_int8(limited: Callable[..., Any]) -> None:
    search, judged = limited(lambda count: 0.99 * LIMIT)
    assert not search.table.float_layers
    assert judged == [0]


def test_above_the_limit_the_share_of_time_is_used_up(
    limited: Callable[..., Any], excite: Bundle
) -> None:
    """Not more of it, and no layer fewer than it pays for."""
    search, judged = limited(lambda count: (1000 - count) * LIMIT)
    kept = list(search.table.float_layers)
    assert judged[-1] == len(kept)
    assert len(judged) <= 3
    model = read_onnx(excite.file("model.onnx"))
    cost = counted_latency(model).cost
    full = choose_int8_layers(model)
    allowed = constants.MAX_TIME_SHARE * (1 - cost(full))

    def given_up(names: Sequence[str]) -> float:
        return cost(choose_int8_layers(model, dict.fromkeys(names, ERROR_LIMIT))) - cost(full)

    others = [name for name in full.int8 if name not in kept]
    following = min(others, key=lambda name: given_up([name]))
    assert given_up(kept) <= allowed < given_up([*kept, following])


def test_a_guess_that_holds_the_limit_is_the_last(limited: Callable[..., Any]) -> None:
    search, judged = limited(lambda count: LIMIT * (1.1 if count == 0 else 0.99))
    assert len(judged) == 2
    assert 1 <= judged[1] == len(search.table.float_layers)
    assert judged[1] < len(limited(lambda count: 1000 * LIMIT - count)[0].table.float_layers)


def test_a_guess_that_does_not_is_followed_by_the_most(limited: Callable[..., Any]) -> None:
    guess = limited(lambda count: LIMIT * (1.1 if count == 0 else 0.99))[1][1]
    search, judged = limited(lambda count: LIMIT * (1.1 if count <= guess else 0.99))
    assert judged[:2] == [0, guess]
    assert guess < judged[2] == len(search.table.float_layers)


def test_of_those_above_the_limit_the_smallest_error_is_taken(limited: Callable[..., Any]) -> None:
    guess = limited(lambda count: LIMIT * (1.1 if count == 0 else 0.99))[1][1]
    search, judged = limited(lambda count: LIMIT * (1.05 if count == guess else 1.1))
    assert len(judged) == 3
    assert len(search.table.float_layers) == guess
    assert len(search.assignments[-1].float_layers) == guess


def test_layers_that_int8_slows_down_are_first_and_give_up_nothing(excite: Bundle) -> None:
    """Converting a tensor that float operators read too can take longer than INT8 saves."""
    model = read_onnx(excite.file("model.onnx"))
    judge = ScriptedJudge(model, SPEC, open_faces("synthetic:1x1"), [0], {}, silent)
    layers = judge.choose().int8
    slow, allowed = set(layers[:3]), constants.MAX_TIME_SHARE
    # All in float takes 1, all in INT8 1.0 too; without the slow ones .6.
    fast = 0.4 / (len(layers) - 3)

    def cost(choice: Int8Choice) -> float:
        return 1.0 + sum(0.4 / 3 if name in slow else -fast for name in choice.int8)

    given_up = spared_layers(judge, cost)
    assert set(list(given_up)[:3]) == slow
    assert [share == pytest.approx(0) for share in given_up.values()][:4] == [True] * 3 + [False]
    assert list(given_up.values())[3] == pytest.approx(fast / 0.4)
    assert max(given_up.values()) <= allowed < max(given_up.values()) + fast / 0.4


def test_without_held_out_people_nothing_is_limited(excite: Bundle, tmp_path: Path) -> None:
    few = calibrated(excite, open_faces("synthetic:4x1@7"), tmp_path / "n.bundle")
    assert few.report.judged is None
    assert not few.table.float_layers


def test_a_budget_and_fp8_decide_without_the_limit(
    excite: Bundle, faces: Faces, tmp_path: Path
) -> None:
    held = calibrated(excite, faces, tmp_path / "budget", budget=Budget(min_cosine=0.5))
    assert not held.table.float_layers
    eight = calibrated(excite, faces, tmp_path / "fp8", precision="fp8")
    assert mean_error(eight) > constants.MAX_MEAN_ERROR
    assert not eight.table.float_layers
