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
from .latency import Cost, counted
from .layers import choose, compute_layers
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
    that are converted to INT8, `cost` is its time as `latency` counts it, all in FP16 being 1."""

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

    @cached_property
    def cost(self) -> Cost:
        return counted(self.model)

    def trial(self, table: CalibrationTable, floats: Sequence[str], far: float | None) -> Trial:
        choice = choose(self.model, dict.fromkeys(floats, REASON))
        quantized = quantize_onnx(self.model, table, choice, self.rounded)
        found = embeddings(quantized, self.spec, self.faces, self.picks, self.track)
        loss = compare(self.expected, found, self.faces.labels[list(self.picks)], far)
        tensors = len(choice.tensors)
        return Trial(tuple(floats), choice.mac_share, tensors, self.cost(choice), loss)

    def error(self, table: CalibrationTable, layer: str) -> float:
        """1 - mean cosine on a few faces when this layer alone is INT8."""
        others = {other.name: REASON for other in compute_layers(self.model) if other.name != layer}
        quantized = quantize_onnx(self.model, table, choose(self.model, others), self.rounded)
        few = list(range(0, len(self.picks), max(1, len(self.picks) // PROBES)))[:PROBES]
        found = embeddings(quantized, self.spec, self.faces, [self.picks[i] for i in few])
        return 1.0 - compare(self.expected[few], found, np.zeros(len(few), np.int64)).cosine_mean

    def saved(self, layer: str) -> float:
        """The time that INT8 saves in this layer, the others being INT8."""
        alone = self.cost(choose(self.model, {layer: REASON}))
        return alone - self.cost(choose(self.model))


def settle(
    table: CalibrationTable, judge: Judge, budget: Budget | None, root: Path
) -> tuple[list[Trial], CalibrationTable]:
    """The trials made, the last of them the one taken, and the table with its layers in float.

    Without a budget there is one trial, or none where nobody was held apart. Raises FacesError when
    the faces cannot show the budget, GateFailed when nothing holds it.
    """
    if not judge.picks:
        if budget:
            raise FacesError(
                "an accuracy budget is judged on people held apart: give at least 5 people",
                "a few hundred, with several images each",
            )
        return [], table
    if budget is None:
        return [judge.trial(table, (), None)], table
    _resolvable(judge, budget)
    journal = Journal(root.with_name(f".{root.name}.calibrate"), _key(table, judge, budget))
    trials: list[Trial] = []

    def attempt(floats: Sequence[str]) -> Loss:
        found = journal.recall(
            json.dumps(list(floats)), lambda: asdict(judge.trial(table, floats, budget.far))
        )
        trials.append(_trial(found))
        return trials[-1].loss

    if not budget.holds(attempt(())):
        layers = choose(judge.model).int8
        errors = {
            layer: float(journal.recall(layer, partial(judge.error, table, layer)))
            for layer in judge.track(layers, "sensitivity", len(layers))
        }
        order = ranked(errors, {layer: judge.saved(layer) for layer in layers})
        count = least_float(len(order), lambda k: attempt(order[:k]), budget)
        trials.sort(key=lambda trial: len(trial.floats) == count)
    journal.close()
    return trials, replace(table, floats=dict.fromkeys(trials[-1].floats, REASON))


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


def _key(table: CalibrationTable, judge: Judge, budget: Budget) -> str:
    """What trials depend on: none of another may be believed. The budget's limits are not part of
    it, so that another budget finds what this one's search judged."""
    keys = [judge.faces.keys[i] for i in judge.picks]
    about = [budget.far, judge.faces.where, keys, sorted(judge.rounded)]
    return hashlib.sha256((table_to_json(table) + json.dumps(about)).encode()).hexdigest()


def _trial(data: dict[str, Any]) -> Trial:
    loss = data["loss"]
    rates = tuple(AtFar(**rate) for rate in loss["rates"])
    return Trial(
        **{**data, "floats": tuple(data["floats"]), "loss": Loss(**{**loss, "rates": rates})}
    )
