"""The accuracy budget: which layers to keep in float so that INT8 loses no more than allowed.

Layers are ranked by what each alone costs the embedding, per time that its INT8 saves; the search
keeps the first k of that list in float and bisects k. So more float never means less accuracy by
luck of the order, and a handful of models is judged instead of 2 ** layers.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..arrays import F32
from ..documents import convert, to_builtins
from ..errors import FacesError, GateFailed, UsageError
from ..faces.contract import InputSpec
from ..faces.sources import Faces
from ..files import write_atomic
from ..graph.layers import Int8Choice, choose_int8_layers, compute_layers
from ..metrics.rates import EmbeddingLoss, compare_embeddings
from ..progress import Track
from .collect import embed_model
from .gptq import RoundedWeight
from .latency_model import COUNTED, LatencyOf, counted_latency
from .qdq import quantize_onnx
from .table import CalibrationTable, table_to_json

REASON = "accuracy budget"


@dataclass(frozen=True)
class Budget:
    """What INT8 may lose: `max_tar_drop` of the genuine pairs accepted at the false accept rate
    `far`, counted and likely, and `min_cosine` that the worst face must keep. None sets no limit."""

    max_tar_drop: float | None = None
    min_cosine: float | None = None
    far: float = 1e-4

    def __post_init__(self) -> None:
        if self.max_tar_drop is None and self.min_cosine is None:
            raise UsageError("an accuracy budget is a TAR drop or a cosine", "--max-tar-drop 0.003")
        if self.max_tar_drop is not None and not 0 <= self.max_tar_drop <= 1:
            raise UsageError(f"--max-tar-drop is a share, 0 to 1, found {self.max_tar_drop}")
        if self.min_cosine is not None and not -1 <= self.min_cosine <= 1:
            raise UsageError(f"--min-cosine is a cosine, -1 to 1, found {self.min_cosine}")
        if not 0 < self.far < 1:
            raise UsageError(f"--far is a rate between 0 and 1, found {self.far}", "--far 1e-4")

    def holds(self, loss: EmbeddingLoss) -> bool:
        rate = loss.at(self.far)
        return (
            self.max_tar_drop is None
            or (rate is not None and rate.upper_tar_drop <= self.max_tar_drop)
        ) and (self.min_cosine is None or loss.cosine.min >= self.min_cosine)

    def describe(self) -> str:
        parts = []
        if self.max_tar_drop is not None:
            parts.append(f"TAR drop <= {self.max_tar_drop:g} at FAR {self.far:g}")
        if self.min_cosine is not None:
            parts.append(f"cosine >= {self.min_cosine:g}")
        return " and ".join(parts)


class SearchLog:
    """Results by name in a file, so that a search that was killed goes on where it was.

    What was found under another `key` (model, faces, options) is forgotten.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._key = key
        self._found: dict[str, Any] = {}
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["key"] == key:
                self._found = dict(data["found"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none yet, or a half-written one: begin anew

    def recall(self, name: str, work: Callable[[], Any]) -> Any:
        """What `work` gave under this name, now or before the interruption; JSON values only."""
        if name not in self._found:
            self._found[name] = work()
            data = json.dumps({"key": self._key, "found": self._found})
            write_atomic(self._path, data.encode())
        return self._found[name]

    def close(self) -> None:
        self._path.unlink(missing_ok=True)


def ranked(errors: Mapping[str, float], saved: Mapping[str, float]) -> list[str]:
    """Layer names: first those that INT8 does not make faster, then the one whose float costs least
    time for the accuracy it brings.

    `errors` are what each layer alone in INT8 costs, `saved` is the time that its INT8 saves.
    """

    def price(name: str) -> tuple[bool, float]:
        return saved[name] > 0.0, -errors[name] / max(saved[name], 1e-12)

    return sorted(errors, key=price)


def least_float(count: int, judge: Callable[[int], EmbeddingLoss], budget: Budget) -> int:
    """The least k of 1 to `count` - 1 for which keeping the first k layers in float holds.

    0 must have been tried; one layer stays in INT8. Raises GateFailed when no k holds.
    """
    low, high = 0, count - 1
    last = judge(high)
    if high == low or not budget.holds(last):
        rate = last.at(budget.far)
        found = f"cosine {last.cosine.min:.4f}"
        found += (
            f", TAR drop {rate.drop:.4f}, likely {rate.smoothed_drop:+.4f} ± {rate.smoothed_drop_error:.4f}"
            if rate
            else ""
        )
        raise GateFailed(
            f"no assignment holds {budget.describe()}: with one layer in INT8, {found}",
            "allow more (what was judged is remembered), or build FP16:"
            " `fr-edge build-engine BUNDLE --fp16`",
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if budget.holds(judge(middle)) else (middle, high)
    return high


# One assignment of INT8 to layers, judged on people held apart from the calibration.
#
# What stays float is judged as FP32. Engines compute it in FP16, whose errors are a hundredth of
# INT8's (docs/results/engines.md); `fr-edge verify` judges the engine itself.

PROBES = 24
"""Faces that a single layer's cost is measured on."""


@dataclass(frozen=True)
class Assignment:
    """One assignment and its loss: a row of the Pareto table. `requantised` counts the tensors
    that are converted to INT8, `cost` is its time, all in float being 1."""

    floats: tuple[str, ...]
    mac_share: float
    requantised: int
    cost: float
    loss: EmbeddingLoss

    def to_json(self) -> dict[str, Any]:
        return {
            "float_layers": list(self.floats),
            "int8_mac_share": round(self.mac_share, 4),
            "requantised_tensors": self.requantised,
            "cost": round(self.cost, 4),
            **to_builtins(self.loss),
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
    rounded: Mapping[str, RoundedWeight] = field(default_factory=dict)

    @cached_property
    def expected(self) -> F32:
        """`(len(picks), D) float32`."""
        return embed_model(self.model, self.spec, self.faces, self.picks, self.track)

    def quantised(self, table: CalibrationTable, choice: Int8Choice) -> onnx.ModelProto:
        return quantize_onnx(self.model, table, choice, self.rounded)

    def trial(
        self,
        table: CalibrationTable,
        floats: Sequence[str],
        far: float | None,
        cost: Callable[[Int8Choice], float],
    ) -> Assignment:
        choice = choose_int8_layers(self.model, dict.fromkeys(floats, REASON))
        quantised = self.quantised(table, choice)
        found = embed_model(quantised, self.spec, self.faces, self.picks, self.track)
        loss = compare_embeddings(self.expected, found, self.faces.labels[list(self.picks)], far)
        tensors = len(choice.tensors)
        return Assignment(tuple(floats), choice.mac_share, tensors, cost(choice), loss)

    def error(self, table: CalibrationTable, layer: str) -> float:
        """1 - mean cosine on a few faces when this layer alone is INT8."""
        others = {other.name: REASON for other in compute_layers(self.model) if other.name != layer}
        quantised = self.quantised(table, choose_int8_layers(self.model, others))
        few = list(range(0, len(self.picks), max(1, len(self.picks) // PROBES)))[:PROBES]
        found = embed_model(quantised, self.spec, self.faces, [self.picks[i] for i in few])
        return (
            1.0
            - compare_embeddings(
                self.expected[few], found, np.zeros(len(few), np.int64)
            ).cosine.mean
        )


def assignment_of(data: dict[str, Any]) -> Assignment:
    return convert(data, Assignment, "the search log")


# Judge INT8 everywhere, and with a budget find the fastest assignment that holds it.


@dataclass(frozen=True)
class SearchResult:
    """The `trials` made, the last of them the one taken, the `table` with its layers in float, and
    where the trials' times come from."""

    trials: list[Assignment]
    table: CalibrationTable
    times: str


def search_assignment(
    table: CalibrationTable,
    judge: Judge,
    budget: Budget | None,
    root: Path,
    latency: LatencyOf = counted_latency,
) -> SearchResult:
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
        return SearchResult([], table, COUNTED)
    if budget is None:
        return SearchResult(
            [judge.trial(table, (), None, counted_latency(judge.model).cost)], table, COUNTED
        )
    _resolvable(judge, budget)
    times = latency(judge.model, partial(judge.quantised, table))
    key = _key(table, judge, budget, times.word)
    journal = SearchLog(root.with_name(f".{root.name}.calibrate"), key)
    noise = float(journal.recall("noise", times.noise))
    trials = _search(table, judge, budget, journal, times.cost, noise)
    journal.close()
    holding = [trial for trial in trials if budget.holds(trial.loss)]
    least = min(trial.cost for trial in holding) + noise
    best = min((t for t in holding if t.cost <= least), key=lambda t: len(t.floats))
    trials.sort(key=lambda trial: trial is best)
    return SearchResult(
        trials, replace(table, floats=dict.fromkeys(best.floats, REASON)), times.word
    )


def _search(
    table: CalibrationTable,
    judge: Judge,
    budget: Budget,
    journal: SearchLog,
    cost: Callable[[Int8Choice], float],
    noise: float,
) -> list[Assignment]:
    """All that was tried; what a search that was killed had found is not found again."""
    trials: list[Assignment] = []

    def attempt(floats: Sequence[str]) -> EmbeddingLoss:
        found = journal.recall(
            json.dumps(list(floats)), lambda: asdict(judge.trial(table, floats, budget.far, cost))
        )
        trials.append(assignment_of(found))
        return trials[-1].loss

    def saved(layer: str) -> float:
        """The time that INT8 saves in this layer, the others being INT8."""
        return cost(choose_int8_layers(judge.model, {layer: REASON})) - trials[0].cost

    holds = budget.holds(attempt(()))
    layers = choose_int8_layers(judge.model).int8
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
    count = counted_latency(model).cost
    base = count(choose_int8_layers(model))
    share = max(whole, 1e-3) / (1.0 - base)
    return {
        layer: value
        if abs(value) > noise
        else share * (count(choose_int8_layers(model, {layer: REASON})) - base)
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
