"""Gates: measured values, their limits and verdicts.

A gate whose value has a 95 % interval holds when the whole interval keeps the limit, fails when
none of it does, and cannot be judged when the interval holds the limit. Without an interval the
value alone decides.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ...metrics.comparison import VerificationComparison
from ...metrics.rates import SOLID_IMPOSTORS, CosineDrift, RateChange
from ...metrics.strata import MIN_STRATUM_PAIRS
from ...metrics.verification import far_name
from .limits import COSINE_FLOORS, Limits
from .reference import ReferenceCheck
from .verdict import CANNOT_JUDGE, FAILED, PASSED, VerdictReason

MIN_REFERENCE_COSINE = 0.9999  # from which model.onnx on this machine is the original network

Ends = tuple[float, float]

_NO_PEOPLE = "no faces of several known people were given"
_GIVE_PEOPLE = "give --faces, a folder per person, or --pairs"
_MORE_PEOPLE = "give more people with two photographs or more"
_MANY_TIMES = 20  # as many people as given, up to which the cure names a number

# A reference below these hardly tells people apart, so a loss against it proves nothing. Trained
# networks have an EER under .05 and accept 90 % of the genuine pairs at FAR 1e-2.
_MAX_REFERENCE_EER = 0.2
_MIN_REFERENCE_TAR = 0.5  # at FAR 1e-2
_MIN_JUDGED_TAR = 0.1  # at the judged FAR
_WRONG_CONTRACT = (
    "are the faces aligned, the labels right, the input contract the network's"
    " (`fr-edge find-preprocessing`)?"
)


@dataclass(frozen=True)
class Gate:
    """A limit and its verdict; make one with `floor_gate` or `ceiling_gate`.

    Attributes:
        value: What was measured; None where it could not be.
        at: "least" for a floor, "most" for a ceiling.
        passed: Whether the verdict is PASSED.
        reason: Why the value cannot be judged.
        verdict: "PASSED", "FAILED" or "CANNOT JUDGE"; empty in reports of earlier versions.
        interval_95: 95 % interval of the value, by which it was judged.
        cure: What would let it be judged.
    """

    name: str
    value: float | None
    limit: float
    at: str
    passed: bool
    reason: str = ""
    verdict: str = ""
    interval_95: Ends | None = None
    cure: str = ""

    def describe(self) -> str:
        """`min cosine 0.9712, at least 0.95`."""
        value = self.reason or "not measured" if self.value is None else f"{self.value:.4f}"
        between = (
            "" if self.interval_95 is None else " ({:.4f} to {:.4f})".format(*self.interval_95)
        )
        return f"{self.name} {value}{between}, at {self.at} {self.limit:g}"


@dataclass(frozen=True)
class GalleryAdvice:
    """Whether people enrolled with another network may be matched by the engine.

    Attributes:
        verdict: "keep the gallery", "enrol again" or "cannot judge".
        far: The FAR by name.
        delta: Change of TAR of mixed pairs, a fraction.
        threshold: The match threshold of mixed pairs, a cosine.
    """

    verdict: str
    far: str
    delta: float
    threshold: float


def floor_gate(
    name: str,
    value: float | None,
    limit: float,
    reason: str = "",
    interval: Ends | None = None,
    cure: str = "",
) -> Gate:
    """A gate that passes from its limit upwards.

    Args:
        name: What is judged.
        value: What was measured; None where it could not be.
        limit: The smallest value that passes.
        reason: Why the value is missing or proves nothing: the gate cannot be judged.
        interval: 95 % interval of the value.
        cure: What would let it be judged.
    """
    return _gate(name, value, limit, "least", reason, interval, cure)


def ceiling_gate(
    name: str,
    value: float | None,
    limit: float,
    reason: str = "",
    interval: Ends | None = None,
    cure: str = "",
) -> Gate:
    """A gate that passes up to its limit.

    Args:
        name: What is judged.
        value: What was measured; None where it could not be.
        limit: The largest value that passes.
        reason: Why the value is missing or proves nothing: the gate cannot be judged.
        interval: 95 % interval of the value.
        cure: What would let it be judged.
    """
    return _gate(name, value, limit, "most", reason, interval, cure)


def people_gate(
    name: str, value: float, limit: float, at: str, interval: Ends | None, reason: str = ""
) -> Gate:
    """A gate of a value that people are the sample of: without an interval it cannot be judged.

    Args:
        name: What is judged.
        value: What was measured.
        limit: The limit.
        at: "least" for a floor, "most" for a ceiling.
        interval: 95 % interval of the value; None with too few people.
        reason: Why the value proves nothing.
    """
    cure = _MORE_PEOPLE
    if interval is None and not reason:
        reason = "too few people for a 95 % interval"
    elif interval is not None and interval[0] <= limit <= interval[1]:
        bound = interval[0] if at == "least" else interval[1]
        room = abs(limit - value)
        keeps = value > limit if at == "least" else value < limit
        cure += f", or a limit of {bound:.4f}"
        times = math.ceil((abs(bound - value) / room) ** 2) if keeps and room else math.inf
        if times <= _MANY_TIMES:
            cure = f"give about {max(2, times)} times as many people, or a limit of {bound:.4f}"
    return _gate(name, value, limit, at, reason, interval, cure)


def judge_gates(
    limits: Limits,
    precision: str,
    golden: ReferenceCheck,
    drift: CosineDrift,
    comparison: VerificationComparison | None,
) -> tuple[list[Gate], list[str]]:
    """Judge what was measured.

    Args:
        limits: What the engine must satisfy.
        precision: "fp32", "fp16" or "int8".
        golden: The golden faces' answer.
        drift: Cosines of engine and reference.
        comparison: Rates of both, where faces of several people were given.

    Returns:
        The gates, and in words what was not measured.
    """
    minimum, p1 = COSINE_FLOORS[precision]
    gates = [
        floor_gate(
            "fp32 model is the original: min cosine", golden.fp32_min_cosine, MIN_REFERENCE_COSINE
        ),
        floor_gate(
            "min cosine", drift.min, minimum if limits.min_cosine is None else limits.min_cosine
        ),
        floor_gate("p1 cosine", drift.p1, p1 if limits.p1_cosine is None else limits.p1_cosine),
    ]
    if comparison is None:
        not_measured = [f"people, TAR and FAR: {_NO_PEOPLE}"]
        gates += _unmeasured_gates(limits)
    else:
        rate = judged_rate(limits, comparison.tar)
        gates += _rate_gates(limits, rate)
        not_measured = []
        if rate.far != limits.judged_far:
            wanted = comparison.tar[far_name(limits.judged_far)]
            why = wanted.reason or wanted.low_confidence
            not_measured.append(
                f"TAR at FAR {far_name(wanted.far)}, the default; FAR {far_name(rate.far)} was"
                f" judged: {why}"
            )
        if limits.max_stratum_drop is not None:
            gates.append(_stratum_gate(limits.max_stratum_drop, comparison))
        not_measured += comparison.notes
    if comparison is None or comparison.accuracy is None:
        not_measured.append("10-fold accuracy: no pair list was given")
    return gates, not_measured


def judged_rate(limits: Limits, rates: Mapping[str, RateChange]) -> RateChange:
    """The rates at the FAR that was asked for, or by default at the lowest from 1e-4 on that the
    pairs show.

    Args:
        limits: With the FAR.
        rates: FAR by name -> rates, with the judged FAR among them.
    """
    wanted = rates[far_name(limits.judged_far)]
    if limits.far is not None or _solid(wanted):
        return wanted
    larger = [rate for rate in rates.values() if rate.far > wanted.far and _solid(rate)]
    return min(larger, key=lambda rate: rate.far, default=wanted)


def reference_doubt(limits: Limits, comparison: VerificationComparison) -> VerdictReason | None:
    """Whether the reference itself hardly tells people apart, so that nothing can be lost.

    Args:
        limits: With the FAR.
        comparison: Rates of reference and engine.

    Returns:
        A reason for CANNOT JUDGE; None where the reference tells people apart.
    """
    eer, rate = comparison.curves.reference.eer, judged_rate(limits, comparison.tar)
    lenient = comparison.tar[far_name(1e-2)]
    if lenient.reference is not None and lenient.reference < _MIN_REFERENCE_TAR:
        fact = f"it accepts {lenient.reference:.1%} of the genuine pairs at FAR 1e-2"
    elif eer > _MAX_REFERENCE_EER:
        fact = f"its equal error rate is {eer:.1%}"
    elif rate.reference is not None and rate.reference < _MIN_JUDGED_TAR:
        fact = (
            f"it accepts {rate.reference:.1%} of the genuine pairs at FAR {far_name(rate.far)}; a"
            " larger --far may be judged"
        )
    else:
        return None
    return VerdictReason(
        CANNOT_JUDGE,
        f"the reference itself hardly tells these people apart: {fact}",
        _WRONG_CONTRACT,
    )


def gallery_advice(
    limits: Limits, rates: Mapping[str, RateChange], *, cannot_judge: bool = False
) -> GalleryAdvice | None:
    """May people enrolled with another network be matched by the engine, or must they enrol again?

    They may stay when mixed pairs lose no more TAR than the engine's own pairs may.

    Args:
        limits: What the engine must satisfy.
        rates: FAR by name -> TAR of the other network alone, and of mixed pairs.
        cannot_judge: Whether the other network or the faces allow no judgement.

    Returns:
        The advice, None where the pairs are too few.
    """
    if not rates:
        return None
    mixed = judged_rate(limits, rates)
    if mixed.reference is None or mixed.delta is None or mixed.threshold.engine is None:
        return None
    stays = -mixed.delta <= limits.tar_drop
    if cannot_judge or mixed.reference < _MIN_JUDGED_TAR:
        verdict = "cannot judge"
    else:
        verdict = "keep the gallery" if stays else "enrol again"
    return GalleryAdvice(verdict, far_name(mixed.far), mixed.delta, mixed.threshold.engine)


def gate_reasons(gates: list[Gate]) -> list[VerdictReason]:
    """Why gates did not pass.

    Args:
        gates: Judged ones.
    """
    return [
        VerdictReason(
            gate.verdict,
            gate.describe()
            if gate.verdict == FAILED or gate.value is None
            else f"{gate.describe()}: {gate.reason}",
            gate.cure,
        )
        for gate in gates
        if gate.verdict != PASSED
    ]


def _gate(
    name: str,
    value: float | None,
    limit: float,
    at: str,
    reason: str,
    interval: Ends | None,
    cure: str,
) -> Gate:
    known = value is not None and math.isfinite(value)
    verdict = CANNOT_JUDGE
    if known and not reason:
        assert value is not None
        low, high = interval or (value, value)
        kept = (low >= limit, high >= limit) if at == "least" else (high <= limit, low <= limit)
        verdict = PASSED if kept[0] else CANNOT_JUDGE if kept[1] else FAILED
        if verdict == CANNOT_JUDGE:
            reason = "the 95 % interval holds values on both sides of the limit"
    cure = cure if verdict == CANNOT_JUDGE else ""
    value = value if known else None
    return Gate(name, value, limit, at, verdict == PASSED, reason, verdict, interval, cure)


def _unmeasured_gates(limits: Limits) -> Iterator[Gate]:
    """Gates that were asked for and need people."""
    far = far_name(limits.judged_far)
    names = {
        "max_tar_drop": f"TAR drop at FAR {far}",
        "min_tar": f"TAR at FAR {far}",
        "max_stratum_drop": "worst stratum's TAR drop",
    }
    for key, name in names.items():
        limit = getattr(limits, key)
        if limit is not None:
            make = floor_gate if key.startswith("min") else ceiling_gate
            yield make(name, None, limit, _NO_PEOPLE, cure=_GIVE_PEOPLE)


def _solid(rate: RateChange) -> bool:
    return rate.delta is not None and not rate.low_confidence


def _rate_gates(limits: Limits, rate: RateChange) -> Iterator[Gate]:
    """The loss of TAR, and the engine's TAR where that was asked for."""
    far, interval = far_name(rate.far), rate.interval_95
    reason = rate.reason or rate.low_confidence
    if rate.delta is None or rate.engine is None:
        cure = _more_impostors(rate.far)
        yield ceiling_gate(f"TAR drop at FAR {far}", None, limits.tar_drop, reason, cure=cure)
        if limits.min_tar is not None:
            yield floor_gate(f"TAR at FAR {far}", None, limits.min_tar, reason, cure=cure)
        return
    drop = (0.0 - interval.delta[1], 0.0 - interval.delta[0]) if interval else None
    yield people_gate(
        f"TAR drop at FAR {far}", 0.0 - rate.delta, limits.tar_drop, "most", drop, reason
    )
    if limits.min_tar is not None:
        ends = interval.engine if interval else None
        yield people_gate(f"TAR at FAR {far}", rate.engine, limits.min_tar, "least", ends, reason)


def _more_impostors(far: float) -> str:
    return (
        f"give faces of more people, {round(SOLID_IMPOSTORS / far):,} impostor pairs among them,"
        " or a larger --far"
    )


def _stratum_gate(limit: float, comparison: VerificationComparison) -> Gate:
    drops: dict[str, float] = {}
    if comparison.strata_far is not None:
        strata = (*comparison.strata, *comparison.degraded)
        drops = {stratum.name: stratum.drop for stratum in strata if stratum.drop is not None}
    if not drops:
        reason = f"no stratum has {MIN_STRATUM_PAIRS} pairs"
        return ceiling_gate("worst stratum's TAR drop", None, limit, reason, cure=_MORE_PEOPLE)
    worst = max(drops, key=lambda name: drops[name])
    name = f"TAR drop at FAR {comparison.strata_far} of the worst stratum: {worst}"
    return ceiling_gate(name, drops[worst], limit)
