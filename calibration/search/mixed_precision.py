"""Mixed precision: which layers to keep in float so that INT8 loses no more than a budget allows.

Layers are ranked by how much each alone changes the embedding, per time that its INT8 saves. The
search keeps the first k of that list in float and bisects k, so a few models are judged instead of
2 ** layers. Float layers are judged as FP32; engines compute them in FP16, whose errors are a
hundredth of INT8's (docs/results/engines.md).
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx

from ...arrays import F32
from ...documents import convert, read_json
from ...errors import DataError, FacesError, GateFailed
from ...faces.contract import InputSpec
from ...faces.sources import Faces
from ...files import write_atomic
from ...graph.layers import Int8Choice, choose_int8_layers
from ...interruption import keeping
from ...metrics.rates import EmbeddingLoss, compare_embeddings
from ...progress import Track
from ..collect import embed_model
from ..gptq import RoundedWeight
from ..qdq import quantize_onnx
from ..table import CalibrationTable, table_to_json
from .budget import EXCEEDED, Budget, check_judges, judge_loss
from .latency_model import COUNTED, LatencyOf, counted_latency

T = TypeVar("T")

REASON = "accuracy budget"  # why a layer of `CalibrationTable.float_layers` is kept in float

_SENSITIVITY_FACES = 24  # faces that a single layer's error is measured on


@dataclass(frozen=True)
class Assignment:
    """Which layers are INT8, what that costs and what it loses.

    Attributes:
        float_layers: Layers kept in float although the rule would make them INT8.
        int8_mac_share: Share of all multiply-adds in INT8, 0..1.
        requantized_tensors: Number of tensors that are converted to INT8.
        cost: Time as a share of the time with every layer in float.
        loss: On the held-out faces.
    """

    float_layers: tuple[str, ...]
    int8_mac_share: float
    requantized_tensors: int
    cost: float
    loss: EmbeddingLoss


@dataclass(frozen=True)
class HeldOutJudge:
    """Measures what quantized models lose on faces of people who did not calibrate.

    Attributes:
        model: The float model.
        spec: Its input contract.
        faces: A source of faces; each of `picks` is read several times.
        picks: Indices of the held-out faces.
        rounded: Layer -> rounded weights; other weights are rounded to nearest.
        track: Shows progress.
        grouped: Grouped and depthwise convolutions may be INT8 too.
    """

    model: onnx.ModelProto
    spec: InputSpec
    faces: Faces
    picks: Sequence[int]
    rounded: Mapping[str, RoundedWeight]
    track: Track
    grouped: bool = False

    @cached_property
    def expected(self) -> F32:
        """`(len(picks), D) float32`, the float model's embeddings."""
        return embed_model(self.model, self.spec, self.faces, self.picks, self.track)

    def choose(self, float_layers: Mapping[str, str] | Iterable[str] = ()) -> Int8Choice:
        """The assignment that keeps `float_layers` in float, and what the rule keeps there.

        A mapping names the reason of each.
        """
        if isinstance(float_layers, Mapping):
            reasons = dict(float_layers)
        else:
            reasons = dict.fromkeys(float_layers, REASON)
        return choose_int8_layers(self.model, reasons, grouped=self.grouped)

    def quantize(self, table: CalibrationTable, choice: Int8Choice) -> onnx.ModelProto:
        """The Q/DQ model of an assignment."""
        return quantize_onnx(self.model, table, choice, self.rounded)

    def assess(
        self,
        table: CalibrationTable,
        float_layers: Sequence[str],
        far: float | None,
        cost: Callable[[Int8Choice], float],
    ) -> Assignment:
        """Judge the assignment that keeps `float_layers` in float; `far` is one more rate."""
        choice = self.choose(float_layers)
        quantized = self.quantize(table, choice)
        embeddings = embed_model(quantized, self.spec, self.faces, self.picks, self.track)
        labels = self.faces.labels[list(self.picks)]
        loss = judge_loss(self.expected, embeddings, labels, far)
        return Assignment(
            tuple(float_layers), choice.mac_share, len(choice.tensors), cost(choice), loss
        )

    def layer_error(self, table: CalibrationTable, layer: str) -> float:
        """1 - mean cosine on a few faces when only this layer is INT8."""
        others = [other for other in self.choose().int8 if other != layer]
        quantized = self.quantize(table, self.choose(others))
        stride = max(1, len(self.picks) // _SENSITIVITY_FACES)
        few = list(range(0, len(self.picks), stride))[:_SENSITIVITY_FACES]
        embeddings = embed_model(quantized, self.spec, self.faces, [self.picks[i] for i in few])
        labels = np.zeros(len(few), np.int64)
        return 1.0 - compare_embeddings(self.expected[few], embeddings, labels).cosine.mean


@dataclass
class _LogDocument:
    """The file of a `SearchLog`."""

    key: str
    results: dict[str, Any] = field(default_factory=dict)


class SearchLog:
    """Results by name in a file, for a search that is continued; not one of another key."""

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._log = _LogDocument(key)
        try:
            log = read_json(path, _LogDocument)
        except DataError:
            return
        if log.key == key:
            self._log = log

    def recall(self, name: str, kind: type[T], compute: Callable[[], T]) -> T:
        """The result under a name, from the file or computed now: a number or a dataclass."""
        results = self._log.results
        if name not in results:
            with keeping(lambda: f"{len(results)} results of the search are in {self._path}"):
                value: Any = compute()
            results[name] = asdict(value) if isinstance(value, Assignment) else value
            # Written exactly, not rounded: a resumed search must decide as an uninterrupted one.
            write_atomic(self._path, json.dumps(asdict(self._log)).encode())
        try:
            return convert(results[name], kind, self._path)
        except DataError as error:
            raise DataError(
                f"{error.message}; the log of the search is damaged",
                f"remove {self._path}: the search begins anew",
            ) from error


class BudgetNotJudged(GateFailed):
    """The people cannot show whether any assignment holds the budget."""


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        assignments: All that were judged; the last one is taken.
        table: The calibration table, with the taken assignment's layers in float.
        time_source: Where the assignments' times come from.
        noise: Differences of their times up to this are not significant.
        doubt: Why no assignment was shown to hold the budget; the safest is taken then: one layer in
            8 bits, of those that lose least.
    """

    assignments: tuple[Assignment, ...]
    table: CalibrationTable
    time_source: str
    noise: float = 0.0
    doubt: BudgetNotJudged | None = None


def search_assignment(
    table: CalibrationTable,
    judge: HeldOutJudge,
    budget: Budget | None,
    root: Path,
    latency: LatencyOf = counted_latency,
) -> SearchResult:
    """Judge INT8 in all dense layers and, with a budget, find the fastest assignment that holds it.

    Without a budget one assignment is judged, or none without held-out people, and times are
    counted. A search that was interrupted continues; its log lies beside the bundle until
    `remove_search_logs`.

    Args:
        table: The calibration table of the float model.
        judge: Measures what assignments lose.
        budget: What INT8 may lose.
        root: The bundle's folder.
        latency: Gives the times of assignments.

    Raises:
        FacesError: The held-out faces are too few for the budget.
        GateFailed: No assignment holds the budget.
    """
    if not judge.picks:
        if budget:
            raise FacesError(
                "an accuracy budget is judged on held-out people: give at least 5 people",
                "a few hundred, with several images each",
            )
        return SearchResult((), table, COUNTED)
    if budget is None:
        only = judge.assess(table, (), None, counted_latency(judge.model).cost)
        return SearchResult((only,), table, COUNTED)
    check_judges(judge.faces.labels[list(judge.picks)], budget)
    times = latency(judge.model, partial(judge.quantize, table))
    key = _search_key(table, judge, budget, times.source)
    log = SearchLog(_log_path(root, judge.grouped), key)
    noise = log.recall("noise", float, times.noise)
    assignments: list[Assignment] = []
    doubt = None
    try:
        _search(table, judge, budget, log, times.cost, noise, assignments)
        holding = [a for a in assignments if budget.holds(a.loss)]
        limit = min(a.cost for a in holding) + noise
        best = min((a for a in holding if a.cost <= limit), key=lambda a: len(a.float_layers))
    except BudgetNotJudged as error:
        doubt = error
        best = max(assignments, key=lambda a: (len(a.float_layers), a.loss.cosine.min))
    assignments.sort(key=lambda a: a is best)
    float_layers = dict.fromkeys(best.float_layers, REASON)
    table = replace(table, float_layers=float_layers)
    return SearchResult(tuple(assignments), table, times.source, noise, doubt)


def remove_search_logs(root: Path) -> None:
    """Remove what searches remembered: the calibration is complete.

    Args:
        root: The bundle's folder.
    """
    for grouped in (False, True):
        _log_path(root, grouped).unlink(missing_ok=True)


def _log_path(root: Path, grouped: bool) -> Path:
    root = root.absolute()  # it may be called `.`
    return root.with_name(f".{root.name}{'.depthwise' if grouped else ''}.calibrate")


def rank_layers(errors: Mapping[str, float], saved: Mapping[str, float]) -> list[str]:
    """The order in which layers go back to float.

    Args:
        errors: Layer -> what it costs the embedding when it alone is INT8.
        saved: Layer -> the time that its INT8 saves.

    Returns:
        First the layers that INT8 does not make faster, then the one that brings most accuracy for
        the time that float costs.
    """

    def price(name: str) -> tuple[bool, float]:
        return saved[name] > 0.0, -errors[name] / max(saved[name], 1e-12)

    return sorted(errors, key=price)


def bisect_float_layers(count: int, judge: Callable[[int], EmbeddingLoss], budget: Budget) -> int:
    """The least k for which the first k layers in float hold a budget.

    Args:
        count: Number of layers; one of them stays in INT8.
        judge: The loss with the first k layers in float. k = 0 is taken not to hold the budget.
        budget: What INT8 may lose.

    Returns:
        k, 1 to `count` - 1.

    Raises:
        BudgetNotJudged: The people cannot judge whether one does.
        GateFailed: No k holds the budget.
    """
    low, high = 0, count - 1
    last = judge(high)
    if high == low or not budget.holds(last):
        losses = f"with one layer in INT8, {budget.describe_loss(last)}"
        if budget.verdict(last) != EXCEEDED:
            people = f"{last.faces} faces of {last.people} people"
            raise BudgetNotJudged(
                f"cannot judge {budget.describe()} on {people}: {losses}", budget.cure(last)
            )
        raise GateFailed(
            f"no assignment holds {budget.describe()}: {losses}",
            "allow more (what was judged is remembered), or build FP16:"
            " `fr-edge build-engine BUNDLE --fp16`",
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if budget.holds(judge(middle)) else (middle, high)
    return high


def _search(
    table: CalibrationTable,
    judge: HeldOutJudge,
    budget: Budget,
    log: SearchLog,
    cost: Callable[[Int8Choice], float],
    noise: float,
    assignments: list[Assignment],
) -> None:
    """Add all assignments that are judged to `assignments`; those in the log are not judged again."""

    def attempt(float_layers: Sequence[str]) -> EmbeddingLoss:
        assignment = log.recall(
            json.dumps(list(float_layers)),
            Assignment,
            lambda: judge.assess(table, float_layers, budget.far, cost),
        )
        if assignment not in assignments:
            assignments.append(assignment)
        return assignment.loss

    def saving(layer: str) -> float:
        """The time that INT8 saves in this layer while the others are INT8."""
        return cost(judge.choose([layer])) - assignments[0].cost

    holds = budget.holds(attempt(()))
    layers = judge.choose().int8
    savings = {
        layer: log.recall(f"{layer} saves", float, partial(saving, layer))
        for layer in judge.track(layers, "times", len(layers))
    }
    if holds:  # only layers where INT8 is slower are left to improve
        if slow := [layer for layer in layers if savings[layer] < -noise]:
            attempt(slow)
        return
    errors = {
        layer: log.recall(layer, float, partial(judge.layer_error, table, layer))
        for layer in judge.track(layers, "sensitivity", len(layers))
    }
    savings = _above_noise(savings, noise, judge, 1.0 - assignments[0].cost)
    order = rank_layers(errors, savings)
    if len(order) > 1 and not budget.holds(attempt(order[:-1])):
        # The layer that saves most time may lose more than the budget; the one that loses least
        # is the last that INT8 has to offer.
        order = sorted(errors, key=lambda layer: -errors[layer])
    bisect_float_layers(len(order), lambda k: attempt(order[:k]), budget)


def _above_noise(
    savings: Mapping[str, float], noise: float, judge: HeldOutJudge, total: float
) -> dict[str, float]:
    """Savings; one within the noise is replaced by the layer's counted part of the total saving."""
    count = counted_latency(judge.model).cost
    base = count(judge.choose())
    share = max(total, 1e-3) / (1.0 - base)
    return {
        layer: value if abs(value) > noise else share * (count(judge.choose([layer])) - base)
        for layer, value in savings.items()
    }


def _search_key(
    table: CalibrationTable, judge: HeldOutJudge, budget: Budget, time_source: str
) -> str:
    """What results depend on. The budget's limits are not part of it: another budget's search may
    use what this one judged."""
    keys = [judge.faces.keys[i] for i in judge.picks]
    inputs = [
        time_source,
        budget.far,
        judge.faces.where,
        keys,
        sorted(judge.rounded),
        judge.grouped,
    ]
    return hashlib.sha256((table_to_json(table) + json.dumps(inputs)).encode()).hexdigest()
