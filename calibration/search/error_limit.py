"""Without a budget: layers that INT8 speeds up least stay in float where INT8's error is too large.

Thousands of people would be needed to show a loss of .0015 of TAR at FAR 1e-5. What INT8 loses there
is what noise of the same size in the embeddings loses (docs/results/int8.md, "The loss is the
noise's"), so that the mean error of a few faces decides.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from ...graph.layers import Int8Choice, weighted_layers
from .. import constants
from ..table import CalibrationTable
from .latency_model import COUNTED, counted_latency
from .mixed_precision import Assignment, HeldOutJudge, SearchResult

ERROR_LIMIT = "rounding error"  # why a layer of `CalibrationTable.float_layers` is kept in float


def limit_error(table: CalibrationTable, judge: HeldOutJudge) -> SearchResult:
    """Judge INT8 in all dense layers, and keep layers in float until the mean error is small.

    Layers go back to float in the order of the time that their INT8 saves, the least first, as
    long as the mean of 1 - cosine on held-out faces is above `MAX_MEAN_ERROR`, and at most until
    `MAX_TIME_SHARE` of what INT8 saves is given up. Times are counted. How many layers are needed is
    judged at most twice: the number that `ERROR_PER_TIME` foretells, and if it is too small, the
    most.

    Args:
        table: The calibration table of the float model.
        judge: Measures what assignments lose; its people are not empty.

    Returns:
        The assignments that were judged; the last one is taken.
    """
    cost = counted_latency(judge.model).cost
    assignments = [judge.assess(table, (), None, cost)]
    excess = _error(assignments[0]) - constants.MAX_MEAN_ERROR
    given_up = spared_layers(judge, cost) if excess > 0.0 else {}
    if given_up:
        order = list(given_up)
        wanted = excess / _error(assignments[0]) / constants.ERROR_PER_TIME
        count = 1 + sum(share < wanted for share in given_up.values())
        for some in dict.fromkeys((min(count, len(order)), len(order))):
            assignments.append(judge.assess(table, order[:some], None, cost))
            if _error(assignments[-1]) <= constants.MAX_MEAN_ERROR:
                break
        assignments.sort(key=_error, reverse=True)
    kept = dict.fromkeys(assignments[-1].float_layers, ERROR_LIMIT)
    return SearchResult(tuple(assignments), replace(table, float_layers=kept), COUNTED)


def spared_layers(judge: HeldOutJudge, cost: Callable[[Int8Choice], float]) -> dict[str, float]:
    """The layers whose INT8 saves least, which together save at most `MAX_TIME_SHARE`.

    Layers whose INT8 takes longer than float, by converting a tensor that float operators read too,
    are the first, and give up nothing.

    Args:
        judge: Knows the model and which of its layers are INT8.
        cost: Time of an assignment, a share of the time in float.

    Returns:
        Layer -> the share of the time saved by INT8, where it saves most, that this layer and those
        before it give up; the layer that saves least first, those that save the same in the order of
        the graph.
    """
    full = judge.choose()
    data = {layer.name: layer.data for layer in weighted_layers(judge.model)}

    def without(names: Sequence[str]) -> float:
        int8 = tuple(layer for layer in full.int8 if layer not in names)
        tensors = tuple(dict.fromkeys(data[layer] for layer in int8))
        return cost(replace(full, int8=int8, tensors=tensors))

    saved = {layer: without([layer]) for layer in full.int8}
    order = sorted(full.int8, key=lambda layer: saved[layer])
    fastest = cost(full)
    given_up: dict[str, float] = {}
    for count, layer in enumerate(order[:-1], 1):
        time = without(order[:count])
        fastest = min(fastest, time)
        if time - fastest > constants.MAX_TIME_SHARE * max(0.0, 1.0 - fastest):
            break
        given_up[layer] = (time - fastest) / max(1.0 - fastest, 1e-9)
    return given_up


def _error(assignment: Assignment) -> float:
    return 1.0 - assignment.loss.cosine.mean
