"""Quantise, judge on people held apart, and with a budget try again with more layers in float.

What stays float is judged as FP32. Engines compute it in FP16, whose errors are a hundredth of
INT8's (docs/results/engines.md); `fr-edge verify` judges the engine itself.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..errors import FacesError
from ..faces.contract import InputSpec
from ..faces.sources import Faces
from ..progress import Track
from .budget import REASON, Budget, Journal, least_float, ranked
from .histogram import F32
from .latency import COUNTED, Latency, LatencyOf, counted
from .layers import Choice, choose, compute_layers
from .loss import AtFar, Loss, compare
from .observe import embeddings
from .quantize import quantize_onnx
from .rounding import Rounded
from .table import CalibrationTable, table_to_json

PROBES = 24
"""Faces that a single layer's cost is measured on."""


@dataclass(frozen=True)
class Trial:
    """One assignment and its loss: a row of the Pareto table. `requantised` counts the tensors
    that are converted to INT8, `cost` is its time, all in float being 1."""

    floats: tuple[str, ...]
    mac_share: float
    requantised: int
    cost: float
    loss: Loss

    def to_json(self) -> dict[str, Any]:
        return {
            "float_layers": list(self.floats),
            "int8_mac_share": round(self.mac_share, 4),
            "requantised_tensors": self.requantised,
            "cost": round(self.cost, 4),
            **self.loss.to_json(),
        }


@dataclass(frozen=True)
class Judge:
    """The float model on the faces at `picks`, none of whose people calibrated; `rounded` are the
    weights of layers that were not rounded to nearest."""

    model: onnx.ModelProto
    spec: InputSpec
    faces: Faces
    picks: Sequence[int]
    track: Track
    rounded: Mapping[str, Rounded] = field(default_factory=dict)

    @cached_property
    def expected(self) -> F32:
        """`(len(picks), D) float32`."""
        return embeddings(self.model, self.spec, self.faces, self.picks, self.track)

    def quantised(self, table: CalibrationTable, choice: Choice) -> onnx.ModelProto:
        return quantize_onnx(self.model, table, choice, self.rounded)

    def trial(
        self, table: CalibrationTable, floats: Sequence[str], far: float | None, times: Latency
    ) -> Trial:
        choice = choose(self.model, dict.fromkeys(floats, REASON))
        quantised = self.quantised(table, choice)
        found = embeddings(quantised, self.spec, self.faces, self.picks, self.track)
        loss = compare(self.expected, found, self.faces.labels[list(self.picks)], far)
        tensors = len(choice.tensors)
        return Trial(tuple(floats), choice.mac_share, tensors, times.cost(choice), loss)

    def error(self, table: CalibrationTable, layer: str) -> float:
        """1 - mean cosine on a few faces when this layer alone is INT8."""
        others = {other.name: REASON for other in compute_layers(self.model) if other.name != layer}
        quantised = self.quantised(table, choose(self.model, others))
        few = list(range(0, len(self.picks), max(1, len(self.picks) // PROBES)))[:PROBES]
        found = embeddings(quantised, self.spec, self.faces, [self.picks[i] for i in few])
        return 1.0 - compare(self.expected[few], found, np.zeros(len(few), np.int64)).cosine_mean


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
        return Settled([judge.trial(table, (), None, counted(judge.model))], table, COUNTED)
    _resolvable(judge, budget)
    times = latency(judge.model, partial(judge.quantised, table))
    key = _key(table, judge, budget, times.word)
    journal = Journal(root.with_name(f".{root.name}.calibrate"), key)
    trials = _search(table, judge, budget, journal, times)
    journal.close()
    holding = [trial for trial in trials if budget.holds(trial.loss)]
    best = min(holding, key=lambda trial: (trial.cost, len(trial.floats)))
    trials.sort(key=lambda trial: trial is best)
    return Settled(trials, replace(table, floats=dict.fromkeys(best.floats, REASON)), times.word)


def _search(
    table: CalibrationTable, judge: Judge, budget: Budget, journal: Journal, times: Latency
) -> list[Trial]:
    """All that was tried; what a search that was killed had found is not found again."""
    trials: list[Trial] = []

    def attempt(floats: Sequence[str]) -> Loss:
        found = journal.recall(
            json.dumps(list(floats)), lambda: asdict(judge.trial(table, floats, budget.far, times))
        )
        trials.append(_trial(found))
        return trials[-1].loss

    def saved(layer: str) -> float:
        """The time that INT8 saves in this layer, the others being INT8."""
        return times.cost(choose(judge.model, {layer: REASON})) - trials[0].cost

    holds = budget.holds(attempt(()))
    layers = choose(judge.model).int8
    noise = float(journal.recall("noise", lambda: times.noise))
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
    told = {layer: value if value > noise else 0.0 for layer, value in savings.items()}
    order = ranked(errors, told)
    least_float(len(order), lambda k: attempt(order[:k]), budget)
    return trials


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


def _trial(data: dict[str, Any]) -> Trial:
    loss = data["loss"]
    rates = tuple(AtFar(**rate) for rate in loss["rates"])
    return Trial(
        **{**data, "floats": tuple(data["floats"]), "loss": Loss(**{**loss, "rates": rates})}
    )
