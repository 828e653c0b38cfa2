"""Judge INT8 everywhere, and with a budget find the fastest assignment that holds it."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from ..errors import FacesError
from .budget import REASON, Budget, Journal, least_float, ranked
from .judge import Judge, Trial, trial_of
from .latency import COUNTED, LatencyOf, counted
from .layers import Choice, choose
from .loss import Loss
from .table import CalibrationTable, table_to_json


@dataclass(frozen=True)
class Settled:
    """The `trials` made, the last of them the one taken, the `table` with its layers in float, and
    where the trials' times come from."""

    trials: list[Trial]
    table: CalibrationTable
    times: str


def settle(
    table: CalibrationTable,
    judge: Judge,
    budget: Budget | None,
    root: Path,
    latency: LatencyOf = counted,
) -> Settled:
    """Judge INT8 everywhere and, with a budget, find the fastest assignment that holds it.

    Without a budget there is one trial, or none where nobody was held apart, and times are counted.
    Raises FacesError when the faces cannot show the budget, GateFailed when nothing holds it.
    """
    if not judge.picks:
        if budget:
            raise FacesError(
                "an accuracy budget is judged on people held apart: give at least 5 people",
                "a few hundred, with several images each",
            )
        return Settled([], table, COUNTED)
    if budget is None:
        return Settled([judge.trial(table, (), None, counted(judge.model).cost)], table, COUNTED)
    _resolvable(judge, budget)
    times = latency(judge.model, partial(judge.quantised, table))
    key = _key(table, judge, budget, times.word)
    journal = Journal(root.with_name(f".{root.name}.calibrate"), key)
    noise = float(journal.recall("noise", times.noise))
    trials = _search(table, judge, budget, journal, times.cost, noise)
    journal.close()
    holding = [trial for trial in trials if budget.holds(trial.loss)]
    least = min(trial.cost for trial in holding) + noise
    best = min((t for t in holding if t.cost <= least), key=lambda t: len(t.floats))
    trials.sort(key=lambda trial: trial is best)
    return Settled(trials, replace(table, floats=dict.fromkeys(best.floats, REASON)), times.word)


def _search(
    table: CalibrationTable,
    judge: Judge,
    budget: Budget,
    journal: Journal,
    cost: Callable[[Choice], float],
    noise: float,
) -> list[Trial]:
    """All that was tried; what a search that was killed had found is not found again."""
    trials: list[Trial] = []

    def attempt(floats: Sequence[str]) -> Loss:
        found = journal.recall(
            json.dumps(list(floats)), lambda: asdict(judge.trial(table, floats, budget.far, cost))
        )
        trials.append(trial_of(found))
        return trials[-1].loss

    def saved(layer: str) -> float:
        """The time that INT8 saves in this layer, the others being INT8."""
        return cost(choose(judge.model, {layer: REASON})) - trials[0].cost

    holds = budget.holds(attempt(()))
    layers = choose(judge.model).int8
    savings = {
        layer: float(journal.recall(f"{layer} saves", partial(saved, layer)))
        for layer in judge.track(layers, "times", len(layers))
    }
    if holds:
        # Nothing is left to win but where INT8 is the slower way.
        if slow := [layer for layer in layers if savings[layer] < -noise]:
            attempt(slow)
        return trials
    errors = {
        layer: float(journal.recall(layer, partial(judge.error, table, layer)))
        for layer in judge.track(layers, "sensitivity", len(layers))
    }
    order = ranked(errors, _told(savings, noise, judge.model, 1.0 - trials[0].cost))
    least_float(len(order), lambda k: attempt(order[:k]), budget)
    return trials


def _told(
    savings: Mapping[str, float], noise: float, model: onnx.ModelProto, whole: float
) -> dict[str, float]:
    """What each layer's INT8 saves; where a measurement does not rise above its noise, the layer's
    part of the `whole` by count."""
    count = counted(model).cost
    base = count(choose(model))
    share = max(whole, 1e-3) / (1.0 - base)
    return {
        layer: value
        if abs(value) > noise
        else share * (count(choose(model, {layer: REASON})) - base)
        for layer, value in savings.items()
    }


def _resolvable(judge: Judge, budget: Budget) -> None:
    """Raises FacesError when the judging faces have too few pairs for the budget's rate."""
    if budget.max_tar_drop is None:
        return
    counts = np.unique(judge.faces.labels[list(judge.picks)], return_counts=True)[1]
    genuine = int((counts * (counts - 1) // 2).sum())
    impostors = len(judge.picks) * (len(judge.picks) - 1) // 2 - genuine
    if impostors * budget.far < 1.0 or not genuine:
        raise FacesError(
            f"{len(judge.picks)} faces of {len(counts)} people held apart give {impostors} impostor"
            f" and {genuine} genuine pairs; FAR {budget.far:g} needs {1 / budget.far:.0f} and some",
            "give more people with several images each, or a larger --far",
        )


def _key(table: CalibrationTable, judge: Judge, budget: Budget, times: str) -> str:
    """What trials depend on: none of another may be believed. The budget's limits are not part of
    it, so that another budget finds what this one's search judged."""
    keys = [judge.faces.keys[i] for i in judge.picks]
    about = [times, budget.far, judge.faces.where, keys, sorted(judge.rounded)]
    return hashlib.sha256((table_to_json(table) + json.dumps(about)).encode()).hexdigest()
