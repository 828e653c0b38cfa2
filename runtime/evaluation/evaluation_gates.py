"""Gates of `evaluate`: absolute floors and ceilings, judged by their intervals."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

from ...metrics.person_variance import score_interval
from ...metrics.rates import SOLID_IMPOSTORS, few_impostors
from ...metrics.verification import far_name
from .gates import Gate, ceiling_gate, floor_gate, gate_reasons, people_gate
from .limits import EvaluateLimits
from .result import EvaluateResult, IjbResult
from .verdict import PASSED, overall_verdict

Evaluated = TypeVar("Evaluated", EvaluateResult, IjbResult)


def evaluation_gates(limits: EvaluateLimits, result: EvaluateResult | IjbResult) -> list[Gate]:
    """The gates that were asked for.

    Args:
        limits: What was asked for.
        result: What was measured.
    """
    return list(_gates(limits, result))


def with_verdict(result: Evaluated, gates: list[Gate]) -> Evaluated:
    """A result with its gates and their verdict.

    Args:
        result: What was measured.
        gates: Judged ones; with none there is no verdict.
    """
    if not gates:
        return result
    verdict = overall_verdict(gate.verdict for gate in gates)
    return replace(
        result,
        gates=tuple(gates),
        verdict=verdict,
        passed=verdict == PASSED,
        reasons=tuple(gate_reasons(gates)),
    )


def _gates(limits: EvaluateLimits, result: EvaluateResult | IjbResult) -> Iterator[Gate]:
    if limits.min_tar is not None:
        yield _tar_gate(limits.min_tar, limits.judged_far, result)
    if limits.min_accuracy is not None:
        name = "10-fold accuracy"
        if isinstance(result, EvaluateResult):
            ends = result.accuracy_interval_95
            yield people_gate(name, result.accuracy, limits.min_accuracy, "least", ends)
        else:
            yield floor_gate(name, None, limits.min_accuracy, "IJB has none", cure=_OTHER)
    if limits.max_eer is not None:
        name = "equal error rate"
        if isinstance(result, EvaluateResult):
            yield people_gate(name, result.eer, limits.max_eer, "most", result.eer_interval_95)
        else:
            yield ceiling_gate(name, None, limits.max_eer, "IJB has none", cure=_OTHER)


_OTHER = "evaluate a pair list or a folder of people"


def _tar_gate(limit: float, far: float, result: EvaluateResult | IjbResult) -> Gate:
    name, impostor = far_name(far), result.pairs.impostor
    tar, reason = result.tar_at_far.get(name), few_impostors(impostor, far)
    title = f"TAR at FAR {name}"
    if tar is None or reason:
        needed = f"{round(SOLID_IMPOSTORS / far):,} impostor pairs"
        cure = f"give faces of more people, {needed} among them, or a larger --far"
        reason = reason or f"the protocol has no FAR {name}"
        return floor_gate(title, tar, limit, reason, cure=cure)
    if isinstance(result, EvaluateResult):
        return people_gate(title, tar, limit, "least", result.interval_95_at_far.get(name))
    # The folder does not say whose templates they are: a person counts for one genuine pair.
    ends = score_interval(tar, 2 / min(result.pairs.genuine, result.protocol.templates))
    return people_gate(title, tar, limit, "least", ends)
